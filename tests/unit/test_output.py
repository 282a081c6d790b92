"""What reaches the terminal steers nobody's."""

from __future__ import annotations

import pytest

from pymigrate.migrate import output
from pymigrate.runtime.errors import ContainerError


def test_a_name_that_the_container_chose_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ContainerError("it has /a\x1b[2Jb open", hint="close /a\x9bb")
    error.add_note("or /\udcff")
    output.complain(error)
    output.say("ü\tb\r\x07")

    said, complained = capsys.readouterr()
    assert "ü\tb��\n" == said
    assert "pymigrate: it has /a�[2Jb open\nhint: close /a�b\nnote: or /�\n" == complained
