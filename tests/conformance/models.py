"""Tiny models in the payload of each engine, made without the onnx package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError
from edgec.runtime.backends import LoadOptions, Payload, Program, get_backend
from edgec.runtime.testing import MemoryPayload, Node, onnx_members, onnxruntime_spec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Model:
    """A model in the payload of one engine.

    Attributes:
        spec: How the engine runs it.
        members: Its payload.
        inputs: What it takes.
        outputs: What it gives.
    """

    spec: EngineSpec
    members: Mapping[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def load(
        self, *, payload: Payload | None = None, options: LoadOptions | None = None, **changes: Any
    ) -> Program:
        """Load it; `changes` are to its `EngineSpec`."""
        return get_backend(self.spec.name).load(
            replace(self.spec, **changes),
            payload or MemoryPayload(self.members),
            self.inputs,
            self.outputs,
            options or LoadOptions(),
        )


@dataclass(frozen=True)
class Graph:
    """What every engine's payload is made of; see `edgec.runtime.testing.onnx_members`."""

    nodes: list[Node]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Arrays | None
    external_bytes: int

    def onnx_members(self) -> dict[str, bytes]:
        """Return its ONNX payload."""
        return onnx_members(
            self.nodes, self.inputs, self.outputs, self.weights, external_bytes=self.external_bytes
        )


Payloads = tuple[dict[str, bytes], EngineSpec]


def _for_onnxruntime(graph: Graph, precision: str) -> Payloads:
    members = graph.onnx_members()
    return members, onnxruntime_spec(weights="weights.bin" in members, precision=precision)


def _for_openvino(graph: Graph, precision: str) -> Payloads:
    from edgec.runtime.testing.openvino import openvino_members, openvino_spec

    converted = openvino_members(graph.onnx_members())
    return converted, openvino_spec(weights="model.bin" in converted, precision=precision)


def _for_litert(graph: Graph, precision: str) -> Payloads:
    from edgec.runtime.testing.litert import litert_members, litert_spec

    members = litert_members(graph.nodes, graph.inputs, graph.outputs, graph.weights)
    return members, litert_spec(precision=precision)


_PAYLOADS: dict[str, Callable[[Graph, str], Payloads]] = {
    "litert": _for_litert,
    "onnxruntime": _for_onnxruntime,
    "openvino": _for_openvino,
}


class Builder:
    """Makes models for one engine."""

    def __init__(self, engine: str) -> None:
        """Skip the test where the engine is not here."""
        self.engine = engine
        if engine not in _PAYLOADS:
            pytest.skip(f"this suite makes no models for {engine}")
        try:
            get_backend(engine)
        except BackendUnavailableError as e:
            pytest.skip(str(e))

    def build(
        self,
        nodes: list[Node],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        weights: Arrays | None = None,
        *,
        precision: str = "fp32",
        external_bytes: int = 1024,
    ) -> Model:
        """Return a model; see `edgec.runtime.testing.onnx_members`."""
        graph = Graph(nodes, inputs, outputs, weights, external_bytes)
        payload, spec = _PAYLOADS[self.engine](graph, precision)
        return Model(spec, payload, inputs, outputs)

    def linear(
        self, batch: int | str = 1, size: int = 32, **options: Any
    ) -> tuple[Model, Callable[[Any], Any]]:
        """Return ``y = relu(x @ w + b)`` and what numpy makes of it."""
        random = np.random.default_rng(3)
        w = random.standard_normal((size, size)).astype(np.float32)
        b = random.standard_normal(size).astype(np.float32)
        model = self.build(
            [Node("MatMul", ["x", "w"], ["h"]), Node("Add", ["h", "b"], ["a"]), Node("Relu", ["a"], ["y"])],
            (TensorSpec("x", "float32", (batch, size)),),
            (TensorSpec("y", "float32", (batch, size)),),
            {"w": w, "b": b},
            **options,
        )
        return model, lambda x: np.maximum(x @ w + b, 0)

    def int8_convolution(self) -> Model:
        """Return a padded convolution of 3 x 3, 8 channels to 16, quantized in and out."""
        if self.engine == "litert":
            return _int8_convolution_for_litert()
        random = np.random.default_rng(0)
        weights: Arrays = {
            "w": random.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8),
            "w_scale": np.full(16, 0.01, np.float32),
            "w_zero": np.zeros(16, np.int8),
            "scale": np.array(0.05, np.float32),
            "zero": np.array(128, np.uint8),
        }
        nodes = [
            Node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            Node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            Node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], {"axis": 0}),
            Node("Conv", ["xd", "wd"], ["c"], {"pads": [1, 1, 1, 1]}),
            Node("QuantizeLinear", ["c", "scale", "zero"], ["cq"]),
            Node("DequantizeLinear", ["cq", "scale", "zero"], ["y"]),
        ]
        inputs, outputs = (
            (TensorSpec("x", "float32", (1, 8, 16, 16)),),
            (TensorSpec("y", "float32", (1, 16, 16, 16)),),
        )
        return self.build(nodes, inputs, outputs, weights, precision="int8")


def _int8_convolution_for_litert() -> Model:
    from edgec.runtime.testing.litert import int8_convolution_members, litert_spec

    return Model(
        litert_spec(precision="int8"),
        int8_convolution_members(),
        (TensorSpec("x", "float32", (1, 16, 16, 8)),),  # the file's are int8: the backend quantizes
        (TensorSpec("y", "float32", (1, 16, 16, 16)),),
    )


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
