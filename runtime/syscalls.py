"""System calls that Python does not offer, each a thin function named as its manual page.

Every function raises ``OSError`` with the call's name and, where there is one, the path;
``_check`` is the only place that reads errno. Numbers of calls that libc lacks are in ``_NUMBERS``,
one row per architecture; those from 424 on are the same everywhere (the kernel's syscall.tbl).
Imports ctypes, os and struct only, for this runs between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import struct

# include/uapi/linux/bpf.h
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 1 << 1
BPF_F_REPLACE = 1 << 2
BPF_PROG_TYPE_CGROUP_DEVICE = 15

# include/uapi/linux/fcntl.h, include/uapi/linux/mount.h
AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

# include/uapi/linux/close_range.h
CLOSE_RANGE_CLOEXEC = 1 << 2

# include/uapi/linux/sched.h
CLONE_FS = 0x00000200
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWTIME = 0x00000080
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

# include/uapi/linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02

# include/uapi/linux/inotify.h
IN_CLOEXEC = os.O_CLOEXEC
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_MODIFY = 0x00000002
IN_MOVED_TO = 0x00000080
IN_NONBLOCK = os.O_NONBLOCK

# include/uapi/linux/mount.h
FSCONFIG_CMD_CREATE = 6
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSMOUNT_CLOEXEC = 1
FSOPEN_CLOEXEC = 1
MNT_DETACH = 2
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOATIME = 0x00000010
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NODIRATIME = 0x00000080
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_RELATIME = 0x00000000
MOUNT_ATTR_STRICTATIME = 0x00000020
MOUNT_ATTR__ATIME = 0x00000070
MOVE_MOUNT_F_EMPTY_PATH = 0x00000004
MOVE_MOUNT_T_EMPTY_PATH = 0x00000040
MS_BIND = 0x1000
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_NOSUID = 0x2
MS_PRIVATE = 1 << 18
MS_RDONLY = 0x1
MS_REC = 0x4000
MS_REMOUNT = 0x20
MS_SHARED = 1 << 20
MS_SLAVE = 1 << 19
MS_UNBINDABLE = 1 << 17
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
OPEN_TREE_CLONE = 1

# include/uapi/linux/openat2.h
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_NO_XDEV = 0x01

# include/uapi/linux/prctl.h
PR_CAPBSET_DROP = 24
PR_CAPBSET_READ = 23
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_CAP_AMBIENT_RAISE = 2
PR_SET_CHILD_SUBREAPER = 36
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38

# include/uapi/asm-generic/socket.h
SOL_SOCKET = 1
SO_ATTACH_FILTER = 26

# include/uapi/linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1

_CAPABILITY_VERSION_3 = 0x20080522

_UNIFORM = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "bpf": 321, "userfaultfd": 323, **_UNIFORM},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "bpf": 280, "userfaultfd": 282, **_UNIFORM},
    "ppc64le": {"pivot_root": 203, "seccomp": 358, "bpf": 361, "userfaultfd": 364, **_UNIFORM},
    "s390x": {"pivot_root": 217, "seccomp": 348, "bpf": 351, "userfaultfd": 355, **_UNIFORM},
    "riscv64": {"pivot_root": 41, "seccomp": 277, "bpf": 280, "userfaultfd": 282, **_UNIFORM},
}

MACHINE = os.uname().machine

Path = str | os.PathLike[str]


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class _IoVec(ctypes.Structure):
    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_libc = ctypes.CDLL(None, use_errno=True)
_int, _long, _ulong, _str = ctypes.c_int, ctypes.c_long, ctypes.c_ulong, ctypes.c_char_p
_libc.capset.argtypes = (ctypes.POINTER(_CapHeader), ctypes.POINTER(_CapData))
_libc.fallocate.argtypes = (_int, _int, _long, _long)
_libc.inotify_add_watch.argtypes = (_int, _str, ctypes.c_uint32)
_libc.inotify_init1.argtypes = (_int,)
_libc.mount.argtypes = (_str, _str, _str, _ulong, _str)
_libc.prctl.argtypes = (_int, _ulong, _ulong, _ulong, _ulong)
_iovecs = ctypes.POINTER(_IoVec)
_libc.process_vm_readv.argtypes = (_int, _iovecs, _ulong, _iovecs, _ulong, _ulong)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.sethostname.argtypes = (_str, ctypes.c_size_t)
_libc.setns.argtypes = (_int, _int)
_libc.setsockopt.argtypes = (_int, _int, _int, ctypes.c_void_p, ctypes.c_uint32)
_libc.syncfs.argtypes = (_int,)
_libc.syscall.restype = _long
_libc.umount2.argtypes = (_str, _int)
_libc.unshare.argtypes = (_int,)
# A forked child must come back holding the GIL as its parent does: PyDLL does not release it.
_forking_libc = ctypes.PyDLL(None, use_errno=True)
_forking_libc.syscall.restype = _long


def _check(result: int, call: str, path: Path | None = None) -> int:
    """Return what the call returned, or raise errno with the call's name and the path."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def _syscall(name: str, *arguments: object, path: Path | None = None) -> int:
    """Make a call that libc does not wrap; every argument is passed as a C long or a pointer."""
    numbers = _NUMBERS.get(MACHINE)
    if numbers is None:
        raise OSError(38, f"{name}: its number on {MACHINE} is not known")
    given = [_long(each) if isinstance(each, int) else each for each in arguments]
    return _check(_libc.syscall(_long(numbers[name]), *given), name, path)


