"""CRIU's logs, explained. Each line is one that CRIU 4.2 writes (its source file is in it)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.checkpoint import causes, diagnosis
from pymigrate.checkpoint.diagnosis import explain

BEGIN = (
    "(00.002386) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: "
    "Operation not permitted\n"
    "(00.004416) Warn  (criu/cr-restore.c:1050): Set CLONE_PARENT | CLONE_NEWPID\n"
    "Error: Could not process rule: No such file or directory\n"
)
END = "(00.100000) Error (criu/cr-dump.c:1975): Dumping FAILED.\n"

KNOWN = [
    ("(criu/files-ext.c:98): Can't dump file 7 of that type [0] "
     "(unknown anon_inode:[io_uring])", "io_uring", "UV_USE_IO_URING"),
    ("(criu/files-ext.c:98): Can't dump file 9 of that type [20666] (chr /dev/nvidia0)",
     "/dev/nvidia0", "close it"),
    ("(compel/src/lib/infect.c:262): Unseizable non-zombie 29653 found, state S, err -1/10",
     "process 29653", "exec sessions"),
    ("(criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.",
     "established TCP", "--tcp established"),
    ("(criu/sk-inet.c:1059): inet: Can't bind inet socket (id 34): Cannot assign requested "
     "address", "address", "--ip"),
    ("(criu/sk-inet.c:912): inet: Connected TCP socket in image", "established", "--tcp"),
    ("(criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.",
     "outside", "docker.sock"),
    ("(criu/namespaces.c:460): Can't dump nested uts namespace for 77", "namespaces of its own",
     "systemd"),
    ("(criu/mount.c:4048): mnt: Nested mount namespaces are not supported without namespace",
     "namespaces of its own", "systemd"),
    ("(criu/files-reg.c:1790): Can't lookup mount=23 for fd=1 path=/var/log/x", "/var/log/x",
     "message queue"),
    ("(criu/files-reg.c:1031): Can't dump ghost file /tmp/big of 2147483648 size, increase limit",
     "2147483648", "rotated"),
    ("(criu/files-reg.c:2175): File usr/lib/x.so has bad size 12 (expect 13)",
     "has 12 bytes here", "same image"),
    ("(criu/files-reg.c:2294): File var/x has bad mode 0100600 (expect 0100644)",
     "not the file", "same image"),
    ("(criu/files-reg.c:2353): Can't open file root/gone on restore: No such file or directory",
     "root/gone", "same files"),
    ("(criu/file-lock.c:110): Some file locks are hold by dumping tasks! You can try --file-locks",
     "file lock", "outside"),
    ("(criu/vdso.c:401): vdso: Unexpected rt vDSO area bounds", "too old", "4.1"),
    ("(criu/sockets.c:451): sockets: Can't get 1:16 opt: Operation not supported", "too old",
     "4.2"),
    ("(criu/cr-dump.c:227): 12 has rseq but kernel lacks get_rseq_conf feature", "restartable",
     "5.13"),
    ("(criu/arch/x86/cpu.c:223): cpu: CPU instruction capabilities do not match run time",
     "processor", "same kind"),
    ("(criu/cr-restore.c:1539): Pid 30 do not match expected 12", "PID", "PID namespace"),
    ("(criu/cr-restore.c:1230): Can't fork for 44: Resource temporarily unavailable",
     "limit of processes", "--pids-limit"),
    ("(criu/seize.c:635): Unable to freeze cgroup /sys/fs/cgroup/x (100 x 100ms attempts, "
     "timeout: 10s)", "could not be stopped", "pymigrate top"),
    ("(criu/pie/restorer.c:196): can't write lsm profile -2", "AppArmor", "same module"),
    ("(compel/src/lib/ptrace.c:27): suspending seccomp failed: Operation not permitted",
     "seccomp filter itself", "CAP_SYS_RESOURCE"),
    ("(criu/cr-dump.c:388): Can't get rlimit 0: Operation not permitted", "limits",
     "CAP_SYS_RESOURCE"),
    ("(criu/image.c:563): Magic doesn't match for pstree.img", "damaged", "as new as"),
    ("(criu/tty.c:410): tty: Found slave peer index 3 without correspond master peer",
     "terminal", "-t"),
    ("(criu/net.c:3311): Can't lock network", "network", "nf_tables"),
    ("(criu/uffd.c:314): uffd: Unable to open an userfaultfd descriptor: No such", "userfaultfd",
     "--eager"),
    ("(criu/page-pipe.c:44): page-pipe: splice: Bad file descriptor", "pipes", "fs.pipe-max-size"),
    ("(criu/image-desc.c:9): Can't write to image: No space left on device", "disk is full",
     "free some space"),
    ("(criu/filesystems.c:552): mnt: ./data is a fuse mount but not external", "FUSE", "volume"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "cause", "remedy"), KNOWN)
def test_cause_and_remedy(line: str, cause: str, remedy: str) -> None:
    found = explain(f"{BEGIN}(00.050000) Error {line}\n{END}")
    assert cause in found.cause
    assert remedy in found.remedy
    assert found.line == line.split("): ", 1)[1]


def test_lines_of_restored_tasks_are_read() -> None:
    found = explain(
        "(00.01)     12: Error (criu/files-reg.c:2175): File a has bad size 1 (expect 2)"
    )
    assert "a has 1 bytes here and had 2" in found.cause
    pie = explain("(00.02) pie: 1: Error (criu/pie/restorer.c:196): can't write lsm profile -13")
    assert "AppArmor" in pie.cause


# Linux 7.3 with CRIU 4.2.1 to Linux 6.1 with CRIU 3.17.1 and no TUN, the log of the restore.
OLDER = """\
Error (criu/util.c:642): exited, status=1
Error (criu/util.c:642): exited, status=1
Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory
Warn  (criu/cr-restore.c:1297): Set CLONE_PARENT | CLONE_NEWPID but it might cause restore \
problem,because not all kernels support such clone flags combinations!
pie: 1439: Error (criu/pie/util-vdso.c:92): vdso: ELF header magic mismatch
Error (criu/cr-restore.c:2537): Restoring FAILED.
"""


def test_an_older_criu_is_blamed_for_a_vdso_it_does_not_know_and_not_the_lack_of_tun() -> None:
    found = explain(OLDER)

    assert "vdso: ELF header magic mismatch" == found.line
    assert "cannot take the vDSO" in found.cause
    assert "at least as new" in found.remedy
    assert "tun" not in explain(OLDER.replace("vdso: ELF", "x")).line


def test_an_unknown_line_is_shown_as_it_is() -> None:
    found = explain(f"{BEGIN}(00.05) Error (criu/x.c:1): Something new\n{END}")
    assert ("Something new", "", "") == (found.line, found.cause, found.remedy)
    assert "web: no: Something new" == found.sentence("web: no")


def test_a_later_known_line_explains_an_unknown_one() -> None:
    found = explain("Error (a.c:1): Odd\nError (b.c:2): Magic doesn't match for x\n")
    assert "damaged" in found.cause


def test_harmless_lines_alone_are_no_diagnosis() -> None:
    assert "it failed" == explain(BEGIN).sentence("it failed")


LOGS = sorted((Path(__file__).parent / "criu_logs").glob("*.log"))


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_the_log_of_a_row_is_explained_by_it(log: Path) -> None:
    """The first word of a file's name is its row."""
    found = diagnosis.explain_file(log)
    assert log.name.partition(".")[0] == found.name
    assert found.cause
    assert found.remedy
    assert "{" not in found.cause + found.remedy


