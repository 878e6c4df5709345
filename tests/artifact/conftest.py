"""A small artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.artifact.forge import Tiny

from edgec.artifact import GOLDEN, EngineSpec, GoldenVector, Manifest, TensorSpec, encode_golden


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    manifest = Manifest(
        model="tiny",
        model_version="1.0",
        target="cpu-x86_64",
        engine=EngineSpec(
            name="onnxruntime",
            version=">=1.23,<2",
            device="CPU",
            precision="fp32",
            files=("model.onnx", "weights.bin"),
        ),
        inputs=(TensorSpec("image", "uint8", ("batch", 2, 2, 1), layout="NHWC"),),
        outputs=(TensorSpec("scores", "float32", ("batch", 3)),),
        golden={"scores": {"max_abs_error": 1}},
    )
    vectors = [
        GoldenVector(
            inputs={"image": np.full((1, 2, 2, 1), i, np.uint8)},
            outputs={"scores": np.array([[i, 0.5, -1]], np.float32)},
        )
        for i in range(2)
    ]
    members = {
        "weights.bin": bytes(range(256)) * 2,
        "model.onnx": b"graph",
        GOLDEN: encode_golden(vectors),
    }
    return Tiny(manifest, members, {"latency_ms": {"p50": 3}})


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """Return what writes bytes to a file and gives its path."""

    def to_file(data: bytes) -> Path:
        path = tmp_path / "wrong.edgec"
        path.write_bytes(data)
        return path

    return to_file