def bpf(command: int, attributes: bytes) -> int:
    """See bpf(2); ``attributes`` is the packed union bpf_attr."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _syscall("bpf", command, buffer, len(attributes))


def bpf_prog_attach(
    target_fd: int,
    program_fd: int,
    attach_type: int,
    flags: int = 0,
    replaced_fd: int | None = None,
) -> None:
    """Attach a program to a cgroup; see BPF_PROG_ATTACH in include/uapi/linux/bpf.h."""
    bpf(8, struct.pack("=5I", target_fd, program_fd, attach_type, flags, replaced_fd or 0))


def bpf_prog_get_fd_by_id(identifier: int) -> int:
    """Return a descriptor of a loaded program; see BPF_PROG_GET_FD_BY_ID."""
    return bpf(13, struct.pack("=3I", identifier, 0, 0))


def bpf_prog_load(kind: int, instructions: bytes, program_license: str, name: str = "") -> int:
    """Return a descriptor of a program, an array of struct bpf_insn; see bpf(2)."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(program_license.encode())
    # prog_type insn_cnt insns license log_level log_size log_buf kern_version prog_flags prog_name
    attributes = struct.pack(
        "=2I2Q2IQ2I16s",
        *(kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(terms)),
        *(0, 0, 0, 0, 0, name.encode()[:15]),
    )
    return bpf(5, attributes)


