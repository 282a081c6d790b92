"""Programs that hold what CRIU may or may not be able to write down; each runs as a container.

One row: its name, the finding that is expected ("" for none), the program, options of ``run``.
"""

# ruff: noqa: E501 - a row is a row

from __future__ import annotations

PRELUDE = """
import ctypes, fcntl, mmap, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def check(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result
def syscall(number, *args):
    return check(libc.syscall(ctypes.c_long(number), *args), "syscall %d" % number)
def unshare(flags):
    check(libc.unshare(flags), "unshare")
def mount(source, target, kind, flags=0, data=None):
    check(libc.mount(source, target, kind, ctypes.c_ulong(flags), data), "mount")
kept = []
def device(name, major, minor, block=False):
    path = "/dev/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mknod(path, 0o600 | (0o60000 if block else 0o20000), os.makedev(major, minor))
    return path
def child(work):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        work()
        os.write(tell, b"x")
        os.close(tell)
        while True:
            signal.pause()
    os.close(tell)
    assert os.read(told, 1) == b"x", "the child failed"
    os.close(told)
    return pid
def go_on():
    number = 0
    while True:
        number += 1
        with open("/beat.new", "w") as stream:
            stream.write(str(number))
        os.rename("/beat.new", "/beat")
        time.sleep(0.02)
"""


CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "plain": ("", "", ()),
    "a file of its cgroup": (
        "cgroup-file",
        "import glob\nkept.append(open(glob.glob('/sys/fs/cgroup/**/cgroup.procs', recursive=True)[0]))",
        (),
    ),
    "io_uring": (
        "io_uring",
        "kept.append(syscall(425, 4, ctypes.create_string_buffer(120)))",
        ("--privileged",),
    ),
    "mount namespace": ("", "child(lambda: unshare(0x20000))", ("--privileged",)),
    "uts namespace": ("namespace", "child(lambda: unshare(0x4000000))", ("--privileged",)),
    "ipc namespace": ("namespace", "child(lambda: unshare(0x8000000))", ("--privileged",)),
    "net namespace": ("", "child(lambda: unshare(0x40000000))", ("--privileged",)),
    "pid namespace": ("namespace", "unshare(0x20000000); child(lambda: None)", ("--privileged",)),
    "user namespace": ("namespace", "child(lambda: unshare(0x10000000))", ("--privileged",)),
    "cgroup namespace": ("namespace", "child(lambda: unshare(0x2000000))", ("--privileged",)),
    "time namespace": ("namespace", "unshare(0x80); child(lambda: None)", ("--privileged",)),
    "thread own mount ns": (
        "",
        "threading.Thread(target=lambda: (unshare(0x20200), time.sleep(9999))).start(); time.sleep(.3)",
        ("--privileged",),
    ),
    "thread own net ns": (
        "",
        "threading.Thread(target=lambda: (unshare(0x40000000), time.sleep(9999))).start(); time.sleep(.3)",
        ("--privileged",),
    ),
    "thread own files": (
        "",
        "threading.Thread(target=lambda: (unshare(0x400), time.sleep(9999))).start(); time.sleep(.3)",
        ("--privileged",),
    ),
    "tun open": (
        "",
        "kept.append(open(device('net/tun',10,200),'rb+',buffering=0))",
        ("--privileged",),
    ),
    "tun attached": (
        "device",
        "f=open(device('net/tun',10,200),'rb+',buffering=0); kept.append(f); fcntl.ioctl(f, 0x400454ca, struct.pack('16sH14x', b'tun7', 0x1001))",
        ("--privileged",),
    ),
    "null zero full random": (
        "",
        "kept.extend(os.open('/dev/'+n,os.O_RDONLY) for n in ('null','zero','full','random','urandom'))",
        (),
    ),
    "tty": ("", "kept.extend(os.openpty())", ()),
    "inotify image file": (
        "inotify",
        "i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/image-file', 2), 'watch'));",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify upper file": (
        "inotify",
        "open('/upper-file','w').close();i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/upper-file', 2), 'watch'));",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify proc": (
        "inotify",
        "i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/proc/self', 2), 'watch'));",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify sys": (
        "inotify",
        "i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/sys/kernel', 2), 'watch'));",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify tmpfs": (
        "",
        "i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/tmp', 2), 'watch'));",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify volume": (
        "",
        "i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/data', 2), 'watch'));",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify removed": (
        "",
        "os.mkdir('/removed');i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/removed', 2), 'watch'));os.rmdir('/removed');",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "inotify renamed": (
        "inotify",
        "os.mkdir('/renamed1');i=libc.inotify_init1(0); kept.append(check(libc.inotify_add_watch(i, b'/renamed1', 2), 'watch'));os.rename('/renamed1','/renamed2');",
        ("-v", "{volume}:/data", "--tmpfs", "/tmp"),
    ),
    "fanotify": (
        "",
        "f=syscall(300, 0, 0); syscall(301, f, 0x1, ctypes.c_ulonglong(2), -100, b'/tmp')",
        ("--privileged", "--tmpfs", "/tmp"),
    ),
    "fanotify mount": (
        "",
        "f=syscall(300, 0, 0); syscall(301, f, 0x11, ctypes.c_ulonglong(2), -100, b'/tmp')",
        ("--privileged", "--tmpfs", "/tmp"),
    ),
    "flock": ("", "f=open('/lock','w'); kept.append(f); fcntl.flock(f,2)", ()),
    "posix lock": ("", "f=open('/lock','w'); kept.append(f); fcntl.lockf(f,2)", ()),
    "ofd lock": (
        "",
        "f=open('/lock','w'); kept.append(f); fcntl.fcntl(f, 37, struct.pack('hhqqi4x',1,0,0,0,0))",
        (),
    ),
    "lease": (
        "",
        "f=open('/lock','w'); kept.append(f); fcntl.fcntl(f, 1024, 1)",
        ("--privileged",),
    ),
    "lock waiter": (
        "",
        """
f=open('/lock','w'); kept.append(f); fcntl.lockf(f,2)
pid=os.fork()
if pid==0:
    g=open('/lock','w'); fcntl.lockf(g,2); os._exit(0)
time.sleep(.3)
""",
        (),
    ),
    "flock waiter": (
        "",
        """
f=open('/lock','w'); kept.append(f); fcntl.flock(f,2)
pid=os.fork()
if pid==0:
    g=open('/lock','w'); fcntl.flock(g,2); os._exit(0)
time.sleep(.3)
""",
        (),
    ),
    "lock in volume": (
        "",
        "f=open('/data/lock','w'); kept.append(f); fcntl.flock(f,2)",
        ("-v", "{volume}:/data"),
    ),
    "deleted small": (
        "",
        "f=open('/gone','w+'); f.write('x'*100000); f.flush(); os.unlink('/gone'); kept.append(f)",
        (),
    ),
    "deleted 1G": (
        "deleted-file",
        "f=open('/gone','w+'); os.posix_fallocate(f.fileno(), 0, (1 << 30) + 4096); os.unlink('/gone'); kept.append(f)",
        (),
    ),
    "deleted sparse 2G": (
        "",
        "f=open('/gone','w+'); f.truncate(2<<30); os.unlink('/gone'); kept.append(f)",
        (),
    ),
    "deleted hard link ro volume": (
        "deleted-file",
        "f=open('/data/gone'); os.unlink('/d2/gone'); kept.append(f)",
        ("-v", "{volume}:/data:ro", "-v", "{volume}:/d2"),
    ),
    "deleted cwd": ("", "os.mkdir('/gonedir'); os.chdir('/gonedir'); os.rmdir('/gonedir')", ()),
    "o_tmpfile": ("", "kept.append(os.open('/', 0o20200000|2, 0o600))", ()),
    "deleted image file": ("", "kept.append(open('/image-file')); os.unlink('/image-file')", ()),
    "replaced image file": (
        "",
        "kept.append(open('/image-file')); open('/n','w').close(); os.rename('/n','/image-file')",
        (),
    ),
    "copied up": (
        "",
        "kept.append(open('/image-file')); g=open('/image-file','a'); g.write('x'); g.flush(); kept.append(g)",
        (),
    ),
    "mmap copied up": (
        "",
        "f=open('/image-file'); m=mmap.mmap(f.fileno(),0,prot=1,flags=2); kept.append(m); g=open('/image-file','a'); g.write('x'); g.flush()",
        (),
    ),
    "ptraced": (
        "traced",
        """
def traced():
    libc.ptrace(0,0,0,0)
pid=os.fork()
if pid==0:
    libc.ptrace(0,0,0,0); os.kill(os.getpid(),19)
    time.sleep(9999)
os.waitpid(pid,2)
""",
        ("--privileged",),
    ),
    "zombie": (
        "zombie",
        """
p=os.fork()
if p==0: os._exit(3)
time.sleep(.2)
""",
        (),
    ),
    "orphan zombie group": (
        "zombie",
        """
p=os.fork()
if p==0:
  os.setsid()
  if os.fork()==0: time.sleep(9999)
  os._exit(0)
time.sleep(.2)
""",
        (),
    ),
    "stopped": (
        "",
        """
p=os.fork()
if p==0:
  os.kill(os.getpid(),19)
  time.sleep(9999)
time.sleep(.2)
""",
        (),
    ),
    "hugepages anon": (
        "huge-pages",
        "m=mmap.mmap(-1, 2<<20, flags=0x40000|0x22|0x4000); kept.append(m)",
        (),
    ),
    "memfd hugetlb": (
        "lost-mount",
        "kept.append(os.memfd_create('h', 4)); os.ftruncate(kept[-1], 2<<20)",
        (),
    ),
    "memfd": ("", "kept.append(os.memfd_create('h', 0)); os.write(kept[-1], b'x')", ()),
    "memfd_secret": (
        "secret-memory",
        "f=syscall(447,0); os.ftruncate(f,4096); kept.append(mmap.mmap(f,4096))",
        ("--privileged",),
    ),
    "sysv shm": (
        "",
        "i=check(libc.shmget(77,65536,0o1600),'shmget'); libc.shmat.restype=ctypes.c_void_p; kept.append(libc.shmat(i,None,0))",
        (),
    ),
    "sysv sem msg": (
        "",
        "check(libc.semget(78,3,0o1600),'sem'); check(libc.msgget(79,0o1600),'msg')",
        (),
    ),
    "shm host ipc": (
        "shared-memory",
        "i=check(libc.shmget(0,65536,0o1600),'shmget'); libc.shmat.restype=ctypes.c_void_p; kept.append(libc.shmat(i,None,0)); libc.shmctl(i,0,None)",
        ("--share", "ipc"),
    ),
    "mqueue": (
        "lost-mount",
        "rt=ctypes.CDLL('librt.so.1',use_errno=True); kept.append(check(rt.mq_open(b'/q', 66, 0o600, None),'mq'))",
        (),
    ),
    "userfaultfd": ("descriptor", "kept.append(syscall(323, 1))", ("--privileged",)),
    "perf": (
        "descriptor",
        "a=ctypes.create_string_buffer(struct.pack('IIQ',1,112,0)+bytes(96)); kept.append(syscall(298,a,0,-1,-1,0))",
        ("--privileged",),
    ),
    "bpf map": (
        "descriptor",
        "a=ctypes.create_string_buffer(struct.pack('IIIII',2,4,4,8,0)+bytes(100)); kept.append(syscall(321,0,a,120))",
        ("--privileged",),
    ),
    "pidfd": ("", "kept.append(os.pidfd_open(child(lambda:None)))", ()),
    "pidfd dead": (
        "",
        """
p=os.fork()
if p==0: os._exit(0)
kept.append(os.pidfd_open(p)); os.waitpid(p,0)
""",
        (),
    ),
    "timerfd": (
        "",
        "f=libc.timerfd_create(1,0); kept.append(f); libc.timerfd_settime(f,0,struct.pack('qqqq',1,0,1,0),None)",
        (),
    ),
    "signalfd eventfd": (
        "",
        "kept.append(libc.eventfd(3,0)); kept.append(libc.signalfd(-1, bytes(128), 0))",
        (),
    ),
    "epoll": (
        "",
        "import select; e=select.epoll(); r,w=os.pipe(); e.register(r,1); kept.extend([e,r,w])",
        (),
    ),
    "epoll dup closed": (
        "",
        "import select; e=select.epoll(); r,w=os.pipe(); e.register(r,1); d=os.dup(r); os.close(r); kept.extend([e,d,w])",
        (),
    ),
    "epoll nested": (
        "",
        "import select; e=select.epoll(); f=select.epoll(); e.register(f,1); kept.extend([e,f])",
        (),
    ),
    "fsopen": ("descriptor", "kept.append(syscall(430,b'tmpfs',0))", ("--privileged",)),
    "open_tree": (
        "lost-mount",
        "kept.append(syscall(428,-100,b'/tmp',1))",
        ("--privileged", "--tmpfs", "/tmp"),
    ),
    "landlock": (
        "descriptor",
        "a=ctypes.create_string_buffer(struct.pack('Q',1)); kept.append(syscall(444,a,8,0))",
        ("--privileged",),
    ),
    "nsfd own": ("", "kept.append(open('/proc/self/ns/net'))", ()),
    "seccomp notify": (
        "descriptor",
        """
import struct
prog=struct.pack('HBBI',0x06,0,0,0x7fff0000); buf=ctypes.create_string_buffer(prog)
class P(ctypes.Structure): _fields_=[('n',ctypes.c_ushort),('p',ctypes.c_void_p)]
a=P(1,ctypes.addressof(buf)); libc.prctl(38,1,0,0,0)
kept.append(syscall(317,1,8,ctypes.byref(a)))
""",
        ("--privileged",),
    ),
    "proc file": (
        "",
        "kept.append(open('/proc/meminfo')); kept.append(open('/proc/1/status')); kept.append(os.open('/proc/self/fd',0))",
        (),
    ),
    "proc dead": (
        "",
        """
p=os.fork()
if p==0: os._exit(0)
kept.append(open('/proc/%d/status'%p)); os.waitpid(p,0)
""",
        (),
    ),
    "sys file": ("", "kept.append(open('/sys/kernel/mm/transparent_hugepage/enabled'))", ()),
    "aio": ("", "c=ctypes.c_ulong(0); syscall(206,10,ctypes.byref(c))", ("--privileged",)),
    "mdwe": ("", "check(libc.prctl(65,1,0,0,0),'mdwe')", ("--privileged",)),
    "scm_rights in flight": (
        "",
        "a,b=socket.socketpair(); r,w=os.pipe(); socket.send_fds(a,[b'x'],[r]); kept.extend([a,b,w])",
        (),
    ),
    "scm_rights of epoll": (
        "",
        "import select; a,b=socket.socketpair(); e=select.epoll(); socket.send_fds(a,[b'x'],[e.fileno()]); kept.extend([a,b])",
        (),
    ),
    "pending signal": ("", "signal.pthread_sigmask(0,[10]); os.kill(1,10)", ()),
    "chroot": (
        "",
        """
def f():
  os.mkdir('/jail'); os.chroot('/jail')
child(f)
""",
        (),
    ),
    "tcp listening": ("", "s=socket.create_server(('127.0.0.1',7000)); kept.append(s)", ()),
    "tcp loopback established": (
        "",
        "s=socket.create_server(('127.0.0.1',7000)); c=socket.create_connection(('127.0.0.1',7000)); a,_=s.accept(); kept.extend([s,c,a])",
        (),
    ),
    "tcp not accepted": (
        "half-open",
        "s=socket.create_server(('127.0.0.1',7000)); c=socket.create_connection(('127.0.0.1',7000)); kept.extend([s,c])",
        (),
    ),
    "tcp syn sent lo": (
        "half-open",
        """
c=socket.socket(); c.setblocking(False)
s=socket.socket(); s.bind(('127.0.0.1',7001)); s.listen(0); kept.append(s)
for i in range(4):
  c=socket.socket(); c.setblocking(False)
  try: c.connect(('127.0.0.1',7001))
  except BlockingIOError: pass
  kept.append(c)
""",
        (),
    ),
    "tcp time wait": (
        "",
        "s=socket.create_server(('127.0.0.1',7000)); c=socket.create_connection(('127.0.0.1',7000)); a,_=s.accept(); c.close(); a.close(); kept.append(s)",
        (),
    ),
    "tcp close wait": (
        "",
        "s=socket.create_server(('127.0.0.1',7000)); c=socket.create_connection(('127.0.0.1',7000)); a,_=s.accept(); c.close(); kept.extend([s,a])",
        (),
    ),
    "tcp fin wait": (
        "",
        "s=socket.create_server(('127.0.0.1',7000)); c=socket.create_connection(('127.0.0.1',7000)); a,_=s.accept(); c.shutdown(1); kept.extend([s,a,c])",
        (),
    ),
    "tcp urgent": (
        "",
        "s=socket.create_server(('127.0.0.1',7000)); c=socket.create_connection(('127.0.0.1',7000)); a,_=s.accept(); c.send(b'x',1); kept.extend([s,c,a])",
        (),
    ),
    "udp": (
        "",
        "s=socket.socket(2,2); s.bind(('127.0.0.1',7000)); c=socket.socket(2,2); c.connect(('127.0.0.1',7000)); kept.extend([s,c])",
        (),
    ),
    "raw": ("", "kept.append(socket.socket(2,3,1))", ("--privileged",)),
    "ping": (
        "socket",
        "open('/proc/sys/net/ipv4/ping_group_range','w').write('0 1000'); kept.append(socket.socket(2,2,1))",
        ("--privileged",),
    ),
    "packet": ("", "kept.append(socket.socket(17,3,socket.htons(3)))", ("--privileged",)),
    "packet ring": (
        "",
        "s=socket.socket(17,3,socket.htons(3)); s.setsockopt(263,5,struct.pack('IIII',4096,1,2048,2)); kept.append(s)",
        ("--privileged",),
    ),
    "netlink route": ("", "kept.append(socket.socket(16,3,0))", ()),
    "netlink route bound": ("", "s=socket.socket(16,3,0); s.bind((0,1)); kept.append(s)", ()),
    "netlink pending": (
        "netlink",
        "s=socket.socket(16,3,0); s.bind((0,0)); s.send(struct.pack('IHHIIB3x',20,18,0x301,1,0,0)); kept.append(s)",
        (),
    ),
    "netlink uevent": ("", "s=socket.socket(16,3,15); s.bind((0,1)); kept.append(s)", ()),
    "netlink generic": ("", "kept.append(socket.socket(16,3,16))", ("--privileged",)),
    "vsock": ("socket", "kept.append(socket.socket(40,1,0))", ("--privileged",)),
    "mptcp": ("socket", "kept.append(socket.socket(2,1,262))", ("--privileged",)),
    "mptcp listening": (
        "socket",
        "s=socket.socket(2,1,262); s.bind(('127.0.0.1',7010)); s.listen(); kept.append(s)",
        ("--privileged",),
    ),
    "xdp": ("socket", "kept.append(socket.socket(44,3,0))", ("--privileged",)),
    "unix pair": ("", "kept.extend(socket.socketpair())", ()),
    "unix listening": ("", "s=socket.socket(1); s.bind('/s'); s.listen(); kept.append(s)", ()),
    "unix listening volume": (
        "",
        "s=socket.socket(1); s.bind('/data/s'); s.listen(); kept.append(s)",
        ("-v", "{volume}:/data"),
    ),
    "unix not accepted": (
        "",
        "s=socket.socket(1); s.bind('/s'); s.listen(); c=socket.socket(1); c.connect('/s'); kept.extend([s,c])",
        (),
    ),
    "unix external, accepted": (
        "unix-outside",
        "c=socket.socket(1); c.connect('/data/host.sock'); kept.append(c)",
        ("-v", "{volume}:/data"),
    ),
    "unix external stream": (
        "unix-outside",
        "c=socket.socket(1); c.connect('/data/host.sock'); kept.append(c)",
        ("-v", "{volume}:/data"),
    ),
    "unix external dgram": (
        "unix-outside",
        "c=socket.socket(1,2); c.connect('/data/host.dgram'); kept.append(c)",
        ("-v", "{volume}:/data"),
    ),
    "unix seqpacket": ("", "kept.extend(socket.socketpair(1,5))", ()),
    "unix abstract": ("", "s=socket.socket(1); s.bind('\\0abs'); s.listen(); kept.append(s)", ()),
    "unix peer closed": ("", "a,b=socket.socketpair(); b.close(); kept.append(a)", ()),
    "unix dgram peer gone": (
        "",
        "s=socket.socket(1,2); s.bind('/dg'); c=socket.socket(1,2); c.connect('/dg'); c.send(b'x'); s.close(); kept.append(c)",
        (),
    ),
    "fifo volume outside": (
        "",
        "kept.append(os.open('/data/fifo',os.O_RDWR))",
        ("-v", "{volume}:/data"),
    ),
    "pipe packet": ("pipe", "kept.extend(os.pipe2(0o40000))", ()),
    "tmpfs inside": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'tmpfs')", ("--privileged",)),
    "bind inside": (
        "",
        "os.mkdir('/t'); os.mkdir('/u'); mount(b'/u',b'/t',None,4096)",
        ("--privileged",),
    ),
    "overlay inside": (
        "mount",
        """
os.mkdir('/o'); mount(b'none',b'/o',b'tmpfs')
for n in 'lumw': os.mkdir('/o/'+n)
mount(b'o',b'/o/m',b'overlay',0,b'lowerdir=/o/l,upperdir=/o/u,workdir=/o/w')
""",
        ("--privileged",),
    ),
    "overlay inside open": (
        "mount",
        """
os.mkdir('/o'); mount(b'none',b'/o',b'tmpfs')
for n in 'lumw': os.mkdir('/o/'+n)
mount(b'o',b'/o/m',b'overlay',0,b'lowerdir=/o/l,upperdir=/o/u,workdir=/o/w'); kept.append(open('/o/m/f','w'))
""",
        ("--privileged",),
    ),
    "proc inside": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'proc')", ("--privileged",)),
    "sysfs inside": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'sysfs')", ("--privileged",)),
    "devpts inside": (
        "",
        "os.mkdir('/t'); mount(b'none',b'/t',b'devpts',0,b'newinstance')",
        ("--privileged",),
    ),
    "devtmpfs inside": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'devtmpfs')", ("--privileged",)),
    "cgroup2 inside": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'cgroup2')", ("--privileged",)),
    "ramfs inside": ("mount", "os.mkdir('/t'); mount(b'none',b'/t',b'ramfs')", ("--privileged",)),
    "securityfs": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'securityfs')", ("--privileged",)),
    "tracefs": ("", "os.mkdir('/t'); mount(b'none',b'/t',b'tracefs')", ("--privileged",)),
    "nsfs bind": (
        "mount",
        "open('/t','w').close(); mount(b'/proc/self/ns/net',b'/t',None,4096)",
        ("--privileged",),
    ),
    "overmounted open": (
        "hidden-file",
        "os.mkdir('/t'); kept.append(open('/t/f','w')); mount(b'none',b'/t',b'tmpfs')",
        ("--privileged",),
    ),
    "detached mount open": (
        "lost-mount",
        "os.mkdir('/t'); mount(b'none',b'/t',b'tmpfs'); kept.append(open('/t/f','w')); check(libc.umount2(b'/t',2),'umount')",
        ("--privileged",),
    ),
    "shared mount": (
        "",
        "os.mkdir('/t'); mount(b'none',b'/t',b'tmpfs'); mount(None,b'/t',None,1<<20)",
        ("--privileged",),
    ),
    "mounted by the host": ("", "os.mkdir('/t')", ("--privileged",)),
}
