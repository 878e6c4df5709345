"""A Jetson that is none: the fakes of CUDA and TensorRT in place of the real ones, and artifacts for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes.cuda import FakeDriver
from tests.fakes.tensorrt import Faults, make_tensorrt

from edgec.artifact import GOLDEN, EngineSpec, GoldenVector, Manifest, TensorSpec, encode_golden, pack
from edgec.runtime.backends import _cuda
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

LINES = {"10.3.0": ">=10.3,<11", "11.4.1": ">=11.4.1,<12"}


@dataclass
class Jetson:
    """The fakes that are installed.

    Attributes:
        version: Of TensorRT.
        driver: The CUDA driver.
        faults: What goes wrong in TensorRT, and what was done wrong to it.
    """

    version: str
    driver: FakeDriver = field(default_factory=FakeDriver)
    faults: Faults = field(default_factory=Faults)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the fakes where edgec finds them."""
        module = make_tensorrt(self.version, self.driver, self.faults)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(_cuda, "open_library", self._open)

    def update(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        """Install another version of TensorRT."""
        self.version = version
        self.install(monkeypatch)

    def _open(self, name: str) -> FakeDriver:
        assert name == _cuda.DRIVER
        return self.driver


def recipe(version: str, *, dla: bool = False, batch: int | str = 1) -> dict[str, Any]:
    """Return a recipe as the converter writes it; of what is only told to people, nothing."""
    eleven = version.startswith("11")
    shapes = {"x": {"min": [1, 16], "opt": [2, 16], "max": [4, 16]}}
    return {
        "builder": "tensorrt",
        "version": LINES[version],
        "onnx": "model.onnx",
        "precision": "fp32",
        "network": {"strongly_typed": True, "creation_flags": [] if eleven else ["STRONGLY_TYPED"]},
        "config": {
            "memory_pools_mib": {"workspace": 512},
            "builder_optimization_level": 3,
            "profiling_verbosity": "LAYER_NAMES_ONLY",
        },
        "memory_budget_mib": 4096,
        "profiles": [shapes] if isinstance(batch, str) else [],
        "dla": {"cores": 2, "gpu_fallback": True, "parser_flags": ["ADJUST_FOR_DLA"]} if dla else None,
        "requires": {"compute_capability": "8.7", "jetpack": ">=6.1,<7"},
    }


def jetson_artifact(
    path: Path,
    version: str,
    *,
    has_dla: bool = False,
    batch: int | str = 1,
    golden: bool = True,
    **changes: Any,
) -> Path:
    """Pack an artifact for TensorRT with weights outside of the graph: ``y = relu(x @ w)``.

    Args:
        path: Where to.
        version: Of TensorRT that it is for.
        has_dla: Whether the target has DLAs.
        batch: Size of the first axis, or its name; then the engine takes 1 to 4.
        golden: Whether it has golden vectors.
        changes: Of fields of the recipe.
    """
    random = np.random.default_rng(3)
    w = random.standard_normal((16, 32)).astype(np.float32)
    inputs = (TensorSpec("x", "float32", (batch, 16)),)
    outputs = (TensorSpec("y", "float32", (batch, 32)),)
    nodes = [Node("MatMul", ["x", "w"], ["h"]), Node("Relu", ["h"], ["y"])]
    members = onnx_members(nodes, inputs, outputs, {"w": w}, external_bytes=0)
    vectors = []
    for _ in range(2):
        x = random.standard_normal((1 if isinstance(batch, str) else batch, 16)).astype(np.float32)
        vectors.append(GoldenVector(inputs={"x": x}, outputs={"y": np.maximum(x @ w, 0)}))
    files = ("model.onnx", "weights.bin")
    manifest = Manifest(
        model="tiny",
        model_version="1",
        target="jetson-agx-orin-jp7",
        engine=EngineSpec(
            name="tensorrt", version=LINES[version], device="GPU", precision="fp32", files=files
        ),
        fallback=onnxruntime_spec(),
        inputs=inputs,
        outputs=outputs,
        golden={"y": {"max_abs_error": 1e-4}} if golden else {},
        recipe={**recipe(version, dla=has_dla, batch=batch), **changes},
    )
    return pack(path, manifest, {**members, **({GOLDEN: encode_golden(vectors)} if golden else {})})