def bpf_prog_query(target_fd: int, attach_type: int) -> list[int]:
    """Return the ids of at most 64 programs attached to a cgroup; see BPF_PROG_QUERY."""
    most = 64
    ids = (ctypes.c_uint32 * most)()
    # target_fd attach_type query_flags attach_flags prog_ids prog_cnt; the kernel writes into it
    attributes = struct.pack("=4IQ2I", target_fd, attach_type, 0, 0, ctypes.addressof(ids), most, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _syscall("bpf", 16, buffer, len(attributes))
    (count,) = struct.unpack_from("=I", buffer, 24)
    return list(ids[:count])


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's three sets, each a bit mask of capability numbers; see capset(2)."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    for half in (0, 1):
        shift = 32 * half
        data[half].effective = effective >> shift & 0xFFFFFFFF
        data[half].permitted = permitted >> shift & 0xFFFFFFFF
        data[half].inheritable = inheritable >> shift & 0xFFFFFFFF
    _check(_libc.capset(ctypes.byref(header), data), "capset")


def clone3(flags: int, exit_signal: int, cgroup: int | None = None) -> int:
    """Fork with flags: 0 in the child, its pid in the parent; see clone(2).

    For single-threaded processes only, and for children that exec or ``os._exit``: Python's and
    libc's fork handlers do not run. ``exit_signal`` must be 0 with CLONE_PARENT, which inherits it.
    ``cgroup`` goes with CLONE_INTO_CGROUP: a descriptor of a directory of cgroup v2.
    """
    # struct clone_args, first version: flags pidfd child_tid parent_tid exit_signal stack
    # stack_size tls; second version, of Linux 5.7: set_tid set_tid_size cgroup
    arguments = struct.pack("=8Q", flags, 0, 0, 0, exit_signal, 0, 0, 0)
    if cgroup is not None:
        arguments += struct.pack("=3Q", 0, 0, cgroup)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    size = ctypes.c_size_t(len(arguments))
    number = _long(_UNIFORM["clone3"])
    return _check(_forking_libc.syscall(number, buffer, size), "clone3")


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close, or mark close-on-exec, all descriptors in [first, last]; see close_range(2)."""
    _syscall("close_range", first, last, flags)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Make or drop the space of a part of a file; see fallocate(2)."""
    _check(_libc.fallocate(fd, mode, offset, length), "fallocate")


def fsconfig(
    fd: int, command: int, key: str | None, value: str | None = None, aux: int = 0
) -> None:
    """Configure a filesystem being made; see fsconfig(2)."""
    encoded_key = None if key is None else os.fsencode(key)
    encoded = None if value is None else os.fsencode(value)
    _syscall("fsconfig", fd, command, _str(encoded_key), _str(encoded), aux, path=key)


def fsmount(fd: int, flags: int, attributes: int) -> int:
    """Return a descriptor of a detached mount of the configured filesystem; see fsmount(2)."""
    return _syscall("fsmount", fd, flags, attributes)


def fsopen(filesystem: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """Open a filesystem to configure; see fsopen(2)."""
    return _syscall("fsopen", _str(os.fsencode(filesystem)), flags, path=filesystem)


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """Watch a path; see inotify_add_watch(2)."""
    return _check(_libc.inotify_add_watch(fd, os.fsencode(path), mask), "inotify_add_watch", path)


def inotify_init1(flags: int = IN_CLOEXEC) -> int:
    """Open an inotify instance; see inotify(7)."""
    return _check(_libc.inotify_init1(flags), "inotify_init1")


def mkdirat(fd: int, path: Path, mode: int) -> None:
    """Make a directory relative to a directory descriptor; see mkdirat(2)."""
    os.mkdir(path, mode, dir_fd=fd)


def mknodat(fd: int, path: Path, mode: int, device: int = 0) -> None:
    """Make a node relative to a directory descriptor; see mknodat(2)."""
    os.mknod(path, mode, device, dir_fd=fd)


def mount(
    source: Path | None,
    target: Path,
    filesystem: str | None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount by path; see mount(2)."""
    result = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if filesystem is None else os.fsencode(filesystem),
        flags,
        None if data is None else os.fsencode(data),
    )
    _check(result, "mount", target)


def mount_setattr(
    fd: int,
    path: Path,
    flags: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """Change the attributes of a mount, or with AT_RECURSIVE of its tree; see mount_setattr(2)."""
    packed = struct.pack("=4Q", attr_set, attr_clr, propagation, userns_fd)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    name = _str(os.fsencode(path))
    _syscall("mount_setattr", fd, name, flags, buffer, len(packed), path=path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach or move a mount; see move_mount(2)."""
    old, new = _str(os.fsencode(from_path)), _str(os.fsencode(to_path))
    _syscall("move_mount", from_fd, old, to_fd, new, flags, path=to_path or None)


def open_tree(fd: int, path: Path, flags: int) -> int:
    """Return a descriptor of a mount, with OPEN_TREE_CLONE of a detached copy; see open_tree(2)."""
    return _syscall("open_tree", fd, _str(os.fsencode(path)), flags, path=path)


def openat2(fd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open with rules for resolving the path; see openat2(2)."""
    packed = struct.pack("=3Q", flags, mode, resolve)
    how = ctypes.create_string_buffer(packed, len(packed))
    return _syscall("openat2", fd, _str(os.fsencode(path)), how, len(packed), path=path)


def pidfd_getfd(pidfd: int, target: int, flags: int = 0) -> int:
    """Duplicate another process's descriptor; see pidfd_getfd(2)."""
    return _syscall("pidfd_getfd", pidfd, target, flags)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """Change the root mount; see pivot_root(2)."""
    new, old = _str(os.fsencode(new_root)), _str(os.fsencode(put_old))
    _syscall("pivot_root", new, old, path=new_root)


def prctl(option: int, *arguments: int) -> int:
    """Operate on the calling process; see prctl(2)."""
    given = (*arguments, 0, 0, 0, 0)[:4]
    return _check(_libc.prctl(option, *given), f"prctl({option})")


def process_vm_readv(
    pid: int, into: memoryview, pieces: list[tuple[int, int]], flags: int = 0
) -> int:
    """Read pieces (address, length) of a process's memory in order; see process_vm_readv(2).

    At most IOV_MAX (1024) pieces; returns the bytes read, which may be fewer than asked.
    """
    buffer = (ctypes.c_char * len(into)).from_buffer(into)
    local = _IoVec(ctypes.addressof(buffer), len(into))
    remote = (_IoVec * len(pieces))(*(_IoVec(*piece) for piece in pieces))
    result = _libc.process_vm_readv(pid, ctypes.byref(local), 1, remote, len(pieces), flags)
    return _check(result, "process_vm_readv")


def seccomp(operation: int, flags: int, program: bytes) -> None:
    """Load a filter, an array of struct sock_filter as bytes; see seccomp(2)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    filters = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    _syscall("seccomp", operation, flags, ctypes.byref(filters))


def sethostname(name: str) -> None:
    """Set the hostname of the UTS namespace; see sethostname(2)."""
    encoded = os.fsencode(name)
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname", name)


def address_of(content: bytes | bytearray | memoryview) -> int:
    """Return where the bytes of an object lie, for a system call that takes an address.

    They stay there as long as the caller holds the object. C API: "Buffer Protocol".
    """
    view = (ctypes.c_void_p * 16)()  # a Py_buffer and some more; the address is its first field
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(content), view, 0)
    address = view[0] or 0
    ctypes.pythonapi.PyBuffer_Release(view)
    return address


def set_command_line(text: str) -> None:
    """Have proc(5) show this as the calling process's arguments, cut to the length they had.

    Of the environment that it was started with, which must not be used any more, it shows nothing.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - Path means another thing here
        fields = file.read().rpartition(b")")[2].split()
    start, end, first_variable, last_variable = map(int, fields[45:49])
    ctypes.memset(start, 0, end - start)
    ctypes.memset(first_variable, 0, last_variable - first_variable)
    ctypes.memmove(start, text.encode(), min(len(text.encode()), end - start - 1))


def set_name(name: str) -> None:
    """Have ps(1) and pkill(1) know the calling process by this name of at most 15 letters.

    It is that of its children too, until they run another program; see proc_pid_comm(5).
    """
    with open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(name)


def setns(fd: int, kinds: int) -> None:
    """Join a namespace, or those of a pidfd that ``kinds`` names; see setns(2)."""
    _check(_libc.setns(fd, kinds), "setns")


def attach_filter(fd: int, program: bytes) -> None:
    """Let a socket receive only what a classic BPF program accepts; see socket(7)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    filters = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    size = ctypes.sizeof(filters)
    _check(
        _libc.setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, ctypes.byref(filters), size),
        "setsockopt",
    )


def symlinkat(target: Path, fd: int, path: Path) -> None:
    """Make a symbolic link relative to a directory descriptor; see symlinkat(2)."""
    os.symlink(target, path, dir_fd=fd)


def syncfs(fd: int) -> None:
    """Write one filesystem's cache to its disk; see syncfs(2)."""
    _check(_libc.syncfs(fd), "syncfs")


def umount2(target: Path, flags: int = 0) -> None:
    """Unmount; see umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount2", target)


def unshare(flags: int) -> None:
    """Move the caller, or its next children, into new namespaces; see unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def userfaultfd(flags: int) -> int:
    """Return a descriptor that tells of page faults; see userfaultfd(2)."""
    return _syscall("userfaultfd", flags)
