"""What planning and running a chain share: what is known of values, and where they are kept.

A chain is planned once, when its artifacts are loaded: each stage becomes a function, and what it gives is
derived from what it takes, so that a chain that cannot fit is refused before any call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from operator import methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import PipelineError

Array = NDArray[Any]
Values = dict[str, Any]
"""What a call has computed so far, by the words that later stages and outputs call it."""

State = dict[str, Array]
"""What a stream keeps from call to call, by ``stage.input`` of a model or ``stage.kept`` of a step."""

Operation = Callable[[Values, State, State], None]
"""A planned stage: reads and adds values; reads the state before, and adds to the state afterwards."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """What is known, before any call, of a value.

    Attributes:
        kind: ``tensor``, ``image``, ``images``, ``text``, ``texts``, ``boxes`` or ``classes`` (predictions),
            ``predictions`` (one per image), ``parts`` (something of which only parts have a meaning).
        dtype: Of a tensor.
        shape: Of a tensor.
        color: Of images.
        labels: Of the classes of a prediction.
        parts: By the name after the dot.
        item: Of a list of predictions: each of them.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int | str, ...] = ()
    color: str = ""
    labels: tuple[str, ...] = ()
    parts: Mapping[str, Value] = field(default_factory=dict)
    item: Value | None = None

    def __str__(self) -> str:
        if self.kind == "tensor":
            return f"a tensor {self.dtype}[{', '.join(map(str, self.shape))}]"
        told = {
            "boxes": "a prediction of boxes",
            "classes": "a prediction of classes",
            "predictions": "a list of predictions",
            "images": "a list of images",
            "texts": "a list of texts",
            "parts": f"several values ({', '.join(self.parts)})",
        }
        return told.get(self.kind, f"a {self.kind}")

    @property
    def size(self) -> int | None:
        """How many numbers a tensor has; None where that varies."""
        return prod(n for n in self.shape if isinstance(n, int)) if self.is_static else None

    @property
    def is_static(self) -> bool:
        """Whether every axis has a fixed size."""
        return all(isinstance(n, int) for n in self.shape)


def tensor(dtype: str, *shape: int | str) -> Value:
    """Return what is known of an array."""
    return Value(kind="tensor", dtype=dtype, shape=shape)


TEXTS = Value(kind="texts")


def prediction_of_boxes(labels: tuple[str, ...]) -> Value:
    """Return what is known of ``{"boxes", "scores", "classes", "labels"}``."""
    parts = {"boxes": tensor("float32", "n", 4), **_scored(labels).parts}
    return Value(kind="boxes", labels=labels, parts=parts)


def prediction_of_classes(labels: tuple[str, ...]) -> Value:
    """Return what is known of ``{"scores", "classes", "labels"}``."""
    return _scored(labels)


def _scored(labels: tuple[str, ...]) -> Value:
    parts = {"scores": tensor("float32", "n"), "classes": tensor("int64", "n"), "labels": TEXTS}
    return Value(kind="classes", labels=labels, parts=parts)


class Planning:
    """Fits the stages of a chain to each other, one after the other.

    Attributes:
        known: What is known of each value so far, by name of the input or stage.
        state: Shape and first value of everything that goes from call to call.

    Args:
        references: All words by which values are read.
        shown: Stage of which all parts are read.
    """

    def __init__(self, references: Iterable[str], shown: str = "") -> None:
        self._references = set(references)
        self._shown = shown
        self.known: dict[str, Value] = {}
        self.state: dict[str, tuple[TensorSpec, float]] = {}

    def value(self, reference: str) -> Value:
        """Return what is known of a value.

        Raises:
            PipelineError: There is no such part.
        """
        first, _, part = reference.partition(".")
        whole = self.known.get(first)
        if whole is None:
            raise PipelineError(f"{reference!r} cannot be planned, since {first!r} is not")
        if not part:
            only = list(whole.parts.values())
            return only[0] if whole.kind == "parts" and len(only) == 1 else whole
        parts = whole.parts if whole.item is None else whole.item.parts
        if part not in parts:
            raise PipelineError(
                f"{first!r} has no part {part[:80]!r}: it is {whole}, and has {', '.join(parts) or 'none'}"
            )
        return parts[part] if whole.item is None else Value(kind="list")

    def expect(self, key: str, reference: str, *kinds: str) -> Value:
        """Return what is known of a value of one of some kinds.

        Raises:
            PipelineError: It is another.
        """
        value = self.value(reference)
        if value.kind not in kinds:
            raise PipelineError(f"{key}: expected {' or '.join(kinds)}, {reference!r} is {value}")
        return value

    def block(self, key: str, reference: str, *dtypes: str) -> tuple[Value, int]:
        """Return what is known of a tensor of known size, and the size.

        Raises:
            PipelineError: It is none, or of another dtype.
        """
        value = self.expect(key, reference, "tensor")
        size = value.size
        if size is None:
            raise PipelineError(
                f"{key}: expected a tensor of a known size, {reference!r} is {value}: compile its model "
                "with its shapes pinned (edgec compile --shape INPUT=1,512)"
            )
        if value.dtype not in dtypes:
            raise PipelineError(f"{key}: expected {' or '.join(dtypes)}, {reference!r} is {value}")
        return value, size

    def wanted(self, stage: str, value: Value) -> list[tuple[str | None, str]]:
        """Return what is read of a stage: a part, or None for the whole, and the words it is called by."""
        found: list[tuple[str | None, str]] = []
        all_parts = {f"{stage}.{part}" for part in value.parts} if stage == self._shown else set[str]()
        for reference in sorted(self._references | all_parts):
            first, dot, part = reference.partition(".")
            if first == stage:
                found.append((part if dot else None, reference))
        return found

    def keeps(self, name: str, spec: TensorSpec, initial: float = 0.0) -> str:
        """Note something that goes from call to call, and return its name in the state."""
        self.state[name] = (TensorSpec(name, spec.dtype, spec.shape), initial)
        return name


