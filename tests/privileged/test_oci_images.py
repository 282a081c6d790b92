"""Images that others made: OCI layouts and docker archives, honest ones and others."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pymigrate.runtime import rootfs, syscalls
from pymigrate.runtime.host import Host
from pymigrate.runtime.images import Store
from tests.fakes.oci import INDEX, MACHINE, Layout, docker_archive, named, tar
from tests.fakes.trees import archive
from tests.features import requires
from tests.privileged.tool import APPLETS, BUSYBOX, Tool

pytestmark = pytest.mark.privileged

FILE, LINK, SYMLINK, DIRECTORY = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


class Podman:
    """podman with images of its own; its directory has to have a short name."""

    def __init__(self, place: str) -> None:
        self._words = (
            "podman", f"--root={place}/root", f"--runroot={place}/run", f"--tmpdir={place}/tmp",
            "--storage-driver=vfs", "--events-backend=none",
        )  # fmt: skip

    def __call__(self, *words: str) -> str:
        return _run(*self._words, *words)


@pytest.fixture
def podman() -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="pm-") as place:
        yield Podman(place)


def base() -> bytes:
    """Return a layer with busybox and its names."""
    links = [(f"bin/{name}", SYMLINK, "busybox") for name in APPLETS.split()]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        info = tarfile.TarInfo("bin/busybox")
        content = Path(BUSYBOX).read_bytes()
        info.size, info.mode = len(content), 0o755
        made.addfile(info, io.BytesIO(content))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            made.addfile(info)
        info = tarfile.TarInfo("etc/passwd")
        text = b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:\n"
        info.size = len(text)
        made.addfile(info, io.BytesIO(text))
    return stream.getvalue()


def directory(name: str, mode: int = 0o755, uid: int = 0) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid = DIRECTORY, mode, uid, uid
        made.addfile(info)
    return stream.getvalue()


def imported(tool: Tool, source: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        tool("image", "import", "--json", str(source), *words).stdout
    )
    return found


def refused(tool: Tool, source: Path, *words: str, code: int = 15) -> str:
    """Import what must be refused, with nothing left of it."""
    said = tool("image", "import", str(source), *words, code=code).stderr
    assert json.loads(tool("image", "ls", "--json").stdout) == []
    assert list((tool.root / "images").glob("tmp/*")) == []
    return said


class View:
    """The layers of an image under overlayfs, as a container would see them."""

    def __init__(self, tool: Tool, name: str, place: Path) -> None:
        store = Store(Host.open(tool.root))
        self.layers = [store.layer_path(each) for each in store.get(name).layers]
        for each in ("upper", "work", "merged"):
            (place / each).mkdir(parents=True)
        self.root = place / "merged"
        self._place = place

    def __enter__(self) -> Path:
        rootfs.overlay(self.layers, self._place / "upper", self._place / "work", self.root)
        return self.root

    def __exit__(self, *_: object) -> None:
        syscalls.umount2(self.root)


def names(root: Path) -> list[str]:
    """List a tree, hidden and broken names too."""
    return sorted(
        str(Path(top, name).relative_to(root))
        for top, directories, files in os.walk(root)
        for name in (*directories, *files)
    )


# Layers


def test_what_a_layer_deletes_is_gone_in_the_image(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    lower = archive(
        ("kept", FILE, b"1"), ("gone", FILE, b"1"), ("replaced", FILE, b"1"),
        ("tree/a", FILE, b"1"), ("tree/deep/b", FILE, b"1"), ("emptied/old", FILE, b"1"),
        ("again/old", FILE, b"1"),
    )  # fmt: skip
    upper = archive(
        (".wh.gone", FILE, b""), (".wh.replaced", FILE, b""), ("replaced", FILE, b"2"),
        ("tree/.wh.deep", FILE, b""), ("emptied/new", FILE, b"2"),
        ("emptied/.wh..wh..opq", FILE, b""),
        ("again/new", FILE, b"2"), (".wh.again", FILE, b""), (".wh..wh.aufs", FILE, b""),
        ("only/.wh.here", FILE, b""), ("only/file", FILE, b"2"),
    )  # fmt: skip

    imported(tool, layout.index(layout.image([lower, upper])), "img")

    with View(tool, "img", tmp_path / "view") as root:
        assert names(root) == [
            "again", "again/new", "emptied", "emptied/new", "kept", "only", "only/file",
            "replaced", "tree", "tree/a",
        ]  # fmt: skip
        assert (root / "replaced").read_bytes() == b"2"


def test_a_layer_that_hides_the_whole_root_hides_it(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    lower = archive(("old/file", FILE, b"1"), ("both/old", FILE, b"1"))
    upper = archive((".wh..wh..opq", FILE, b""), ("both/new", FILE, b"2"))

    imported(tool, layout.index(layout.image([lower, upper])), "img")

    with View(tool, "img", tmp_path / "view") as root:
        assert names(root) == ["both", "both/new"]


def test_a_directory_that_a_layer_does_not_mention_stays_as_it_is_below(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    layers = [directory("secret", 0o2710, 33), archive(("secret/file", FILE, b""))]

    imported(tool, layout.index(layout.image(layers)), "img")

    with View(tool, "img", tmp_path / "view") as root:
        found = (root / "secret").stat()
        assert (0o42710, 33) == (found.st_mode, found.st_uid)


def test_layers_that_change_nothing_or_come_twice_can_be_used(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    empty = archive()
    twice = archive(("twice", FILE, b"1"))
    layers = [empty, twice, empty, archive((".wh.twice", FILE, b"")), twice, empty]

    imported(tool, layout.index(layout.image(layers)), "img")

    with View(tool, "img", tmp_path / "view") as root:
        assert names(root) == ["twice"]


def test_all_that_only_root_can_make_comes_out_of_a_layer(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("su")
        info.mode, info.uid, info.gid, info.mtime = 0o4755, 7, 8, 1_600_000_000
        info.pax_headers = {
            "SCHILY.xattr.user.note": "kept",
            "SCHILY.xattr.trusted.overlay.opaque": "y",
        }
        made.addfile(info)
        info = tarfile.TarInfo("same")
        info.type, info.linkname = LINK, "su"
        made.addfile(info)
        info = tarfile.TarInfo("null")
        info.type, info.devmajor, info.devminor, info.mode = tarfile.CHRTYPE, 1, 3, 0o666
        made.addfile(info)
        info = tarfile.TarInfo("pipe")
        info.type = tarfile.FIFOTYPE
        made.addfile(info)

    imported(tool, layout.index(layout.image([stream.getvalue()])), "img")

    with View(tool, "img", tmp_path / "view") as root:
        found = (root / "su").stat()
        assert (0o104755, 7, 8, 2) == (found.st_mode, found.st_uid, found.st_gid, found.st_nlink)
        assert 1_600_000_000 == found.st_mtime
        assert found.st_ino == (root / "same").stat().st_ino
        assert ["user.note"] == os.listxattr(root / "su")
        assert os.makedev(1, 3) == (root / "null").stat().st_rdev
        assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


# What an archive is, and which image of it


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
def test_a_layout_is_taken_as_directory_and_as_tar_with_any_compression(
    tool: Tool, layout: Layout, tmp_path: Path, form: str
) -> None:
    packs: dict[str, Callable[[bytes], bytes]] = {
        "plain": bytes,
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
    }
    pack = packs[form]
    suffix = {"plain": "", "gzip": "+gzip", "zstd": "+zstd"}[form]
    image = layout.image([archive(("file", FILE, b"x" * 100_000))], packed=pack, suffix=suffix)
    source = layout.index(named(image, "web:2"))
    (tmp_path / "layout.tar").write_bytes(pack(tar(source)))

    first = imported(tool, source)
    second = imported(tool, tmp_path / "layout.tar")

    assert "web:2" == first["reference"] == second["reference"]
    assert first["digest"] == second["digest"]


def test_of_many_machines_images_this_machines_is_taken(tool: Tool, layout: Layout) -> None:
    mine = layout.image([archive(("mine", FILE, b""))])
    other = layout.image([archive(("other", FILE, b""))], architecture="s390x")
    text = json.dumps({"schemaVersion": 2, "manifests": [other, mine]}).encode()

    found = imported(tool, layout.index(layout.blob(text, INDEX)), "img")

    (layer,) = found["layers"]
    assert ["mine"] == [each.name for each in (tool.root / "images/layers" / layer).iterdir()]


def test_an_image_for_another_machine_is_refused(tool: Tool, layout: Layout) -> None:
    source = layout.index(layout.image([archive(("file", FILE, b""))], architecture="s390x"))

    assert "s390x" in refused(tool, source, "img")


def test_of_several_images_one_must_be_named(tool: Tool, layout: Layout) -> None:
    one = named(layout.image([archive(("one", FILE, b""))]), "one:1")
    two = named(layout.image([archive(("two", FILE, b""))]), "two:1")
    source = layout.index(one, two)

    said = refused(tool, source)
    found = imported(tool, source, "--ref", "two:1")

    assert "one:1, two:1" in said
    assert "two:1" == found["reference"]


def test_a_docker_archive_is_imported_and_its_links_to_layers_are_followed(
    tool: Tool, tmp_path: Path
) -> None:
    layers = [archive(("file", FILE, b"1")), archive((".wh.file", FILE, b""), ("new", FILE, b"2"))]
    files = docker_archive(layers, {"Cmd": ["/new"]}, ["registry.example:5000/team/web:7"])
    place = tmp_path / "saved"
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    second = place / f"{1:064x}/layer.tar"
    second.rename(place / "elsewhere.tar")
    second.symlink_to("../elsewhere.tar")
    (tmp_path / "saved.tar").write_bytes(tar(place))

    found = imported(tool, tmp_path / "saved.tar")

    assert "registry.example:5000/team/web:7" == found["reference"]
    assert ["/new"] == found["config"]["cmd"]
    with View(tool, found["reference"], tmp_path / "view") as root:
        assert names(root) == ["new"]


# Archives made to do harm


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("/etc/shadow", FILE, b""), "absolute"),
        (("a/../../b", FILE, b""), "'..'"),
        (("link", LINK, "../../etc/passwd"), "'..'"),
        ((".wh...", FILE, b""), "without a name"),
        ((".wh.x/file", FILE, b""), "below a mark"),
    ],
)
def test_a_layer_that_leads_out_is_refused(
    tool: Tool, layout: Layout, member: tuple[str, bytes, bytes | str], reason: str
) -> None:
    assert reason in refused(tool, layout.index(layout.image([archive(member)])), "img")


def test_a_layer_that_writes_through_its_own_link_is_refused(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    layer = archive(("out", SYMLINK, str(tmp_path)), ("out/written", FILE, b"x"))

    assert "no directory" in refused(tool, layout.index(layout.image([layer])), "img")
    assert not (tmp_path / "written").exists()


def test_a_link_of_a_lower_layer_is_not_followed_by_a_higher_one(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    layers = [archive(("out", SYMLINK, str(tmp_path))), archive(("out/.wh.layout", FILE, b""))]

    imported(tool, layout.index(layout.image(layers)), "img")

    assert (tmp_path / "layout").exists()


@pytest.mark.parametrize("what", ["config", "layer", "manifest"])
def test_a_blob_that_was_altered_is_refused(tool: Tool, layout: Layout, what: str) -> None:
    image = layout.image([archive(("file", FILE, b""))])
    manifest = json.loads(layout.path(image).read_bytes())
    blob = {"config": manifest["config"], "layer": manifest["layers"][0], "manifest": image}[what]
    path = layout.path(blob)
    data = bytearray(path.read_bytes())
    # The last byte of gzip is of the length, which the digest covers and our tar does not need.
    data[-1] ^= 1 if what != "layer" else 0
    path.write_bytes(bytes(data) + (b"\0" if what == "layer" else b""))

    assert "digest" in refused(tool, layout.index(image), "img")


def test_a_layer_that_is_not_what_the_configuration_says_is_refused(
    tool: Tool, layout: Layout
) -> None:
    image = layout.image([archive(("file", FILE, b""))], diff_ids=[f"sha256:{0:064x}"])

    assert "digest" in refused(tool, layout.index(image), "img")


def test_blobs_outside_of_the_archive_are_not_read(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    image = layout.image([archive(("file", FILE, b""))])
    path = layout.path(json.loads(layout.path(image).read_bytes())["config"])
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")

    assert "leads out" in refused(tool, layout.index(image), "img")


def test_a_blob_that_is_a_pipe_does_not_hang(tool: Tool, layout: Layout) -> None:
    image = layout.image([archive(("file", FILE, b""))])
    layout.path(image).unlink()
    os.mkfifo(layout.path(image))

    assert "not a plain file" in refused(tool, layout.index(image), "img")


def test_a_document_that_never_ends_is_refused(tool: Tool, layout: Layout) -> None:
    layout.index(layout.image([archive(("file", FILE, b""))]))
    with (layout.directory / "index.json").open("r+b") as stream:
        stream.truncate(1 << 40)

    assert "too long" in refused(tool, layout.directory, "img")


def test_indexes_that_list_one_another_end(tool: Tool, layout: Layout) -> None:
    inner = layout.image([archive(("file", FILE, b""))])
    for _ in range(6):
        text = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
        inner = layout.blob(text, INDEX)

    assert "nested" in refused(tool, layout.index(inner), "img")


def test_a_layer_of_more_than_any_disk_is_refused_before_it_fills_this_one(
    tool: Tool, layout: Layout
) -> None:
    info = tarfile.TarInfo("bomb")
    info.size = 1 << 39
    layer = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)

    assert "more than" in refused(tool, layout.index(layout.image([layer])), "img")


# Running


def test_what_an_image_says_of_its_command_is_used(tool: Tool, layout: Layout) -> None:
    config = {
        "Env": ["COLOUR=blue", "PATH=/bin"],
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["echo $COLOUR; pwd; id -u; id -g"],
        "WorkingDir": "/etc",
        "User": "web",
    }
    imported(tool, layout.index(layout.image([base()], config)), "img")

    assert "blue\n/etc\n33\n33\n" == tool("run", "--net", "none", "--rm", "img").stdout
    said = tool(
        "run", "--net", "none", "--rm", "-e", "COLOUR=red", "-w", "/", "img", "echo $COLOUR"
    )
    assert "red\n" == said.stdout


def test_a_container_is_stopped_by_the_signal_that_its_image_names(
    tool: Tool, layout: Layout
) -> None:
    config = {
        "StopSignal": "SIGUSR1",
        "Cmd": ["/bin/sh", "-c", "trap 'exit 42' USR1; echo up; while :; do sleep 0.1; done"],
    }
    imported(tool, layout.index(layout.image([base()], config)), "img")
    running = subprocess.Popen(
        tool.argv("run", "--net", "none", "--name", "one", "img"), stdout=subprocess.PIPE
    )
    assert running.stdout is not None
    assert b"up\n" == running.stdout.readline()

    tool("stop", "-t", "30", "one")

    assert 42 == running.wait(30)
    running.stdout.close()


def test_a_volume_that_the_image_declares_is_there(tool: Tool, layout: Layout) -> None:
    source = layout.index(layout.image([base()], {"Volumes": {"/var/data": {}}}))
    imported(tool, source, "img")

    said = tool(
        "run", "--net", "none", "--rm", "img", "sh", "-c", "echo x >/var/data/f; ls /var/data"
    )

    assert "f\n" == said.stdout


# Out again


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_an_exported_image_comes_back_the_same(
    tool: Tool, layout: Layout, tmp_path: Path, form: str
) -> None:
    lower = archive(("kept", FILE, b"1"), ("gone", FILE, b"1"), ("emptied/old", FILE, b"1"))
    upper = archive(
        (".wh.gone", FILE, b""), ("emptied/new", FILE, b"2"), ("emptied/.wh..wh..opq", FILE, b"")
    )
    config = {"Env": ["A=b"], "Labels": {"z": "1", "a": "2"}, "ExposedPorts": {"80/tcp": {}}}
    before = imported(tool, layout.index(layout.image([lower, upper], config)), "web:1")

    tool("image", "export", "web:1", "--format", form, "-o", str(tmp_path / "out.tar"))
    tool("image", "export", "web:1", "--format", form, "-o", str(tmp_path / "twice.tar"))
    tool("image", "rm", "web:1")
    after = imported(tool, tmp_path / "out.tar")

    assert before == after
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "twice.tar").read_bytes()
    with tarfile.open(tmp_path / "out.tar") as made:
        assert all(0 == member.mtime == member.uid for member in made)


def test_a_layer_that_was_changed_is_not_exported(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    found = imported(tool, layout.index(layout.image([archive(("file", FILE, b"1"))])), "img")
    (tool.root / "images/layers" / found["layers"][0] / "file").write_bytes(b"2")

    tool("image", "export", "img", "-o", str(tmp_path / "out.tar"), code=44)

    assert ["layout", "root", "rootfs"] == sorted(each.name for each in tmp_path.iterdir())


@requires("skopeo")
def test_skopeo_reads_and_copies_what_is_exported(
    tool: Tool, layout: Layout, tmp_path: Path
) -> None:
    layers = [base(), archive(("bin/.wh.id", FILE, b""))]
    imported(tool, layout.index(layout.image(layers, {"Env": ["A=b"]})), "web:1")
    tool("image", "export", "web:1", "-o", str(tmp_path / "oci.tar"))
    tool("image", "export", "web:1", "--format", "docker", "-o", str(tmp_path / "docker.tar"))

    for kind in ("oci", "docker"):
        source = f"{kind}-archive:{tmp_path}/{kind}.tar"
        said = json.loads(_run("skopeo", "inspect", source))
        assert ["A=b"] == said["Env"]
        assert (MACHINE, 2) == (said["Architecture"], len(said["Layers"]))
        _run("skopeo", "--insecure-policy", "copy", source, f"oci:{tmp_path}/copied-{kind}:web")
        again = imported(tool, tmp_path / f"copied-{kind}", f"again-{kind}")
        assert json.loads(tool("image", "inspect", "web:1").stdout)["layers"] == again["layers"]


@requires("podman")
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_podman_loads_what_is_exported(
    tool: Tool, layout: Layout, tmp_path: Path, podman: Podman, form: str
) -> None:
    layers = [base(), archive(("bin/.wh.id", FILE, b""))]
    imported(tool, layout.index(layout.image(layers, {"Cmd": ["/bin/ls"]})), "web:1")
    tool("image", "export", "web:1", "--format", form, "-o", str(tmp_path / "out.tar"))
    said = podman("load", "-i", str(tmp_path / "out.tar"))
    listed = json.loads(podman("image", "inspect", "web:1"))

    assert "web:1" in said
    assert ["/bin/ls"] == listed[0]["Config"]["Cmd"]


def _run(*words: str) -> str:
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert 0 == found.returncode, found
    return found.stdout


# Away with it


def test_prune_removes_what_nothing_uses_and_spares_what_may_be_about_to_be_used(
    tool: Tool, layout: Layout
) -> None:
    source = layout.index(layout.image([base(), archive(("x", FILE, b""))]))
    imported(tool, source, "kept")
    store = Store(Host.open(tool.root))
    layer = store.add_layer(_tree)

    tool("image", "prune")
    assert store.layer_path(layer.digest).is_dir()
    found = json.loads(tool("image", "prune", "--older-than", "0s", "--json").stdout)

    assert {"images": [], "layers": [layer.digest]} == found
    assert "kept:latest" == json.loads(tool("image", "ls", "--json").stdout)[0]["reference"]


def test_prune_all_leaves_what_containers_are_made_of(tool: Tool, layout: Layout) -> None:
    used = named(layout.image([base()]), "used")
    unused = named(layout.image([archive(("x", FILE, b""))]), "unused")
    source = layout.index(used, unused)
    for name in ("used", "unused"):
        imported(tool, source, name, "--ref", name)
    tool("create", "--net", "none", "--name", "one", "used", "true")

    tool("image", "prune", "--all")

    assert ["used:latest"] == [
        each["reference"] for each in json.loads(tool("image", "ls", "--json").stdout)
    ]
    assert "" == tool("start", "one").stderr


def _tree(into: Path) -> Any:
    from pymigrate.runtime import tree

    (into / "file").write_text("x")
    return tree.digest(into, layer=True)
