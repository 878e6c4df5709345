"""What is particular to OpenVINO: its cache, and that it computes in what was promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.runtime import load
from edgec.runtime.backends import LoadOptions, Program, get_backend
from edgec.runtime.testing import MemoryPayload, Node, onnx_members

ov = pytest.importorskip("openvino", reason="needs openvino")

X, Y = (TensorSpec("x", "float32", (4, 64)),), (TensorSpec("y", "float32", (4, 64)),)
W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
HERE = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)


def members(w: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> dict[str, bytes]:
    from edgec.runtime.testing.openvino import openvino_members

    return openvino_members(onnx_members([Node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": w}))


def program(precision: str) -> Program:
    from edgec.runtime.testing.openvino import openvino_spec

    spec = openvino_spec(precision=precision)
    return get_backend("openvino").load(spec, MemoryPayload(members(W)), X, Y, LoadOptions(threads=1))


def capabilities() -> list[str]:
    return list(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def test_fp32_is_fp32_even_where_the_cpu_has_bf16() -> None:
    exact = program("fp32")
    assert exact.precisions == {"fp32": 1}
    np.testing.assert_allclose(exact.run({"x": HERE})["y"], HERE @ W, rtol=1e-4, atol=1e-4)


def test_bf16_is_told_where_the_cpu_has_it_and_not_claimed_elsewhere() -> None:
    coarse = program("bf16")
    assert coarse.precisions == ({"bf16": 1} if "BF16" in capabilities() else {"fp32": 1})
    error = np.abs(coarse.run({"x": HERE})["y"] - HERE @ W).max()
    assert (error > 1e-3) == (coarse.precision == "bf16")


def test_fp16_never_becomes_bf16() -> None:
    assert program("fp16").precision == ("fp16" if "FP16" in capabilities() else "fp32")


def packed(path: Path, w: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Path:
    from edgec.runtime.testing.openvino import openvino_spec

    manifest = Manifest(
        model="linear", model_version="1", target="intel-cpu", engine=openvino_spec(), inputs=X, outputs=Y
    )
    return pack(path, manifest, members(w))


def test_the_cache_is_filled_and_used_and_knows_models_apart(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    other = W.copy()
    other[32, 32] += 1  # one weight of a model that is the same otherwise
    first, second = packed(tmp_path / "first.edgec", W), packed(tmp_path / "second.edgec", other)
    kept: list[set[Path]] = []
    for path, w in ((first, W), (second, other), (first, W), (second, other)):
        with load(path, cache_dir=cache) as session:
            np.testing.assert_allclose(session.run({"x": HERE})["y"], HERE @ w, rtol=1e-4, atol=1e-4)
            assert session.precision == "fp32"
        kept.append(set(cache.glob("**/*.blob")))
    assert [len(files) for files in kept] == [1, 2, 2, 2]
