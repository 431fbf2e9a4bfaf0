"""The `dataclass` decorator for modules that `wal push` and `wal fetch` load: same meaning, a tenth of the start-up.

An archiver starts `wal push` once for every segment. Importing the standard library's `dataclasses` (with `inspect`,
`ast`, `dis`) and having it compile the methods of some forty classes took half of the processor time of a push. Here
the methods of a class are closures over its fields, and nothing is compiled. tests/unit/test_start_up.py says what must
not be loaded; everywhere else the standard library's decorator is the right one.

What is supported is what those modules use: slots=True always, frozen, order, kw_only, defaults, `field` with a
default, a factory or repr=False, and __post_init__; no such class inherits from another. Type checkers see the standard
library's names, and `dataclasses.replace`, `asdict` and `fields` take these classes too.
"""

from __future__ import annotations

from operator import attrgetter

__all__ = ["dataclass", "field", "replace"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from dataclasses import dataclass, field, replace
    from typing import Any

    Values = Callable[[Any], tuple[Any, ...]]


class _Missing:
    """No default: None would be one."""


class _Field:
    def __init__(self, default: Any = _Missing, default_factory: Any = _Missing, *, is_shown: bool = True) -> None:
        self.default, self.default_factory, self.is_shown = default, default_factory, is_shown


class _Class:
    """What the methods of one class know of it."""

    def __init__(self, made: Any, fields: Mapping[str, _Field], *, kw_only: bool) -> None:
        self.made, self.fields, self.kw_only = made, fields, kw_only
        self.setters = [vars(made)[name].__set__ for name in fields]
        get = attrgetter(*fields)
        self.values: Values = get if len(fields) > 1 else lambda one: (get(one),)

    def complete(self, given: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """Return the value of every field, as told and by default; raises TypeError as a function would."""
        if len(given) > (0 if self.kw_only else len(self.fields)):
            raise TypeError(f"{self.made.__name__}() takes fewer values without a name than {len(given)}")
        values = list(given)
        for name, one in list(self.fields.items())[len(given) :]:
            if name in named:
                values.append(named.pop(name))
            elif one.default is not _Missing:
                values.append(one.default)
            elif one.default_factory is not _Missing:
                values.append(one.default_factory())
            else:
                raise TypeError(f"{self.made.__name__}() needs {name!r}")
        if named:
            raise TypeError(f"{self.made.__name__}() has no {next(iter(named))!r}, or was given it twice")
        return values


class _StandardFields:
    """`__dataclass_fields__`, by which the functions of `dataclasses` know a class: made when it is first asked for."""

    def __init__(self, fields: Mapping[str, _Field], types: Mapping[str, Any]) -> None:
        self._fields, self._types = fields, types

    def __get__(self, instance: object, owner: Any) -> Mapping[str, Any]:
        import dataclasses

        def standard(one: _Field) -> Any:
            known = {} if one.default is _Missing else {"default": one.default}
            if one.default_factory is not _Missing:
                known["default_factory"] = one.default_factory
            return dataclasses.field(repr=one.is_shown, **known)

        typed = [(name, self._types[name], standard(one)) for name, one in self._fields.items()]
        # Keywords only: no such object is made, and which fields have defaults does not matter then.
        made: Any = dataclasses.make_dataclass(owner.__name__, typed, kw_only=True)
        owner.__dataclass_fields__ = made.__dataclass_fields__
        return made.__dataclass_fields__  # type: ignore[no-any-return]


def _dataclass(
    *, slots: bool, frozen: bool = False, order: bool = False, kw_only: bool = False
) -> Callable[[Any], Any]:
    """Make a class with the fields that the class below has annotated."""
    if not slots:
        raise TypeError("slots=True is all that is supported here; use the decorator of dataclasses")

    def decorate(given: Any) -> Any:
        types = given.__annotations__
        content = {name: value for name, value in vars(given).items() if name not in ("__dict__", "__weakref__")}
        fields = {}
        for name, annotation in types.items():
            if annotation.startswith("ClassVar"):
                raise TypeError("ClassVar is not supported here; use the decorator of dataclasses")
            default = content.pop(name, _Missing)
            fields[name] = default if isinstance(default, _Field) else _Field(default)
        names = tuple(fields)
        content |= {"__slots__": names, "__dataclass_fields__": _StandardFields(fields, types)}
        if not kw_only:
            content["__match_args__"] = names
        made = type(given)(given.__name__, given.__bases__, content)
        own = _Class(made, fields, kw_only=kw_only)
        methods = _common_methods(own)
        methods += _frozen_methods(own.values) if frozen else []
        methods += _order_methods(own) if order else []
        for method in methods:
            if vars(made).get(method.__name__) is None:
                setattr(made, method.__name__, method)
        if not frozen:
            made.__hash__ = None
        return made

    return decorate


def _common_methods(own: _Class) -> list[Callable[..., Any]]:
    made, setters, values, count = own.made, own.setters, own.values, len(own.fields)
    finish = getattr(made, "__post_init__", None)
    is_positional = not own.kw_only

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        for set_value, value in zip(
            setters,
            given if is_positional and not named and len(given) == count else own.complete(given, named),
            strict=True,
        ):
            set_value(self, value)
        if finish is not None:
            finish(self)

    def __eq__(self: Any, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is made else NotImplemented

    def __repr__(self: Any) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name, one in own.fields.items() if one.is_shown)
        return f"{made.__qualname__}({', '.join(shown)})"

    def __getstate__(self: Any) -> tuple[Any, ...]:
        return values(self)

    def __setstate__(self: Any, state: tuple[Any, ...]) -> None:
        for set_value, value in zip(setters, state, strict=True):
            set_value(self, value)

    return [__init__, __eq__, __repr__, __getstate__, __setstate__]


def _frozen_methods(values: Values) -> list[Callable[..., Any]]:
    def __setattr__(self: Any, name: str, value: Any) -> None:
        raise _frozen_error(name)

    def __delattr__(self: Any, name: str) -> None:
        raise _frozen_error(name)

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return [__setattr__, __delattr__, __hash__]


def _frozen_error(name: str) -> AttributeError:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(f"cannot assign to field {name!r}")


def _order_methods(own: _Class) -> list[Callable[..., Any]]:
    made, values = own.made, own.values

    def __lt__(self: Any, other: object) -> bool:
        return values(self) < values(other) if other.__class__ is made else NotImplemented

    def __le__(self: Any, other: object) -> bool:
        return values(self) <= values(other) if other.__class__ is made else NotImplemented

    def __gt__(self: Any, other: object) -> bool:
        return values(self) > values(other) if other.__class__ is made else NotImplemented

    def __ge__(self: Any, other: object) -> bool:
        return values(self) >= values(other) if other.__class__ is made else NotImplemented

    return [__lt__, __le__, __gt__, __ge__]


def _field(*, default: Any = _Missing, default_factory: Any = _Missing, repr: bool = True) -> Any:
    """Say more of a field than its default."""
    return _Field(default, default_factory, is_shown=repr)


def _replace(value: Any, /, **changes: Any) -> Any:
    """Return a copy with some fields changed, of an object of any dataclass with slots."""
    return type(value)(**({name: getattr(value, name) for name in value.__slots__} | changes))


if not TYPE_CHECKING:
    dataclass, field, replace = _dataclass, _field, _replace
