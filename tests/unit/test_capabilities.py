"""Capabilities: masks, what a host can grant, and the order of giving up."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import capabilities, syscalls
from pymigrate.runtime.errors import MissingFeature
from pymigrate.runtime.settings import Capabilities
from tests.fakes.kernel import RecordingKernel


@given(st.frozensets(st.sampled_from(capabilities.NAMES)))
def test_a_mask_holds_exactly_its_names(names: frozenset[str]) -> None:
    assert names == capabilities.of_mask(capabilities.mask(names))


def test_numbers_are_the_kernels() -> None:
    assert 1 << 21 == capabilities.mask(["CAP_SYS_ADMIN"])
    assert 1 << 40 == capabilities.mask(["CAP_CHECKPOINT_RESTORE"])


def test_what_the_host_cannot_grant_is_named() -> None:
    wanted = Capabilities(bounding=frozenset({"CAP_SYS_RESOURCE", "CAP_CHOWN"}))
    with pytest.raises(MissingFeature, match="cannot grant CAP_SYS_RESOURCE"):
        capabilities.require(wanted, frozenset({"CAP_CHOWN"}))
    capabilities.require(wanted, frozenset({"CAP_CHOWN", "CAP_SYS_RESOURCE"}))


class BoundingKernel(RecordingKernel):
    """A kernel with 43 capabilities, two more than we know, all in the bounding set."""

    def prctl(self, option: int, *arguments: int) -> int:
        super().prctl(option, *arguments)
        if option == syscalls.PR_CAPBSET_DROP and arguments[0] > 42:
            raise OSError(errno.EINVAL, "prctl")
        return 0


def test_all_but_the_kept_are_dropped_also_those_without_a_name() -> None:
    kernel = BoundingKernel()
    capabilities.drop_bounding(frozenset({"CAP_CHOWN", "CAP_BPF"}), kernel)

    dropped = {
        arguments[1] for _, arguments in kernel.calls if arguments[0] == syscalls.PR_CAPBSET_DROP
    }
    assert set(range(44)) - {0, 39} == dropped


def test_ambient_ones_are_raised_after_they_became_inheritable() -> None:
    kernel = RecordingKernel()
    kill = frozenset({"CAP_KILL"})
    capabilities.apply(Capabilities(kill, kill, kill, kill, kill), kernel)

    assert ("capset", (32, 32, 32)) == kernel.calls[0]
    raised = (syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, 5)
    assert ("prctl", raised) == kernel.calls[-1]
