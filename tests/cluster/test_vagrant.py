"""The Vagrantfile, for real: two hosts come up and a container moves; what was said is kept."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster import results

pytestmark = pytest.mark.cluster

TRY = Path(__file__).resolve().parent.parent.parent / "vagrant/try"
BEGIN = "<!-- vagrant: written by the tests, sudo ./test --kernels=full -->"
END = "<!-- end of vagrant -->"


def told(output: str) -> str:
    """Return what was said without Vagrant's own progress."""
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in output.splitlines()]
    first = lines.index("$ vagrant up")
    noise = re.compile(r"^$|==>|Progress:|^ *-- |^(old|new): ")
    return "\n".join(line for line in lines[first:] if not noise.search(line))


def keep(text: str) -> None:
    """Put it into the page."""
    page = results.PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = f"{before}{BEGIN}\n\n```\n{text}\n```\n\n{END}{after}"
    results.PAGE.write_text(fresh, encoding="utf-8")


def test_container_moves_between_the_two_hosts_of_the_vagrantfile() -> None:
    said = subprocess.run(
        [TRY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )

    assert 0 == said.returncode, said.stdout
    text = told(said.stdout)
    assert re.search(r"^counter runs on new: ", text, re.MULTILINE)
    [counted] = re.findall(r"(?m)^(\d+)$", text)
    assert int(counted) > 5
    keep(text)
