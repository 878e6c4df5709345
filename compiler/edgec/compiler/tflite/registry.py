"""The table of operators: an operator is one function in one module of `edgec.compiler.tflite.ops`.

The decorator states what the function supports; the documentation's table is made from it. The function
itself refuses what it cannot do by raising `Refused`, so that a limit is written once, where it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from edgec.compiler.tflite.modes import ALL, Mode

if TYPE_CHECKING:
    from edgec.compiler.tflite.graph import Node
    from edgec.compiler.tflite.lowering import Lowering

Lower = Callable[["Lowering", "Node"], None]


class Refused(Exception):
    """A node cannot be written; caught by the writer, which reports all of them at once.

    Attributes:
        reason: What of it: ``weights are computed at run time``.
        fix: The nearest way out.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}: {fix}")
        self.reason = reason
        self.fix = fix


class NoIntegerKernel(Refused):
    """The node could be written in float, but not with integers; nothing was written yet."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"no integer kernel computes {what}",
            "leave it in float (exclude it, or allow float fallback), or replace it",
        )


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What is known of one ONNX operator.

    Attributes:
        name: ``Conv``.
        lower: Writes one node of it.
        tflite: The builtin operators it becomes, in words for the table.
        limits: What of ONNX's definition is not supported; empty where all of it is.
        modes: In which it computes with the mode's own numbers. In an integer mode that is not among them it
            is refused, or stays in float where the caller allows that.
        note: Anything else that a user should know.
    """

    name: str
    lower: Lower
    tflite: tuple[str, ...]
    limits: str
    modes: frozenset[Mode]
    note: str


_TABLE: dict[str, Operator] = {}


def operator(
    *names: str,
    tflite: Collection[str],
    limits: str = "",
    modes: Collection[Mode] = ALL,
    note: str = "",
) -> Callable[[Lower], Lower]:
    """Register a function as the one that writes nodes of the ONNX operators `names`."""

    def register(lower: Lower) -> Lower:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"operator {name} is registered twice")
            _TABLE[name] = Operator(
                name=name, lower=lower, tflite=tuple(tflite), limits=limits, modes=frozenset(modes), note=note
            )
        return lower

    return register


def find_operator(name: str) -> Operator | None:
    """Return an operator by its ONNX name; None where the writer lacks it."""
    _load()
    return _TABLE.get(name)


def way_out(name: str) -> str:
    """Return what to do about an operator that the writer lacks."""
    for operators_, text in _WAYS_OUT.items():
        if name in operators_:
            return text
    if name.startswith("ai.onnx.ml."):
        return _CLASSICAL
    return "replace it in the exported model by operators of the table in docs/tflite-operators.md"


_WAYS_OUT = {
    ("NonMaxSuppression",): "end the model before it; the pipeline's post-processing does it",
    (
        "If",
        "Loop",
        "Scan",
    ): "export the model with fixed shapes and options, so that no branch or loop is left",
    (
        "NonZero",
        "Unique",
        "Compress",
    ): "its output has no fixed size, which TFLite needs: compute it afterwards",
    ("QuantizeLinear", "DequantizeLinear"): "give the float model, and calibration data to quantize it by",
}
_CLASSICAL = "TFLite has no trees and tables: compile the model for ONNX Runtime, or train a small network"


def operators() -> Iterator[Operator]:
    """Yield every operator, by name."""
    _load()
    yield from (_TABLE[name] for name in sorted(_TABLE))


def _load() -> None:
    package = import_module("edgec.compiler.tflite.ops")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
