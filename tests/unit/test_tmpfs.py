"""Which tmpfs are carried, by what the kernel says of mounts; and what a manifest may say."""

from __future__ import annotations

import pytest

from pymigrate.checkpoint.tmpfs import MOST, Tmpfs, find

ROOT = "400 300 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w"
DEV = "414 400 0:95 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755,inode64"
SHM = "419 414 0:97 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=64000k,inode64"
NULL = "432 401 0:95 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755,inode64"
MASKS = (
    "411 401 0:94 / /proc/acpi ro,nosuid,nodev,noexec - tmpfs masked rw,nr_inodes=1,mode=755",
    "427 402 0:94 / /sys/firmware ro,nosuid,nodev,noexec - tmpfs masked rw,nr_inodes=1,mode=755",
)


def places(*lines: str, left_out: tuple[str, ...] = ()) -> list[str]:
    return [each.tmpfs.place for each in find("\n".join((ROOT, *lines)) + "\n", left_out)]


def test_each_file_system_is_carried_once_by_a_place_where_all_of_it_is_mounted() -> None:
    found = find("\n".join((NULL, ROOT, DEV, SHM, *MASKS)))

    assert [
        (414, Tmpfs("/dev", "tmpfs", ("size=65536k", "mode=755"))),
        (419, Tmpfs("/dev/shm", "shm", ("size=64000k",))),
        (411, Tmpfs("/proc/acpi", "masked", ("nr_inodes=1", "mode=755"))),
    ] == [(each.mount, each.tmpfs) for each in found]


def test_what_is_of_the_host_is_left_to_criu_wherever_else_it_is_mounted() -> None:
    again = SHM.replace("419", "420").replace("/dev/shm", "/mnt")

    assert ["/dev"] == places(DEV, SHM, again, left_out=("/mnt",))


@pytest.mark.parametrize(
    "line",
    [
        DEV.replace(" - ", " shared:7 - "),
        DEV.replace(" - ", " master:7 - "),
        DEV.replace("inode64", "usrquota"),
        DEV.replace(" rw,size", " ro,size"),
        DEV.replace("0:95 /", "0:95 /part"),
        DEV.replace("tmpfs tmpfs", "ramfs tmpfs"),
        DEV.replace("/dev", "/with\\040blank"),
        DEV.replace("/dev", "/a]b"),
        DEV.replace("tmpfs tmpfs", "tmpfs a\\040b"),
    ],
)
def test_what_could_not_be_made_the_same_is_left_to_criu(line: str) -> None:
    assert [] == places(line)


def test_what_lies_below_another_mount_at_its_place_is_left_to_criu() -> None:
    over = "500 414 0:99 / /dev rw - tmpfs over rw"

    assert [] == places(DEV, over)


def test_there_is_an_end_to_how_many_are_carried() -> None:
    many = [f"{500 + n} 400 0:{200 + n} / /m/{n} rw - tmpfs t rw" for n in range(MOST + 5)]

    assert MOST == len(places(*many))


def test_it_comes_back_from_json() -> None:
    tmpfs = Tmpfs("/dev", "tmpfs", ("size=65536k", "mode=755"))

    assert tmpfs == Tmpfs.from_document(tmpfs.to_document())


@pytest.mark.parametrize(
    "change",
    [
        {"place": "dev"},
        {"place": "/"},
        {"place": "/dev/../etc"},
        {"place": "/a]:/b"},
        {"place": 7},
        {"source": ""},
        {"source": "a b"},
        {"options": "size=1k"},
        {"options": ["size=1k,mode=777"]},
        {"options": ["source=/etc"]},
        {"options": [1]},
    ],
)
def test_what_no_kernel_says_is_refused(change: dict[str, object]) -> None:
    document = {"place": "/dev", "source": "tmpfs", "options": ["size=65536k"], **change}

    with pytest.raises(ValueError, match="tmpfs"):
        Tmpfs.from_document(document)
