"""Several calls as one: along the first axis, where a model has that free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgec.artifact import Manifest

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]


def why_not_batched(manifest: Manifest, precision: str) -> str:
    """Return why calls cannot be joined, in a sentence; empty where they can.

    They can where every input and output has the same named dimension as its first axis and nowhere else.

    Args:
        manifest: Of the artifact.
        precision: Promised of the engine that runs it.
    """
    specs = (*manifest.inputs, *manifest.outputs)
    firsts = {spec.shape[0] if spec.shape else 1 for spec in specs}
    if len(firsts) != 1 or not isinstance(first := next(iter(firsts)), str):
        told = ", ".join(map(str, specs))
        return f"not every input and output has the same named dimension in front: {told}"
    if any(first in spec.shape[1:] for spec in specs):
        return f"the dimension {first!r} is in other places than in front, too"
    if precision == "int8-dynamic":
        return "int8-dynamic takes its scales from the whole batch: answers would depend on their neighbours"
    return ""


def shape_key(inputs: Arrays) -> tuple[tuple[int, ...], ...]:
    """Return what calls that can be joined have in common: all sizes but the first."""
    return tuple(inputs[name].shape[1:] for name in sorted(inputs))


def rows(inputs: Arrays) -> int:
    """Return the size of the first axis."""
    return int(next(iter(inputs.values())).shape[0])


def join(calls: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Return one call for all of `calls`, which agree in `shape_key`."""
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def split(outputs: Arrays, sizes: Sequence[int]) -> list[Outputs]:
    """Return new arrays for each of the calls that were joined.

    Args:
        outputs: Of the joined call.
        sizes: Of the first axis of each call.
    """
    ends = np.cumsum(sizes)
    # What says where it came from goes on saying so.
    same: Callable[[Outputs], Outputs] = getattr(outputs, "with_values", dict)
    # Copies, so that one answer that is kept does not keep all.
    return [
        same({name: array[end - size : end].copy() for name, array in outputs.items()})
        for size, end in zip(sizes, ends, strict=True)
    ]


def grouped(calls: Sequence[Arrays], most: int) -> list[list[Arrays]]:
    """Return the calls in their order, neighbours together that may be joined, of at most `most` rows.

    A call of more rows than that is alone.
    """
    groups: list[list[Arrays]] = []
    for _, alike in groupby(calls, key=shape_key):
        free = 0
        for call in alike:
            size = rows(call)
            if size > free:
                groups.append([])
                free = most
            groups[-1].append(call)
            free -= size
    return groups
