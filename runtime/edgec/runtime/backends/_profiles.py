"""How long each layer of a model takes, as engines tell it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class LayerTime:
    """What a layer takes of one inference.

    Attributes:
        name: As the engine calls it: names of fused layers are its own.
        kind: Operator or kernel: ``FusedConv``, ``Convolution (brgconv_avx512_bf16)``.
        ms: Median over the inferences, in milliseconds.
    """

    name: str
    kind: str
    ms: float


Row = tuple[str, str, float]


def layer_times(runs: Sequence[Iterable[Row]]) -> list[LayerTime]:
    """Return what each layer takes, in the order in which they were first run.

    Args:
        runs: Of each inference, name, kind and milliseconds of every layer that ran; a layer in a loop
            several times, which are added up.
    """
    taken: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * len(runs))
    for i, rows in enumerate(runs):
        for name, kind, ms in rows:
            taken[name, kind][i] += ms
    return [LayerTime(name, kind, median(times)) for (name, kind), times in taken.items()]


def kernel_runs(events: Iterable[Mapping[str, Any]]) -> list[list[Row]]:
    """Return the kernels of each inference in a profile of ONNX Runtime, where each run ends its own."""
    runs: list[list[Row]] = []
    rows: list[Row] = []
    for event in events:
        if event.get("name") == "model_run":
            runs.append(rows)
            rows = []
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            rows.append((name, event["args"]["op_name"], event["dur"] / 1e3))
    return runs
