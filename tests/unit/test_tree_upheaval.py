"""The changes that other tests make at random stay in their tree, whatever its links say."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.tree_upheaval import NAMES, Deed, deeds


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(st.lists(deeds, min_size=1, max_size=12), st.sampled_from(NAMES))
def test_a_link_out_of_the_tree_is_never_followed(
    tmp_path: Path, done: list[Deed], name: str
) -> None:
    outside = tmp_path / "outside"
    for each in NAMES:
        (outside / each).mkdir(parents=True, exist_ok=True)
        (outside / each / "file").write_text("kept")
    (outside / "file").write_text("kept")
    before = sorted((str(path), path.lstat()) for path in outside.rglob("*"))
    root = tmp_path / f"root{len(list(tmp_path.iterdir()))}"
    root.mkdir()
    (root / name).symlink_to(outside)
    (root / NAMES[0 if name != NAMES[0] else 1]).symlink_to(outside / "file")

    for deed in done:
        deed.do(root)

    after = sorted((str(path), path.lstat()) for path in outside.rglob("*"))
    assert [path for path, _ in before] == [path for path, _ in after]
    assert [(s.st_mtime_ns, s.st_mode, s.st_size) for _, s in before] == [
        (s.st_mtime_ns, s.st_mode, s.st_size) for _, s in after
    ]
