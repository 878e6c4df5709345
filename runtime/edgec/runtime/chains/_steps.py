"""What the stages, inputs and states of a chain declare, each a class of checked keys.

All of it comes from a TOML file, so every value is checked as hostile: names of values, of files beside
the chain, of steps; never code, modules or paths elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from edgec.artifact.steps._step import (
    Check,
    Step,
    flag,
    is_plain_text,
    key,
    number,
    one_of,
    text,
    whole,
)

MAX_SAMPLES = 1 << 20
"""Most samples of a block of sound."""

_MOST_ENTRIES = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
           "float16", "float32", "float64")  # fmt: skip
_FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]*")


def is_name(value: object) -> bool:
    """Whether `value` may name a chain's stage, input or output."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


class Reference(Check):
    """The name of a value: of an input, of a stage, or ``stage.part`` of what a stage gives."""

    def __init__(self) -> None:
        super().__init__(
            "the name of an input, of a stage, or stage.part", lambda value: _text_if(is_reference, value)
        )


def is_reference(value: object) -> bool:
    """Whether `value` may name a value of a chain."""
    return is_plain_text(value) and is_name(str(value).split(".", 1)[0])


def _text_if(test: Callable[[object], bool], value: Any) -> str:
    if not test(value):
        raise ValueError
    return str(value)


def _artifact_path() -> Check:
    """The path of an artifact beside the chain or in a folder there."""

    def convert(value: Any) -> str:
        if not is_plain_text(value) or not value.endswith(".edgec"):
            raise ValueError
        parts = PurePosixPath(value).parts
        if not all(_FILE_PART.fullmatch(part) for part in parts):  # so neither .. nor a root
            raise ValueError
        return str(value)

    return Check("the path of an .edgec file in the folder of the chain, such as 'models/a.edgec'", convert)


def _table(expected: str, value_check: Check) -> Check:
    """A table by name of a model's input."""

    def convert(table: Any) -> Mapping[str, Any]:
        if not isinstance(table, Mapping) or not 0 < len(table) <= _MOST_ENTRIES:
            raise ValueError
        if not all(map(is_plain_text, table)):
            raise ValueError
        return {str(name): value_check.convert(value) for name, value in table.items()}

    return Check(expected, convert)


def _initial() -> Check:
    real = number()

    def convert(value: Any) -> float:
        known = {"zeros": 0.0, "ones": 1.0}
        return known[value] if isinstance(value, str) and value in known else float(real.convert(value))

    return Check("'zeros', 'ones' or a finite number", convert)


def _words(limit: int) -> Check:
    """A list of texts."""

    def convert(value: Any) -> tuple[str, ...]:
        if (
            not isinstance(value, list | tuple)
            or not 0 < len(value) <= limit
            or not all(map(is_plain_text, value))
        ):
            raise ValueError
        return tuple(value)

    return Check(f"a list of 1 to {limit} texts", convert)


def _shape() -> Check:
    def convert(value: Any) -> tuple[int | str, ...]:
        if not isinstance(value, list | tuple) or len(value) > 8:
            raise ValueError
        sizes = tuple(n if is_name(n) else whole(1, 1 << 24).convert(n) for n in value)
        if np.prod([n for n in sizes if isinstance(n, int)], dtype=np.float64) > 1 << 28:
            raise ValueError
        return sizes

    return Check("a list of at most 8 sizes, or names of sizes that vary, of at most 2**28 values", convert)


def _states() -> Check:
    def convert(value: Any) -> tuple[RecurrentState, ...]:
        entries = [value] if isinstance(value, Mapping) else value
        if not isinstance(entries, list | tuple) or not 0 < len(entries) <= _MOST_ENTRIES:
            raise ValueError
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError
        return tuple(RecurrentState(**{str(k): v for k, v in entry.items()}) for entry in entries)

    return Check('a table or list of tables such as {input = "h", output = "hn"}', convert)


class RecurrentState(Step, step="state"):
    """A tensor that a model gives and takes again at the next call of the same stream."""

    input: str = key(text(), "Input that takes it.")
    output: str = key(text(), "Output that gives it.")
    initial: float = key(_initial(), "What it holds at first: `zeros`, `ones` or a number.", default=0.0)


class TensorInput(Step, step="tensor"):
    """An input that is an array."""

    dtype: str = key(one_of(*_DTYPES), "Element type.", default="float32")
    shape: tuple[int | str, ...] = key(_shape(), "Sizes; a name stands for a size that varies.")


class ImageInput(Step, step="image"):
    """An input that is an image: a path, the bytes of a file, or an array uint8[h, w, c]."""

    color: str = key(one_of("RGB", "BGR", "GRAY"), "Order of its channels.", default="RGB")


class TextInput(Step, step="text"):
    """An input that is a text."""


