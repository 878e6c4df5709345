"""What each layer takes, where the engine tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import EngineSpec, Manifest, TensorSpec, pack
from edgec.errors import InferenceError
from edgec.runtime.backends import LoadOptions, Profiler, get_backend
from edgec.runtime.backends._profiles import kernel_runs, layer_times
from edgec.runtime.profiling import profile
from edgec.runtime.testing import MemoryPayload, Node, onnx_members, onnxruntime_spec, tiny_artifact

X, Y = (TensorSpec("x", "float32", (32, 512)),), (TensorSpec("y", "float32", (32, 512)),)
WEIGHTS = {name: np.ones((512, 512), np.float32) / 512 for name in ("first", "second")}
NODES = [
    Node("MatMul", ["x", "first"], ["h"]),
    Node("Relu", ["h"], ["s"]),
    Node("MatMul", ["s", "second"], ["y"]),
]
FEEDS = [{"x": np.ones((32, 512), np.float32)}]


def two_products(engine: str) -> tuple[EngineSpec, dict[str, bytes]]:
    members = onnx_members(NODES, X, Y, WEIGHTS)
    if engine == "onnxruntime":
        return onnxruntime_spec(), members
    from edgec.runtime.testing.openvino import openvino_members, openvino_spec

    return openvino_spec(), openvino_members(members)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_layers_that_work_are_seen_working(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine, reason=f"needs {engine}")
    spec, members = two_products(engine)
    target = "cpu-x86_64" if engine == "onnxruntime" else "intel-cpu"
    manifest = Manifest(model="two", model_version="1", target=target, engine=spec, inputs=X, outputs=Y)
    path = pack(tmp_path / "two.edgec", manifest, members)
    found = profile(path, threads=1, runs=5)
    products = [
        layer.ms for layer in found.layers if "MatMul" in layer.kind or "FullyConnected" in layer.kind
    ]
    assert len(products) == 2
    assert sum(products) > found.total_ms / 2
    assert (found.engine, found.runs, found.absent) == (engine, 5, "")
    assert json.loads(json.dumps(found.to_dict()))["total_ms"] == pytest.approx(found.total_ms)


def test_an_engine_that_does_not_tell_is_said(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    assert not isinstance(get_backend("litert"), Profiler)


def test_bad_inputs_are_refused() -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    spec, members = two_products("onnxruntime")
    backend = get_backend("onnxruntime")
    assert isinstance(backend, Profiler)
    with pytest.raises(InferenceError, match="ONNX Runtime failed"):
        backend.profile(
            spec, MemoryPayload(members), X, Y, LoadOptions(), [{"x": np.ones((1, 2), np.float32)}], 1
        )


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 run"):
        profile(tiny_artifact(tmp_path / "tiny.edgec"), runs=0)


def test_layers_in_a_loop_are_added_up_and_pauses_left_out() -> None:
    events = [
        {"cat": "Node", "name": "a_kernel_time", "dur": dur, "args": {"op_name": "Add"}}
        for dur in (1000, 2000)
    ]
    end = {"cat": "Session", "name": "model_run"}
    slow = [{**event, "dur": 90_000} for event in events]
    runs = kernel_runs([*events, end, *events, end, *slow, end])
    (layer,) = layer_times(runs)
    assert (layer.name, layer.kind, layer.ms) == ("a", "Add", 3.0)
