"""Users are looked up in the container's files, and never in the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime import accounts
from pymigrate.runtime.accounts import Account
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.spec import User

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbroken\nodd:x:y:z::/:\n"
GROUP = "root:x:0:\nweb:x:34:\ndisk:x:6:web,other\nlog:x:4:web\n"


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("", Account(User(0, 0), "/root")),
        ("web", Account(User(33, 34, (4, 6)), "/srv")),
        ("33", Account(User(33, 34, (4, 6)), "/srv")),
        ("web:root", Account(User(33, 0), "/srv")),
        ("web:77", Account(User(33, 77), "/srv")),
        ("1234", Account(User(1234, 0), "/")),
        ("1234:web", Account(User(1234, 34), "/")),
    ],
)
def test_names_and_numbers(text: str, account: Account) -> None:
    assert account == accounts.resolve(text, PASSWD, GROUP)


@pytest.mark.parametrize("text", ["nobody", "web:none", "odd", "4294967295", "9" * 30])
def test_unknown_users_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="nothing was run"):
        accounts.resolve(text, PASSWD, GROUP)


def test_root_needs_no_files() -> None:
    assert Account(User(), "/root") == accounts.resolve("", "", "")


def test_the_highest_directory_wins_and_links_stay_inside(tmp_path: Path) -> None:
    for name, uid in (("low", 1), ("high", 2)):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc/passwd").write_text(f"web:x:{uid}:0::/:\n")
    (tmp_path / "top/etc").mkdir(parents=True)
    (tmp_path / "top/etc/passwd").symlink_to("/etc/shadow-of-nothing")
    layers = [tmp_path / name for name in ("low", "high", "top", "absent")]

    assert 2 == accounts.resolve_in_layers("web", layers).user.uid

    (tmp_path / "top/etc/shadow-of-nothing").write_text("web:x:3:0::/:\n")
    assert 3 == accounts.resolve_in_layers("web", layers).user.uid
