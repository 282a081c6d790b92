"""Dataclasses of runtime/values.py beside those of the standard library."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pymigrate.runtime import values


@values.dataclass(frozen=True)
class Port:
    """A frozen one."""

    number: int
    protocol: str = "tcp"
    labels: dict[str, str] = values.field(default_factory=dict)


@values.dataclass()
class Holder:
    """One that can change, with a field that is not compared."""

    ports: tuple[Port, ...]
    opened: list[int] = values.field(default_factory=list, compare=False)


@values.dataclass(frozen=True)
class Pair:
    """A frozen one of what has a hash."""

    first: int
    second: int


@dataclasses.dataclass(frozen=True)
class Other:
    """The same of the standard library."""

    number: int
    protocol: str = "tcp"
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


def test_is_shown_as_one_of_the_standard_library() -> None:
    assert repr(Port(80)) == repr(Other(80)).replace("Other", "Port")


def test_takes_fields_by_place_and_by_name() -> None:
    assert Port(80, "udp") == Port(protocol="udp", number=80)
    assert Port(80, "udp") != Port(80)


def test_is_not_equal_to_another_class_with_the_same_fields() -> None:
    other: object = Other(80)

    assert Port(80) != other


def test_each_object_gets_a_default_of_its_own() -> None:
    first, second = Port(1), Port(1)

    first.labels["a"] = "b"

    assert second.labels == {}


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ((), {}, "was not given number"),
        ((1, "tcp", {}, 4), {}, "has 3 fields, but 4 were given"),
        ((1,), {"nonsense": 2}, "has no nonsense"),
        ((1,), {"number": 2}, "has no number, or was given it twice"),
    ],
)
def test_refuses_what_is_missing_or_too_much(
    given: tuple[Any, ...], named: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        Port(*given, **named)


@pytest.mark.parametrize(
    "change", [lambda one: setattr(one, "number", 2), lambda one: delattr(one, "number")]
)
def test_a_frozen_one_cannot_be_changed(change: Callable[[Port], None]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        change(Port(80))


def test_a_frozen_one_has_a_hash_and_another_has_none() -> None:
    assert hash(Pair(1, 2)) == hash(Pair(1, 2))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Holder(()))


def test_a_field_that_is_not_compared_is_not_shown_either() -> None:
    assert Holder((), [1]) == Holder((), [2])
    assert repr(Holder((), [1])) == "Holder(ports=())"


@pytest.mark.parametrize("replace", [values.replace, dataclasses.replace])
def test_is_replaced_by_either_function(replace: Callable[..., Port]) -> None:
    assert replace(Port(80), protocol="udp") == Port(80, "udp")


@pytest.mark.parametrize("asdict", [values.asdict, dataclasses.asdict])
def test_is_a_dict_all_the_way_down_by_either_function(asdict: Callable[[Any], object]) -> None:
    port = {"number": 80, "protocol": "tcp", "labels": {}}

    assert asdict(Holder((Port(80),))) == {"ports": (port,), "opened": []}


def test_has_the_fields_of_the_standard_library() -> None:
    fields = {each.name: each.default for each in dataclasses.fields(Port)}

    assert fields == {
        "number": dataclasses.MISSING,
        "protocol": "tcp",
        "labels": dataclasses.MISSING,
    }


def test_takes_part_in_a_match() -> None:
    match Port(80):
        case Port(number, "tcp"):
            assert number == 80
        case _:
            pytest.fail("it did not match")


@pytest.mark.parametrize(
    "module", ["migrate.new_container", "migrate.cli_exec", "runtime.supervisor", "runtime.init"]
)
def test_what_a_start_imports_compiles_no_classes(module: str) -> None:
    program = f"import sys, pymigrate.{module}; print('dataclasses' in sys.modules)"

    said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=True)

    assert said.stdout == b"False\n"


@values.dataclass(frozen=True)
class _Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")


def test_checks_itself_when_it_is_made_and_when_it_is_replaced() -> None:
    with pytest.raises(ValueError, match="negative"):
        _Checked(-1)
    with pytest.raises(ValueError, match="negative"):
        values.replace(_Checked(1), number=-1)
