"""Artifacts in two versions, and patches that no maker would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, Manifest, TensorSpec, pack
from edgec.delta import Header
from edgec.delta._format import CONTROL, DIFF, EXTRA, PLANES, TABLE, Stream
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec
from edgec.sketch._bytes import pack_numbers

Arrays = Mapping[str, NDArray[Any]]


def weights(seed: int = 0, rows: int = 32, columns: int = 48) -> dict[str, NDArray[np.float32]]:
    """Two matrices of a network of two layers."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (16, rows), "w2": (rows, columns)}
    return {name: random.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}


def tuned(before: Arrays, step: float = 1e-4) -> dict[str, NDArray[Any]]:
    """The same weights after some training."""
    random = np.random.default_rng(5)
    return {name: (w + random.normal(0, step, w.shape)).astype(w.dtype) for name, w in before.items()}


def specs(arrays: Arrays) -> tuple[list[Node], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Nodes, inputs and outputs of ``y = x @ w1 @ w2``."""
    inputs = (TensorSpec("x", "float32", (1, arrays["w1"].shape[0])),)
    outputs = (TensorSpec("y", "float32", (1, arrays["w2"].shape[1])),)
    return [Node("MatMul", ["x", "w1"], ["h"]), Node("MatMul", ["h", "w2"], ["y"])], inputs, outputs


def packed(
    path: Path, members: Mapping[str, bytes], engine: EngineSpec, arrays: Arrays, version: str
) -> Path:
    """Pack members as an artifact."""
    _, inputs, outputs = specs(arrays)
    manifest = Manifest(
        model="m", model_version=version, target="cpu", engine=engine, inputs=inputs, outputs=outputs
    )
    return pack(path, manifest, dict(members))


def onnx_artifact(path: Path, arrays: Arrays, version: str) -> Path:
    """Pack an ONNX payload with its weights outside of the graph."""
    members = onnx_members(*specs(arrays), arrays)
    return packed(path, members, onnxruntime_spec(), arrays, version)


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return sha256(data).hexdigest()


def forge(
    old: bytes,
    new: bytes,
    *,
    table: Sequence[int] = (),
    control: Sequence[int] = (),
    diff: bytes = b"",
    extra: bytes = b"",
    planes: Mapping[int, bytes] | None = None,
    length: int | None = None,
) -> bytes:
    """Return a patch whose form is right and whose content is whatever is given."""
    parts: list[tuple[Stream, bytes]] = []
    if table:
        parts.append(_part(TABLE, 0, pack_numbers(table)))
    parts += [_part(PLANES, width, data) for width, data in sorted((planes or {}).items())]
    parts += [_part(CONTROL, 0, pack_numbers(control)), _part(DIFF, 0, diff), _part(EXTRA, 0, extra)]
    header = Header(
        old_length=len(old),
        old_sha256=digest(old),
        new_length=len(new) if length is None else length,
        new_sha256=digest(new),
        streams=tuple(stream for stream, _ in parts),
    )
    return header.to_bytes() + b"".join(data for _, data in parts)


def _part(kind: int, width: int, data: bytes) -> tuple[Stream, bytes]:
    frame = zstandard.ZstdCompressor().compress(data)
    return Stream(kind, width, 0, len(frame), len(data)), frame
