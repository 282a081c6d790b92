"""The image store: names, layers, what is refused, and what is left behind: nothing."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import image_record
from pymigrate.runtime.errors import (
    BadArchive,
    Corrupted,
    HostError,
    ImageError,
    NotFound,
    PymigrateError,
    UsageError,
    WrongState,
)
from pymigrate.runtime.host import Host
from pymigrate.runtime.image_record import ImageConfig
from pymigrate.runtime.images import Store
from tests.fakes.trees import archive, look

FILE, DIRECTORY = tarfile.REGTYPE, tarfile.DIRTYPE
ROOTFS = archive(("./", DIRECTORY, ""), ("./bin/", DIRECTORY, ""), ("./bin/sh", FILE, b"#!"))


def make_store(root: Path) -> Store:
    for name in ("images", "containers"):
        (root / name).mkdir(parents=True)
    return Store(Host(root, "0123456789ab"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Store:
    return make_store(root)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    directory = tmp_path / "rootfs"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "sh").write_bytes(b"#!")
    return directory


def layers(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "images" / "layers").iterdir())


def leavings(root: Path) -> list[str]:
    """Return what is in the store's place for unfinished work."""
    return [path.name for path in (root / "images" / "tmp").iterdir()]


def test_a_directory_becomes_an_image(store: Store, rootfs: Path, root: Path) -> None:
    image = store.import_directory(rootfs, "web")
    assert image.reference == "web:latest"
    assert look(store.layer_path(image.layers[0])) == look(rootfs)
    assert store.get("web") == store.get("web:latest") == store.get(image.digest[:12]) == image
    assert store.ls() == (image,)
    assert store.missing((*image.layers, "0" * 64)) == ("0" * 64,)
    assert leavings(root) == []


def test_a_tar_of_the_same_tree_is_the_same_image(
    store: Store, rootfs: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "rootfs.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for path in (rootfs, *sorted(rootfs.rglob("*"))):
            info = tar.gettarinfo(path, f"./{path.relative_to(rootfs)}")
            status = path.stat()
            whole, part = divmod(status.st_mtime_ns, 10**9)
            info.pax_headers = {"mtime": f"{whole}.{part:09}"}
            tar.addfile(info, io.BytesIO(path.read_bytes()) if path.is_file() else None)
    packed = store.import_tar(tmp_path / "rootfs.tar.gz", "packed")
    assert packed.digest == store.import_directory(rootfs, "plain").digest


def test_a_name_moves_and_what_it_leaves_is_removed(store: Store, rootfs: Path, root: Path) -> None:
    old = store.import_directory(rootfs, "web")
    (rootfs / "new").write_text("new")
    new = store.import_directory(rootfs, "web")
    assert store.ls() == (new,)
    assert layers(root) == list(new.layers)
    assert old.layers != new.layers


def use(root: Path, name: str, *used: str) -> None:
    (root / "containers" / name).mkdir()
    (root / "containers" / name / "container.json").write_text(json.dumps({"layers": used}))


def test_a_replaced_image_in_use_stays_without_a_name(
    store: Store, rootfs: Path, root: Path
) -> None:
    old = store.import_directory(rootfs, "web")
    use(root, "one", *old.layers)
    (rootfs / "new").write_text("new")
    new = store.import_directory(rootfs, "web")
    assert [image.reference for image in store.ls()] == ["web:latest", None]
    assert store.get(old.digest).layers == old.layers
    assert layers(root) == sorted((*old.layers, *new.layers))


def test_an_image_in_use_is_not_removed(store: Store, rootfs: Path, root: Path) -> None:
    image = store.import_directory(rootfs, "web")
    use(root, "one", *image.layers)
    with pytest.raises(WrongState, match="in use by one; it is still here"):
        store.remove("web")
    assert store.get("web") == image
    store.import_directory(rootfs, "alias")
    store.remove("web")  # only a name: the image stays as alias
    with pytest.raises(WrongState):
        store.remove("alias")
    (root / "containers" / "one" / "container.json").unlink()
    store.remove("alias")
    assert store.ls() == ()
    assert layers(root) == []
    assert leavings(root) == []


def test_with_a_damaged_record_nothing_is_removed(store: Store, rootfs: Path, root: Path) -> None:
    store.import_directory(rootfs, "web")
    use(root, "one")
    (root / "containers" / "one" / "container.json").write_text("{")
    with pytest.raises(HostError, match="in use is not known"):
        store.remove("web")
    assert len(layers(root)) == 1


BAD = {
    "no tar": (b"\x7fELF" * 1000, "no tar archive"),
    "cut": (ROOTFS[:2000], "cut"),
    "hostile": (archive(("../../evil", FILE, b"x")), r"\.\."),
    "empty": (archive(), "is empty"),
    "docker save": (
        archive(("manifest.json", FILE, b"[]"), ("0123", DIRECTORY, "")),
        "archive of image layers",
    ),
    "cut gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "cut"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_leaves_nothing(
    case: str, store: Store, root: Path, tmp_path: Path
) -> None:
    data, reason = BAD[case]
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        store.import_tar(tmp_path / "file", "x")
    assert "nothing was imported" in caught.value.message
    assert store.ls() == ()
    assert layers(root) == []
    assert leavings(root) == []


def test_what_is_not_there_is_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.import_tar(tmp_path / "nothing", "x")
    with pytest.raises(NotFound):
        store.import_directory(tmp_path / "nothing", "x")
    with pytest.raises(NotFound):
        store.get("x")
    with pytest.raises(NotFound):
        store.remove("x")
    for digest in ("0" * 64, "..", "../layers"):
        with pytest.raises(NotFound):
            store.layer_path(digest)


def test_a_directory_around_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="where images are kept"):
        store.import_directory(tmp_path, "x")


