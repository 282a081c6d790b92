"""What words in CRIU's log mean, and what to do: a table. `diagnosis.py` looks them up.

A row names the words in CRIU's source (4.2) that it recognises. Rows stand in order: what explains
more comes first.
"""

from __future__ import annotations

from pymigrate.runtime.values import dataclass


@dataclass(frozen=True)
class Cause:
    """A pattern of CRIU's words; ``{1}`` in cause and remedy stands for its first group."""

    name: str
    pattern: str
    cause: str
    remedy: str


CAUSES = (
    Cause(
        "disk-full",
        r"No space left on device",
        "a disk is full",
        "free some space below --root; for a container's own tmpfs, start it with a larger one",
    ),
    Cause(
        "io_uring",
        # From Linux 6.7 on the kernel does not pass such a descriptor on: EINVAL.
        r"Can't dump file (\d+) of that type.*io_uring|anon_inode:\[io_uring\]|"
        r"send_fds failed \(-22\)",
        "a program in the container uses io_uring, which CRIU cannot write down",
        "start the program without it (node: UV_USE_IO_URING=0; others have a setting), "
        "or forbid it by a seccomp profile",
    ),
    Cause(
        "descriptor",
        r"Can't dump file (\d+) of that type.*\((\S+) ([^)]*)\)",
        "a program in the container has a file open (descriptor {1}) that CRIU cannot write down: "
        "{3}",
        "have the program close it before the checkpoint; devices such as GPUs, /dev/kvm or "
        "/dev/fuse cannot travel",
    ),
    Cause(
        "not-descendant",
        r"Unseizable non-zombie (\d+) found",
        "process {1} sits in the container's cgroup but is no descendant of its init",
        "end exec sessions (pymigrate top shows them), then try again",
    ),
    Cause(
        "traced",
        r"Unable to seize task|Can't attach to|ptrace.*: Operation not permitted|PTRACE_SEIZE",
        "a process of the container is being traced already",
        "end the debugger or strace that holds it, then try again",
    ),
    Cause(
        "tcp-dump",
        r"Connected TCP socket, consider",
        "the container has an established TCP connection, and the dump was told not to keep any",
        "use --tcp established (the default)",
    ),
    Cause(
        "tcp-image",
        r"Connected TCP socket in image",
        "the checkpoint has established TCP connections, and the restore was told not to keep any",
        "restore with the --tcp option of the dump",
    ),
    Cause(
        "half-open",
        r"inet: .*Connected TCP|In-flight connection|acceptq|Skip .*in-flight|in-flight connection",
        "a TCP connection was being made at that very moment",
        "try again, or use --tcp skip, which drops such connections",
    ),
    Cause(
        "address-in-use",
        r"Address already in use",
        "an address or port of the checkpoint is in use in this network namespace",
        "restore into a network of its own (not --net host), or end what uses the port",
    ),
    Cause(
        "address-missing",
        r"Can't bind inet socket|Can't connect inet socket back|"
        r"Can't set (?:initial )?TCP|Can't assign requested|Cannot assign requested address",
        "a socket of the checkpoint has an address that this container does not have",
        "restore with the address of the dump (--ip), or dump with --tcp close",
    ),
    Cause(
        "tcp-repair",
        r"libnet_init|tcp_repair|TCP_REPAIR|TCP repair mode|libsoccr_save",
        "the kernel did not let CRIU take over a TCP connection",
        "pymigrate check says whether the kernel can; dump with --tcp close to go without",
    ),
    Cause(
        "unix-outside",
        r"Can't dump half of stream unix connection|Unix socket \d+ without peer|"
        r"Dangling connection \d+|"
        r"External socket is used|External socket found in image|name-less external socket",
        "a unix socket of the container is connected to a process outside of it",
        "close that connection; a socket of the host in a volume (docker.sock, /dev/log) cannot "
        "travel",
    ),
    Cause(
        "namespace",
        r"Can't dump nested (\w+) namespace|[Nn]ested (?:mount|pid|time|\w+) namespaces? "
        r"(?:are|is) not supported",
        "a program in the container has made namespaces of its own",
        "CRIU writes down one level of them: stop systemd services with sandboxing, containers or "
        "browsers inside the container first",
    ),
    Cause(
        "time-namespace",
        r"BUG at criu/namespaces\.c",
        "a program in the container has made a time namespace of its own",
        "stop it before the checkpoint: criu takes one time namespace for all processes",
    ),
    Cause(
        "secret-memory",
        r"\(/secretmem",
        "a program in the container has secret memory (memfd_secret), which nobody else can read",
        "have the program do without; for OpenSSL and GnuPG this is a setting",
    ),
    Cause(
        "huge-pages",
        r"path=/(?:anon_hugepage|memfd:\S*)",
        "a program in the container uses huge pages, and this host has none free by which criu "
        "could know them",
        "raise vm.nr_hugepages by one here; the target needs as many as the program uses",
    ),
    Cause(
        "shared-memory",
        r"Task (\d+) with SysVIPC shmem map \S+ doesn't live in IPC ns",
        "process {1} uses System V shared memory of the host",
        "run the container without --share ipc",
    ),
    Cause(
        "inotify",
        r"fsnotify:\s+Can't dump that handle|Can't find suitable path for handle",
        "a program watches (inotify) a file of the image or of /proc, whose path criu cannot find",
        "let it watch a volume, a tmpfs, or something below /etc, /var/log or /var/spool; or poll",
    ),
    Cause(
        "packet-pipe",
        r"packetized mode for pipes",
        "a program in the container has a pipe that keeps packets apart (O_DIRECT)",
        "have the program open it without O_DIRECT",
    ),
    Cause(
        "corked",
        r"Can't dump corked dgram socket (\S+)",
        "UDP socket {1} holds a datagram that is not finished (UDP_CORK)",
        "try again: it is a matter of moments",
    ),
    Cause(
        "mptcp",
        r"Unsupported proto 262 for socket (\S+)",
        "socket {1} is one of Multipath TCP, which criu cannot write down",
        "start the program without it (Go: GODEBUG=multipathtcp=0)",
    ),
    Cause(
        "socket",
        r"Unsupported proto (\d+) for socket (\S+)|Unknown socket collected \(family (\d+)\)|"
        r"Sockets \(family (\d+) proto \d+\) are not collected",
        "a program in the container has a socket of a kind that criu cannot write down "
        "(protocol or family {1}{3}{4})",
        "have the program close it",
    ),
    Cause(
        "ping",
        r"Can't create inet socket: Permission denied",
        "a program of the checkpoint has an ICMP socket without CAP_NET_RAW, which "
        "net.ipv4.ping_group_range here forbids",
        "ping by a raw socket, which wants CAP_NET_RAW",
    ),
    Cause(
        "netlink",
        r"The socket has data to read|netlink socket \S+ (?:has more than 32|is bound to groups)",
        "a program in the container has a netlink socket with messages it has not read, or groups "
        "that criu cannot write down",
        "try again; a program that never reads must close it",
    ),
    Cause(
        "unix-pending",
        r"Non-empty write queue on an in-flight socket|closed in-flight socket",
        "a connection to a unix socket was made and sent data before it was accepted",
        "try again: it is a matter of moments",
    ),
    Cause(
        "tun",
        r"No tun device for file (\S+)",
        "a program of the checkpoint drives the interface {1}, which criu does not make in a "
        "network that is there already",
        "have the program close its TUN or TAP interface before the checkpoint",
    ),
    Cause(
        "epoll",
        r"Dump eventpoll \(pid: (\d+)\) failed",
        "process {1} waits (epoll) for a file that it has closed and a child has kept",
        "have the program close what it passes on in the child",
    ),
    Cause(
        "zombie-threads",
        r"Zombies with threads are not supported|Zombie thread not supported",
        "a process of the container is ending at this very moment",
        "try again",
    ),
    Cause(
        "mount-kind",
        r"FS mnt \./?(\S*) dev \S+ root \S+ unsupported",
        "/{1} is a mount of a kind that criu cannot make again",
        "unmount it, or mount it on the host and give it as a volume (-v)",
    ),
    Cause(
        "mount-again",
        r"Unable to mount (\S+) (\S+) \(id=\d+\)",
        "a mount that was made inside the container ({1}) could not be made again",
        "unmount overlays inside the container before the checkpoint, or give them as volumes",
    ),
    Cause(
        "cgroup",
        r"(?:Can't mount controller|Unable to mount cgroup|cg: .*[Cc]an't (?:open|mount|create)).*",
        "the cgroups of the dump cannot be made here",
        "use a host with the same cgroup version and controllers: pymigrate check shows them",
    ),
    Cause(
        "interface",
        r"IP tool failed on (\S+) (\S+)|Can't restore link|net: .*[Cc]an't (?:add|create) \S*link",
        "an interface or a route of the checkpoint could not be made here",
        "remove routes that were added inside the container, and dump again",
    ),
    Cause(
        "outside-file",
        r"Can't lookup mount=\d+ for fd=(\d+) path=(\S+)",
        "descriptor {1} ({2}) lies on a mount that is not in the container's tree",
        "have the program close it: it is a file of the host, of a message queue, or of what was "
        "unmounted",
    ),
    Cause(
        "hidden-file",
        r"Open files on overmounted mounts",
        "a program holds a file below a mount that hides it",
        "unmount what was mounted over it, or restart the program",
    ),
    Cause(
        "mount",
        r"doesn't have a proper root mount|(?:isn't|is not) (?:reachable|accessible).*mount|"
        r"autodetected external mount|Mount \d+:(\S+) .*external",
        "a mount of the container comes from outside and was not announced to CRIU",
        "give the container that directory as a volume (-v) instead of mounting it later",
    ),
    Cause(
        "fuse",
        r"(\S+) is a fuse mount but not external|Unsupported.*fuse",
        "there is a FUSE file system in the container",
        "unmount it before the checkpoint, or mount it on the host and give it as a volume",
    ),
    Cause(
        "volume-missing",
        r"No mapping for \S+ mountpoint|Unable to find .*mount.*ext",
        "a volume of the checkpoint is not there for the restored container",
        "give it the same volumes (-v) as at the dump",
    ),
    Cause(
        "covered-file",
        r"Can't link remap to (\S+): Invalid cross-device link",
        "{1} is open and a mount hides it",
        "unmount what was mounted over it, or restart the program",
    ),
    Cause(
        "read-only",
        r"Can't link remap to (\S+): Read-only file system",
        "{1} is open, deleted and has other names, and lies on a read-only mount",
        "have the program close it, or mount the volume without ro",
    ),
    Cause(
        "deleted-file",
        r"Can't dump ghost file (\S+) of (\d+) size",
        "the container holds a deleted file of {2} bytes open ({1}), more than goes into a "
        "checkpoint",
        "have the program close it: it is often a log that was rotated away",
    ),
    Cause(
        "link-remap",
        r"Can't create link remap|[Ll]ink.?remap|unlinked file .* not supported",
        "the container holds a deleted file open that has other names, and no name could be made",
        "have the program close it; or run the container without --read-only",
    ),
    Cause(
        "file-size",
        r"File (\S+) has bad size (\d+) \(expect (\d+)\)",
        "{1} has {2} bytes here and had {3} at the dump",
        "a restored container needs the same files: use the same image, and the volumes as they "
        "were",
    ),
    Cause(
        "file-mode",
        r"File (\S+) has bad (?:mode|build-ID)",
        "{1} is not the file that was open at the dump",
        "a restored container needs the same files: use the same image and volumes",
    ),
    Cause(
        "file-missing",
        r"Can't open file (\S+)(?: on restore)?: No such file",
        "{1} was open at the dump and does not exist here",
        "a restored container needs the same files: use the same image and volumes",
    ),
    Cause(
        "lock",
        r"Some file locks are hold|Unresolved lock|Dump file lock failed",
        "a file lock of the container belongs to, or is waited for by, a process outside of it",
        "the lock is on a volume that the host uses too: end the process outside",
    ),
    Cause(
        "criu-sockets",
        r"Can't get 1:(?:16|34) opt",
        "this CRIU is too old for the running kernel: it asks sockets what they no longer answer",
        "CRIU 4.2 or newer is needed from Linux 6.16 on: run the set-up again, or name a newer one "
        "in PYMIGRATE_CRIU",
    ),
    Cause(
        "criu-vdso",
        r"Unexpected rt vDSO area|Can't find rt vDSO|Can't find vDSO",
        "this CRIU is too old for the running kernel",
        "CRIU 4.1 or newer is needed from Linux 6.13 on: run the set-up again, or name a newer one "
        "in PYMIGRATE_CRIU",
    ),
    Cause(
        "criu-older",
        r"vdso: ELF header magic mismatch",
        "this CRIU cannot take the vDSO of the kernel on which the checkpoint was made: it is too "
        "old for that",
        "restore with a CRIU at least as new as the one of the dump; PYMIGRATE_CRIU names one",
    ),
    Cause(
        "rseq",
        r"lacks get_rseq_conf|rseq",
        "CRIU could not handle restartable sequences, which the C library uses",
        "CRIU 3.17 and Linux 5.13 or newer are needed; or run the program with "
        "GLIBC_TUNABLES=glibc.pthread.rseq=0",
    ),
    Cause(
        "cpu",
        r"CPU instruction capabilities do not match|xsave|xfeatures|cpu_validate|"
        r"CPU Feature .* not supported",
        "the processor here lacks features that the dumped programs may use",
        "restore on a host with the same kind of processor",
    ),
    Cause(
        "pid",
        r"Pid (\d+) do not match expected (\d+)|Can't set last_pid|"
        r"Can't fork for (\d+): File exists",
        "a PID of the checkpoint is in use here",
        "restore with a PID namespace of its own (the default); with --share pid it needs luck",
    ),
    Cause(
        "pids-limit",
        r"Can't fork for \d+: Resource temporarily unavailable|fork.*: Resource temporarily",
        "the limit of processes is lower here than what the checkpoint has",
        "raise --pids-limit",
    ),
    Cause(
        "memory",
        r"Cannot allocate memory|Out of memory",
        "there was not enough memory",
        "free some memory on the host, or raise the container's --memory",
    ),
    Cause(
        "freeze",
        r"Unable to freeze cgroup|Timeout reached|Unable to connect.*frozen",
        "the container could not be stopped in time",
        "a process waits in the kernel, often for a disk or a network file system: see "
        "pymigrate top",
    ),
    Cause(
        "lsm",
        r"can't write lsm profile|selinux|apparmor|lsm types",
        "the host's security module (AppArmor or SELinux) stands in the way",
        "hosts must have the same module and profile as at the dump",
    ),
    Cause(
        "limits",
        r"Can't get rlimit \d+: Operation not permitted",
        "the limits of another user's process could not be read, as root here lacks "
        "CAP_SYS_RESOURCE",
        "apt-get install tcc and run the set-up again, or give root CAP_SYS_RESOURCE",
    ),
    Cause(
        "seccomp-nested",
        r"suspending seccomp failed",
        "CRIU runs under a seccomp filter itself, and the container has one too",
        "give root CAP_SYS_RESOURCE, or run the container with --security-opt seccomp=unconfined",
    ),
    Cause(
        "seccomp",
        r"SECCOMP|seccomp",
        "a seccomp filter could not be read or put back",
        "the kernel needs CONFIG_CHECKPOINT_RESTORE and CONFIG_SECCOMP_FILTER; pymigrate check "
        "tells",
    ),
    Cause(
        "image-damaged",
        r"Magic doesn't match|Unknown image format|Corrupted|Unable to read (?:protobuf|.*image)",
        "the checkpoint is damaged or was made by a CRIU that is newer than the one here",
        "use a CRIU at least as new as the one of the dump: pymigrate archive inspect shows it",
    ),
    Cause(
        "image-missing",
        r"Can't open (?:dir|image).*|pstree\.img|inventory\.img",
        "files of the checkpoint are missing",
        "the checkpoint is not complete: make it again",
    ),
    Cause(
        "terminal",
        r"Found slave peer index|dangling tty|session leader .* outside|"
        r"is not a session leader",
        "a program of the container uses a terminal that does not belong to the container",
        "run the container with -t instead of handing it a terminal of the host",
    ),
    Cause(
        "network-lock",
        r"Could not process rule|nftables|iptables|Can't lock network|Failed to lock TCP",
        "the network of the container could not be locked",
        "the kernel needs nf_tables: modprobe nf_tables; pymigrate check tells",
    ),
    Cause(
        "userfaultfd",
        r"userfaultfd|uffd|lazy-pages",
        "the kernel's userfaultfd cannot be used",
        "restore with --eager; pymigrate check says what is missing",
    ),
    Cause(
        "pipe-size",
        r"splice: Bad file descriptor|F_SETPIPE_SZ",
        "the kernel lets pipes hold too little",
        "sysctl fs.pipe-max-size=4194304",
    ),
    Cause(
        "parasite",
        r"(?:Can't infect|parasite|compel)",
        "a process of the container could not be made to write itself down",
        "a seccomp profile or a security module of the host may forbid it; run again with --debug "
        "and look into the log",
    ),
    Cause(
        "unsupported",
        r"Unsupported|not supported",
        "the container uses something that CRIU cannot write down",
        "have the program let go of it before the checkpoint",
    ),
)
