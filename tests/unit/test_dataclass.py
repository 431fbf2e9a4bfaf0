"""Our `dataclass` behaves as the standard library's does, for what the modules of `wal push` use of it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

from polarvault.model import dataclass as light


@light.dataclass(frozen=True, slots=True, order=True)
class Light:
    """A value with everything that is supported."""

    number: int
    text: str = "none"
    more: tuple[int, ...] = light.field(default=())
    secret: str = light.field(default="s", repr=False)
    listed: list[int] = light.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("below nothing")

    @property
    def double(self) -> int:
        return 2 * self.number


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Standard:
    """The same."""

    number: int
    text: str = "none"
    more: tuple[int, ...] = dataclasses.field(default=())
    secret: str = dataclasses.field(default="s", repr=False)
    listed: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("below nothing")

    @property
    def double(self) -> int:
        return 2 * self.number


@light.dataclass(slots=True)
class Mutable:
    """One that may be changed."""

    one: int
    lines: list[str] = light.field(default_factory=list)


@light.dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """One whose values are named."""

    first: int = 1
    second: int


BOTH = pytest.mark.parametrize("kind", [Light, Standard])


def shown(one: Any) -> str:
    return repr(one).replace("Light", "Standard")


@BOTH
@pytest.mark.parametrize(
    ("given", "named", "expected"),
    [
        ((1,), {}, (1, "none", (), "s", [])),
        ((1, "a"), {"listed": [3]}, (1, "a", (), "s", [3])),
        ((), {"number": 5, "more": (1, 2)}, (5, "none", (1, 2), "s", [])),
        ((1, "a", (2,), "x", [4]), {}, (1, "a", (2,), "x", [4])),
    ],
)
def test_values_are_told_by_place_by_name_and_by_default(kind: Any, given: Any, named: Any, expected: Any) -> None:
    made = kind(*given, **named)
    assert dataclasses.astuple(made) == expected
    assert shown(made) == repr(Standard(*given, **named))
    assert made.double == 2 * expected[0]


@BOTH
@pytest.mark.parametrize(
    ("given", "named"), [((), {}), ((1, 2, 3, 4, 5, 6), {}), ((1,), {"number": 1}), ((1,), {"unknown": 1})]
)
def test_a_wrong_call_is_an_error(kind: Any, given: Any, named: Any) -> None:
    with pytest.raises(TypeError):
        kind(*given, **named)


@BOTH
def test_a_frozen_value_cannot_be_changed_is_compared_and_ordered(kind: Any) -> None:
    one, same, other = kind(1, "a", listed=[]), kind(1, "a", listed=[]), kind(2)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'number'"):
        one.number = 2
    with pytest.raises(AttributeError):
        del one.number
    # The standard library's says it in words of its own that are a mistake (Python issue 90562).
    with pytest.raises((AttributeError, TypeError)):
        one.unknown = 2
    assert one == same
    assert one != other
    assert one != (1, "a", (), "s", [])
    assert one < other <= other
    assert other > one >= same
    with pytest.raises(TypeError):
        _ = one < 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    assert len({kind(1, listed=()), kind(1, listed=()), kind(2, listed=())}) == 2
    with pytest.raises(ValueError, match="below nothing"):
        kind(-1)


@BOTH
def test_it_is_copied_changed_and_taken_apart_by_the_standard_library(kind: Any) -> None:
    one = kind(1, "a", listed=[1])
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one).listed is not one.listed
    assert dataclasses.replace(one, text="b") == light.replace(one, text="b") == kind(1, "b", listed=[1])
    assert dataclasses.asdict(one) == {"number": 1, "text": "a", "more": (), "secret": "s", "listed": [1]}
    assert [(one.name, one.repr) for one in dataclasses.fields(kind)][3:] == [("secret", False), ("listed", True)]
    assert dataclasses.is_dataclass(kind)
    match one:
        case kind(number, text):
            assert (number, text) == (1, "a")
        case _:
            pytest.fail("it does not match")


def test_each_object_has_lists_of_its_own_and_one_that_is_not_frozen_changes() -> None:
    one, other = Mutable(1), Mutable(1)
    one.lines.append("a")
    one.one = 2
    assert (one.one, one.lines, other.lines) == (2, ["a"], [])
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    with pytest.raises(AttributeError):
        one.unknown = 2  # type: ignore[attr-defined]


def test_keyword_only_values_may_have_defaults_in_any_order() -> None:
    assert repr(Named(second=2)) == "Named(first=1, second=2)"
    assert dataclasses.replace(Named(second=2), first=3) == Named(first=3, second=2)
    with pytest.raises(TypeError):
        Named(1, 2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="second"):
        Named()  # type: ignore[call-arg]


def test_what_is_not_supported_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="slots=True"):
        light.dataclass(slots=False)
    with pytest.raises(TypeError, match="ClassVar"):

        @light.dataclass(slots=True)
        class _Wrong:
            kind: ClassVar[str] = ""