def test_what_a_killed_import_left_is_swept_but_not_what_another_is_making(
    store: Store, rootfs: Path, root: Path
) -> None:
    with store.scratch() as scratch:
        (scratch.path / "half").write_text("done")
        left = root / "images" / "tmp" / "left"
        (left / "bin").mkdir(parents=True)
        store.import_directory(rootfs, "web")
        assert (scratch.path / "half").exists()
        assert not left.exists()
    assert leavings(root) == []


def test_an_image_moves_to_another_store(store: Store, rootfs: Path, tmp_path: Path) -> None:
    there = make_store(tmp_path / "there")
    config = ImageConfig(env=("A=b",), labels=(("k", "v"),), cmd=("/bin/sh",))
    image = store.import_directory(rootfs, "web", config)
    document = json.loads(json.dumps(store.describe("web")))
    with pytest.raises(NotFound):
        there.adopt(document)
    for digest in there.missing(image.layers):
        stream = io.BytesIO()
        sent = store.write_layer(digest, stream)
        stream.seek(0)
        assert there.read_layer(digest, stream) == sent
    assert there.adopt(document) == there.adopt(document) == there.get("web") == image
    assert look(there.layer_path(image.layers[0])) == look(rootfs)


def test_a_name_taken_at_the_target_stays_there(store: Store, rootfs: Path, tmp_path: Path) -> None:
    there = make_store(tmp_path / "there")
    own = there.import_stream(io.BytesIO(ROOTFS), "web", source="test")
    image = store.import_directory(rootfs, "web")
    stream = io.BytesIO()
    store.write_layer(image.layers[0], stream)
    stream.seek(0)
    there.read_layer(image.layers[0], stream)
    adopted = there.adopt(store.describe("web"))
    assert adopted.reference is None
    assert there.get("web") == own
    assert there.describe(image.digest)["layers"] == image.layers


def test_a_layer_that_arrives_altered_is_refused(
    store: Store, rootfs: Path, tmp_path: Path
) -> None:
    there = make_store(tmp_path / "there")
    digest = store.import_directory(rootfs, "web").layers[0]
    stream = io.BytesIO()
    store.write_layer(digest, stream)
    altered = stream.getvalue().replace(b"#!", b"##")
    with pytest.raises(Corrupted):
        there.read_layer(digest, io.BytesIO(altered))
    with pytest.raises(BadArchive, match="cut"):
        there.read_layer(digest, io.BytesIO(altered[:-1]))
    assert layers(tmp_path / "there") == []
    assert leavings(tmp_path / "there") == []


def test_a_layer_changed_on_the_disk_is_not_sent_as_what_it_was(store: Store, rootfs: Path) -> None:
    digest = store.import_directory(rootfs, "web").layers[0]
    (store.layer_path(digest) / "bin" / "sh").write_bytes(b"virus")
    with pytest.raises(Corrupted):
        store.write_layer(digest, io.BytesIO())


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("web", "web:latest"),
        ("web:1.0_X", "web:1.0_X"),
        ("a/b-c__d.e", "a/b-c__d.e:latest"),
        ("Reg.example:5000/web", "Reg.example:5000/web:latest"),
        ("localhost:5000/a/web:2", "localhost:5000/a/web:2"),
    ],
)
def test_names_get_a_tag(text: str, reference: str) -> None:
    assert image_record.parse_reference(text) == reference


@pytest.mark.parametrize(
    "text", ["", ":", "Web", "web:", "web:a b", "../x", "/web", "web/", "a//b", "-x", "w" * 300]
)
def test_impossible_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        image_record.parse_reference(text)


@pytest.mark.parametrize(
    ("source", "name"),
    [("/x/Root FS.tar.zst", "root-fs"), ("web.tgz", "web"), ("dir/", "dir"), ("/", "")],
)
def test_a_name_is_made_of_the_source(source: str, name: str) -> None:
    assert image_record.suggested_name(source) == name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
DOCUMENT = image_record.to_document(
    image_record.make("web:1", ("0" * 64,), ImageConfig(env=("A=b",)), 5)
)


@given(field=st.sampled_from(sorted(DOCUMENT)), value=json_values)
def test_any_altered_document_is_refused_or_harmless(field: str, value: object) -> None:
    document = {**DOCUMENT, field: value}
    try:
        image = image_record.from_document(document)
    except PymigrateError:
        return
    assert image.layers == ("0" * 64,)
    assert image_record.from_document(image_record.to_document(image)) == image


def test_the_date_is_not_part_of_an_images_identity() -> None:
    one = image_record.make(None, ("0" * 64,), ImageConfig(created="2020"), 1)
    two = image_record.make(None, ("0" * 64,), ImageConfig(created="2021"), 1)
    other = image_record.make(None, ("0" * 64,), ImageConfig(user="1"), 1)
    assert one.digest == two.digest != other.digest


def test_a_damaged_index_is_said(store: Store, root: Path) -> None:
    (root / "images" / "index.json").write_text('{"images": 5}')
    with pytest.raises(ImageError, match="damaged"):
        store.ls()


def test_a_missing_root_entry_means_the_usual_directory(store: Store) -> None:
    image = store.import_stream(
        io.BytesIO(archive(("usr/bin/env", FILE, b"x"))), "web", source="test"
    )
    for path in (".", "usr", "usr/bin"):
        status = (store.layer_path(image.layers[0]) / path).stat()
        assert status.st_mode & 0o7777 == 0o755
        assert status.st_mtime_ns == 0