def test_every_row_has_a_log_and_a_name_of_its_own() -> None:
    names = [row.name for row in causes.CAUSES]
    assert sorted(set(names)) == sorted(names)
    assert set(names) == {log.name.partition(".")[0] for log in LOGS}


def test_what_failed_is_told_with_process_descriptor_and_path() -> None:
    def cause(line: str) -> str:
        return explain(f"Error (x.c:1): {line}\n").cause

    assert "process 2151" in cause("Task 2151 with SysVIPC shmem map @7f doesn't live in IPC ns")
    lost = cause("Can't lookup mount=111 for fd=3 path=/q")
    assert "descriptor 3 (/q)" in lost
    device = cause("Can't dump file 9 of that type [20600] (chr 10:232)")
    assert "descriptor 9" in device
    assert "10:232" in device
    assert "/t is" in cause("mnt: FS mnt ./t dev 0x2f root / unsupported id 90")


def test_a_port_in_use_is_not_taken_for_an_address_that_is_missing() -> None:
    found = explain("Error (x.c:1): inet: Can't bind inet socket (id 7): Address already in use\n")
    assert "address-in-use" == found.name


def test_every_row_has_all_three_parts() -> None:
    for row in causes.CAUSES:
        assert row.pattern
        assert row.cause
        assert row.remedy


def test_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("x" * (diagnosis.MAX_LOG + 100) + "\nError (a.c:1): Magic doesn't match for x\n")
    assert "damaged" in diagnosis.explain_file(log).cause
    assert "" == diagnosis.explain_file(tmp_path / "none").line