def storing(planning: Planning, stage: str, value: Value) -> Callable[[Values, Any], None]:
    """Return what keeps the result of a stage under all names by which it is read."""
    wanted = planning.wanted(stage, value)
    if value.item is not None:
        whole = [name for part, name in wanted if part is None]
        each = [(part, name) for part, name in wanted if part is not None]

        def store_list(values: Values, result: Any) -> None:
            for name in whole:
                values[name] = result
            for part, name in each:
                values[name] = [item[part] for item in result]

        return store_list
    if not value.parts:

        def store_one(values: Values, result: Any) -> None:
            values[stage] = result

        return store_one
    rows = store_rows(planning, stage, value)
    wholes = [name for part, name in wanted if part is None] if value.kind != "parts" else []

    def store(values: Values, result: Any) -> None:
        for part, name in rows:
            values[name] = result[part]
        for name in wholes:
            values[name] = result

    return store


def store_rows(planning: Planning, stage: str, value: Value) -> list[tuple[str, str]]:
    """Return which parts of a result are read, each with the words it is called by.

    Something of one part may be called by the stage alone.
    """
    only = next(iter(value.parts)) if len(value.parts) == 1 and value.kind == "parts" else None
    rows = [(only if part is None else part, name) for part, name in planning.wanted(stage, value)]
    return [(part, name) for part, name in rows if part is not None and part in value.parts]


def fitting(value: Value, spec: TensorSpec) -> Callable[[Array], Array] | None:
    """Return how a tensor becomes an input of a model: by axes of size 1, which come or go. None as it is.

    Raises:
        PipelineError: It cannot.
    """
    told = f"input {spec} cannot take {value}"
    if value.kind != "tensor":
        raise PipelineError(told)
    if value.dtype != spec.dtype:
        raise PipelineError(f"{told}: the dtypes differ")
    have, want = value.shape, spec.shape
    if have == want:
        return None
    if value.is_static and spec.is_static:
        if [n for n in have if n != 1] != [n for n in want if n != 1]:
            raise PipelineError(f"{told}: the sizes differ")
        target = tuple(int(n) for n in want)
        return methodcaller("reshape", target)
    missing = len(want) - len(have)
    compared = zip(have, want[missing:], strict=True) if missing >= 0 else ()
    fits = missing >= 0 and all(n in (1, *_names(want)) for n in want[:missing])
    if not fits or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in compared):
        raise PipelineError(f"{told}: the sizes differ")
    lead = (None,) * missing
    return (lambda array: array[lead]) if missing else None


def sizes_of(value: Value, spec: TensorSpec) -> dict[str, int]:
    """Return what the named dimensions of an input come to where it takes a value that fits."""
    missing = len(spec.shape) - len(value.shape)
    have = ((1,) * missing + value.shape) if missing >= 0 else value.shape[-missing:]
    return {
        name: size
        for name, size in zip(spec.shape, have, strict=True)
        if isinstance(name, str) and isinstance(size, int)
    }


def _names(shape: tuple[int | str, ...]) -> list[str]:
    return [n for n in shape if isinstance(n, str)]


def first_values(spec: TensorSpec, initial: float) -> Array:
    """Return a tensor of a state as it is before the first call."""
    return np.full([n if isinstance(n, int) else 1 for n in spec.shape], initial, spec.dtype)
