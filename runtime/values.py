"""Dataclasses as those of the standard library, made without compiling code: a start imports sixty.

The standard library's decorator writes each class's methods as text and compiles it, which takes
half a millisecond a class, and it imports ``inspect``: together 50 of the 95 ms of processor time
that the imports of a start once took. Here every class gets the same few functions. An object takes
some microseconds more, so what exists in great numbers, or is not imported by a start, is better a
class of the standard library.

For all others these are dataclasses too: the functions of ``dataclasses`` take them, since
``__dataclass_fields__`` is there as soon as somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


class _Made:
    """A default that is made anew for each object."""

    def __init__(self, make: Callable[[], object], *, compared: bool) -> None:
        self.make = make
        self.compared = compared


def field(*, default_factory: Callable[[], T], compare: bool = True) -> T:
    """Give a field a default that is made anew for each object, such as a dict.

    One that is not compared is not shown either.
    """
    made: Any = _Made(default_factory, compared=compare)
    return made  # type: ignore[no-any-return]  # what the field will hold, as in typeshed


@dataclass_transform(field_specifiers=(field,))
def dataclass(*, frozen: bool = False) -> Callable[[type[T]], type[T]]:
    """Decorate a class without bases as ``dataclasses.dataclass`` does.

    Those of a frozen class cannot be set, and it has a hash. What the class has itself is kept, and
    its ``__post_init__`` called.
    """

    def decorate(cls: type[T]) -> type[T]:
        own = dict(vars(cls))
        names = tuple(cls.__annotations__)
        defaults = {name: own[name] for name in names if name in own}
        made = {name: each for name, each in defaults.items() if isinstance(each, _Made)}
        for name in made:
            delattr(cls, name)
        given = {
            "_value_names": names,
            "_value_defaults": defaults,
            "_value_compared": tuple(
                name for name in names if name not in made or made[name].compared
            ),
            "_value_check": own.get("__post_init__"),
            "__match_args__": names,
            "__dataclass_fields__": _Fields(),
            **_METHODS,
            **(_FROZEN if frozen else {}),
        }
        for name in given.keys() - own.keys():
            setattr(cls, name, given[name])
        return cls

    return decorate


def replace(value: T, /, **changes: object) -> T:
    """Return a copy in which these fields are others."""
    kind: Any = type(value)
    return kind(**{name: getattr(value, name) for name in kind._value_names} | changes)  # type: ignore[no-any-return]


def asdict(value: object) -> dict[str, Any]:
    """Return the fields by name; those within them, and in their lists and dicts, likewise."""
    kind: Any = type(value)
    return {name: _plain(getattr(value, name)) for name in kind._value_names}


def _plain(value: object) -> object:
    if hasattr(type(value), "_value_names"):
        return asdict(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value


class _Fields:
    """What the standard library knows a dataclass by, made when it is asked for."""

    def __get__(self, _instance: object, cls: Any) -> Mapping[str, object]:
        import dataclasses

        def described(name: str) -> tuple[str, Any, Any]:
            compared = name in cls._value_compared
            settings: dict[str, Any] = {"compare": compared, "repr": compared}
            if name in cls._value_defaults:
                default = cls._value_defaults[name]
                if isinstance(default, _Made):
                    settings["default_factory"] = default.make
                else:
                    settings["default"] = default
            return name, cls.__annotations__[name], dataclasses.field(**settings)

        made: Any = dataclasses.make_dataclass(cls.__name__, map(described, cls._value_names))
        cls.__dataclass_fields__ = made.__dataclass_fields__
        return made.__dataclass_fields__  # type: ignore[no-any-return]


def _init(self: Any, *values: object, **named: object) -> None:
    cls = type(self)
    names = cls._value_names
    if len(values) > len(names):
        raise TypeError(f"{cls.__name__} has {len(names)} fields, but {len(values)} were given")
    # Into the object's own dictionary, for a frozen class refuses setattr.
    mine = self.__dict__
    mine.update(zip(names, values, strict=False))
    for name in names[len(values) :]:
        if name in named:
            mine[name] = named.pop(name)
        elif name in cls._value_defaults:
            default = cls._value_defaults[name]
            mine[name] = default.make() if isinstance(default, _Made) else default
        else:
            raise TypeError(f"{cls.__name__} was not given {name}")
    if named:
        raise TypeError(f"{cls.__name__} has no {', '.join(named)}, or was given it twice")
    if cls._value_check is not None:
        cls._value_check(self)


def _members(self: Any) -> tuple[object, ...]:
    return tuple([getattr(self, name) for name in self._value_compared])


def _repr(self: Any) -> str:
    members = zip(self._value_compared, _members(self), strict=True)
    shown = ", ".join(f"{name}={value!r}" for name, value in members)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: object, other: object) -> bool:
    return _members(self) == _members(other) if type(self) is type(other) else NotImplemented


def _hash(self: object) -> int:
    return hash(_members(self))


def _refuse(self: object, name: str, _value: object = None) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be set")


_METHODS: dict[str, object] = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": None,
}
_FROZEN: dict[str, object] = {
    "__hash__": _hash,
    "__setattr__": _refuse,
    "__delattr__": _refuse,
}