class Model(Step, step="model"):
    """Run an artifact: with `inputs`, its bare tensors; with `input` or `each`, its whole pipeline."""

    artifact: str = key(_artifact_path(), "Path of the artifact, from the folder of the chain.")
    input: str | None = key(Reference(), "Sample for its whole pipeline.", default=None)
    each: str | None = key(
        Reference(),
        "Images, each a sample for its whole pipeline: gives a list of predictions.",
        default=None,
    )
    inputs: Mapping[str, str] | None = key(
        _table("a table of values by input of the model", Reference()),
        "Values for its bare tensors, by name of the input.",
        default=None,
    )
    constants: Mapping[str, float] = key(
        _table("a table of numbers by input of the model", number()),
        "Numbers for inputs that never change, by name; with `inputs`.",
        default={},
    )
    state: tuple[RecurrentState, ...] = key(
        _states(), "What goes from call to call of a stream; with `inputs`.", default=()
    )
    batch: int = key(
        whole(1, 1024),
        "With `each`: most samples of one call of the engine, where the model's batch is free.",
        default=32,
    )

    def validate(self) -> None:
        given = [name for name in ("input", "each", "inputs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise self.refuse(f"expected one of input, each and inputs, got {', '.join(given) or 'none'}")
        if self.inputs is None and (self.constants or self.state):
            raise self.refuse("constants and state belong to bare tensors: give inputs")
        filled = [*(self.inputs or ()), *self.constants, *(state.input for state in self.state)]
        twice = sorted({name for name in filled if filled.count(name) > 1})
        if twice:
            raise self.refuse(f"{', '.join(twice)}: filled by more than one of inputs, constants and state")


class Select(Step, step="select"):
    """Keep the best of a prediction of classes or boxes."""

    input: str = key(Reference(), "The prediction.")
    min_score: float | None = key(number(), "Least score.", default=None)
    top_k: int | None = key(whole(1, 65536), "Most entries, those of the highest scores.", default=None)
    classes: tuple[str, ...] = key(_words(4096), "Labels to keep; all where this is left out.", default=())
    order: str = key(
        one_of("score", "left", "top"),
        "Best first; or, of boxes, from left to right, or from top to bottom.",
        default="score",
    )


class Crop(Step, step="crop"):
    """Cut each box out of an image: gives a list of images."""

    image: str = key(Reference(), "The image.")
    boxes: str = key(Reference(), "A prediction of boxes, in pixels of the image.")
    margin: float = key(number(0, 4), "Room on every side, as a share of the longer side.", default=0.0)
    square: bool = key(flag(), "Extend the shorter side to the longer one.", default=False)
    pad: int = key(whole(0, 255), "Grey value of what lies outside of the image.", default=0)
    max_boxes: int = key(whole(1, 65536), "Most boxes; the others are left out.", default=256)


class Relabel(Step, step="relabel"):
    """Give boxes the best class of what was read in each: gives `boxes`, `scores`, `classes`, `labels`."""

    boxes: str = key(Reference(), "A prediction of boxes.")
    by: str = key(Reference(), "A list of predictions of classes, one for each box.")


class Window(Step, step="window"):
    """Keep the last `size` values of a stream of blocks, zeros at first. Has a state."""

    input: str = key(Reference(), "The block that is new.")
    size: int = key(whole(1, MAX_SAMPLES), "How many values.")


class Rfft(Step, step="rfft"):
    """Fourier transform of a block: gives `spectrum` (complex), `magnitude` and `phase`."""

    input: str = key(Reference(), "The block.")
    window: str = key(one_of("none", "hann", "sqrt_hann"), "Weights of the values, periodic.", default="none")


class Polar(Step, step="polar"):
    """Make a spectrum of magnitude and phase."""

    magnitude: str = key(Reference(), "Absolute values.")
    phase: str = key(Reference(), "Angles in radians.")


class Multiply(Step, step="multiply"):
    """Multiply two values of the same size, one by one: a mask and a spectrum."""

    a: str = key(Reference(), "One factor.")
    b: str = key(Reference(), "The other.")


class Irfft(Step, step="irfft"):
    """Inverse Fourier transform: from a spectrum to a block, float32."""

    input: str = key(Reference(), "The spectrum.")
    size: int | None = key(
        whole(2, MAX_SAMPLES), "Values of the block; twice the spectrum's less 2 by default.", default=None
    )
    window: str = key(one_of("none", "hann", "sqrt_hann"), "Weights of the values, periodic.", default="none")


class OverlapAdd(Step, step="overlap_add"):
    """Add up blocks that overlap, and give the `hop` values that are complete. Has a state."""

    input: str = key(Reference(), "The block.")
    hop: int = key(whole(1, MAX_SAMPLES), "How far the next block is from this one.")


INPUTS: dict[str, type[Step]] = {cls.step: cls for cls in (TensorInput, ImageInput, TextInput)}
STEPS: dict[str, type[Step]] = {
    cls.step: cls for cls in (Select, Crop, Relabel, Window, Rfft, Polar, Multiply, Irfft, OverlapAdd)
}


def references(step: Step) -> list[tuple[str, str]]:
    """Return the values that a stage reads, with the key that names each."""
    found = [
        (name, getattr(step, name))
        for name, declared in step.keys.items()
        if isinstance(declared.check, Reference) and getattr(step, name) is not None
    ]
    if isinstance(step, Model) and step.inputs is not None:
        found += [(f"inputs.{name}", reference) for name, reference in step.inputs.items()]
    return found
