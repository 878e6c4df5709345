"""What a step of a pipeline is: a name and keys, each with the check that guards it.

Steps come from TOML files and from the manifests of artifacts, so every value is checked as hostile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from reprlib import Repr
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from edgec.errors import PipelineError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        return lambda cls: cls


MAX_TEXT = 256
"""Longest name or label, in characters."""

_short = Repr()
_short.maxstring = _short.maxother = 60
_REQUIRED: Any = object()
_MOST_SAID = 16
_T = TypeVar("_T")
_FILE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Check:
    """What a key takes: the words that say it, and the function that enforces it.

    Args:
        expected: Completes the sentence "expected ...": ``an integer from 1 to 8``.
        convert: Gives the value to keep. It raises ValueError or TypeError for a wrong one.
    """

    def __init__(self, expected: str, convert: Callable[[Any], Any]) -> None:
        self.expected = expected
        self.convert = convert


class Key:
    """One key of a step.

    Attributes:
        check: What it takes.
        doc: What it means, a sentence for people.
        default: Its value where it is not given; meaningless for a required key.
        required: Whether it must be given.
    """

    def __init__(self, check: Check, doc: str, default: Any) -> None:
        self.check = check
        self.doc = doc
        self.default = default
        self.required = default is _REQUIRED


def key(check: Check, doc: str, *, default: Any = _REQUIRED) -> Any:
    """Declare a key of a step; without a default it is required."""
    return Key(check, doc, default)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(key,))
class Step:
    """One declared step: frozen, compared by value, its keys checked when it is made.

    A step is a subclass that declares its keys with `key`. This is a dataclass in all but name:
    the two dozen real ones would cost 15 ms at import, half of what a device allows.

    Raises:
        PipelineError: A key is missing, unknown, or has a wrong value.
    """

    step: ClassVar[str]
    keys: ClassVar[Mapping[str, Key]] = {}

    def __init_subclass__(cls, step: str) -> None:
        cls.step = step
        inherited = dict(cls.keys)
        own = {k: v for k, v in vars(cls).items() if isinstance(v, Key)}
        cls.keys = own | inherited

    def __init__(self, **values: Any) -> None:
        problems = [
            f"{self.step}: unknown key {_short.repr(unknown)}; its keys are {', '.join(self.keys)}"
            for unknown in values.keys() - self.keys.keys()
        ]
        problems += filter(None, [self._take(name, declared, values) for name, declared in self.keys.items()])
        if problems:
            raise PipelineError("; ".join(problems[:_MOST_SAID]))
        self.validate()

    def _take(self, name: str, declared: Key, values: Mapping[str, Any]) -> str:
        """Set an attribute; return what is wrong with its value."""
        try:
            self.__dict__[name] = self._checked(name, declared, values)
        except PipelineError as e:
            return str(e)
        return ""

    def _checked(self, name: str, declared: Key, values: Mapping[str, Any]) -> Any:
        value = values.get(name)
        if value is None:
            if declared.required:
                raise PipelineError(f"{self.step}: {name} is missing: expected {declared.check.expected}")
            return declared.default
        try:
            return declared.check.convert(value)
        except (TypeError, ValueError, OverflowError) as e:
            raise PipelineError(
                f"{self.step}: {name}: expected {declared.check.expected}, got {_short.repr(value)}"
            ) from e

    def validate(self) -> None:
        """Check what concerns several keys at once; raise with `refuse`."""

    def refuse(self, why: str) -> PipelineError:
        """Return the error that says what is wrong with this step."""
        return PipelineError(f"{self.step}: {why}")

    def to_dict(self) -> dict[str, Any]:
        """Return the step as plain data, defaults included, so that a manifest says all of it."""
        values = ((name, getattr(self, name)) for name in self.keys)
        return {"step": self.step} | {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values
            if value is not None
        }

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a step cannot be changed: {name}")

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in self.keys)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self)})"


def whole(low: int, high: int) -> Check:
    """An integer of a range, both ends included."""
    return Check(f"an integer from {low} to {high}", lambda value: _integer(value, low, high))


def number(low: float = -1e30, high: float = 1e30) -> Check:
    """A finite number; an integer becomes a float."""
    words = "a finite number" if low == -1e30 else f"a number from {low:g} to {high:g}"
    return Check(words, lambda value: _real(value, low, high))


def numbers(limit: int, low: float = -1e30, high: float = 1e30) -> Check:
    """One number or a list of them, kept as a tuple."""

    def convert(value: Any) -> tuple[float, ...]:
        many = value if isinstance(value, list | tuple) else (value,)
        return tuple(_real(one, low, high) for one in _bounded(many, limit))

    within = "" if low == -1e30 else f" from {low:g} to {high:g}"
    return Check(f"a finite number{within}, or a list of 1 to {limit} of them", convert)


def wholes(limit: int, low: int, high: int) -> Check:
    """A list of integers, kept as a tuple."""

    def convert(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_integer(one, low, high) for one in _bounded(value, limit))

    return Check(f"a list of 1 to {limit} integers from {low} to {high}", convert)


def one_of(*names: str) -> Check:
    """One of a few words."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return Check("one of " + ", ".join(map(repr, names)), convert)


def flag() -> Check:
    """A boolean."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Check("true or false", convert)


def text() -> Check:
    """A name: a short text without control characters."""
    return Check(f"a text of 1 to {MAX_TEXT} characters without control characters", _plain_text)


def json_member() -> Check:
    """The name of a JSON file that travels in the artifact: no path, and none of the artifact's own files."""

    def convert(value: Any) -> str:
        name = _plain_text(value)
        stem = name.removesuffix(".json")
        if stem in (name, "", "manifest", "report") or stem[0] in ".-" or not set(name) <= _FILE_CHARACTERS:
            raise ValueError
        return name

    return Check("a file name such as 'tokenizer.json', of letters, digits, '.', '-' and '_'", convert)


def is_plain_text(value: Any) -> bool:
    """Whether `value` is a short text without control characters or lone surrogates."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_TEXT
        and not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in value)
    )


def _plain_text(value: Any) -> str:
    if not is_plain_text(value):
        raise ValueError
    return str(value)


def _bounded(values: list[_T] | tuple[_T, ...], limit: int) -> list[_T] | tuple[_T, ...]:
    if not 0 < len(values) <= limit:
        raise ValueError
    return values


def _integer(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError
    return value


def _real(value: Any, low: float, high: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError
    real = float(value)
    if not isfinite(real) or not low <= real <= high:
        raise ValueError
    return real
