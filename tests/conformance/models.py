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


def _for_onnxruntime(members: dict[str, bytes], precision: str) -> tuple[dict[str, bytes], EngineSpec]:
    return members, onnxruntime_spec(weights="weights.bin" in members, precision=precision)


def _for_openvino(members: dict[str, bytes], precision: str) -> tuple[dict[str, bytes], EngineSpec]:
    from edgec.runtime.testing.openvino import openvino_members, openvino_spec

    converted = openvino_members(members)
    return converted, openvino_spec(weights="model.bin" in converted, precision=precision)


_PAYLOADS: dict[str, Callable[[dict[str, bytes], str], tuple[dict[str, bytes], EngineSpec]]] = {
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
        members = onnx_members(nodes, inputs, outputs, weights, external_bytes=external_bytes)
        payload, spec = _PAYLOADS[self.engine](members, precision)
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


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
