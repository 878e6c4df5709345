"""What tests of streams are put together from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.runtime.streams import StreamStatistics
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

WAIT_S = 60.0  # for what comes at once, if it comes


class Clock:
    """Time that passes when a test says so; safe from several threads."""

    def __init__(self) -> None:
        self.now = 100.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


class Doubling:
    """Predicts twice a number, and does something before."""

    def __init__(self, before: Callable[[Any], object] = lambda sample: None) -> None:
        self._before = before

    def predict(self, sample: Any) -> Mapping[str, Any]:
        self._before(sample)
        return {"y": 2 * sample}


class Gate:
    """Holds predictions back until it is opened, and says that one has come."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.open = threading.Event()

    def __call__(self, sample: Any) -> None:
        self.came.set()
        assert self.open.wait(WAIT_S)


def running_sum(path: Path, size: int = 2) -> Path:
    """Pack a model with a state: ``total = before + x`` is what it gives, and the state after it."""
    shape = (1, size)
    inputs = (TensorSpec("x", "float32", shape), TensorSpec("before", "float32", shape))
    outputs = (TensorSpec("total", "float32", shape), TensorSpec("after", "float32", shape))
    nodes = [Node("Add", ["x", "before"], ["total"]), Node("Add", ["x", "before"], ["after"])]
    manifest = Manifest(
        model="sum",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
    )
    return pack(path, manifest, onnx_members(nodes, inputs, outputs, {}))


def with_gain(path: Path, dtype: str = "float32", pipeline: Pipeline | None = None) -> Path:
    """Pack a model of x: float32[1, 2] and a gain, which it does not use where it has another type."""
    inputs = (TensorSpec("x", "float32", (1, 2)), TensorSpec("gain", dtype, (1,)))
    outputs = (TensorSpec("y", "float32", (1, 2)), TensorSpec("used", dtype, (1,)))
    times = Node("Mul", ["x", "gain"] if dtype == "float32" else ["x", "x"], ["y"])
    nodes = [times, Node("Identity", ["gain"], ["used"])]
    manifest = Manifest(
        model="gain",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
        pipeline=pipeline,
    )
    return pack(path, manifest, onnx_members(nodes, inputs, outputs, {}))


def all_accounted_for(statistics: StreamStatistics) -> bool:
    return statistics.captured == statistics.given + sum(statistics.dropped.values()) + statistics.pending


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def stream_threads() -> list[str]:
    return [
        t.name for t in threading.enumerate() if t.name in ("edgec-capture", "edgec-predict", "edgec-mqtt")
    ]


def ones(n: int) -> list[Any]:
    return [np.full(4, i, np.float32) for i in range(n)]
