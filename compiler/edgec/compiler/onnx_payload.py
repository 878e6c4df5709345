"""ONNX as payload: the graph in one member, its weights in another that can be memory-mapped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper as external
from onnx import numpy_helper

from edgec.artifact import atomic_write

GRAPH = "model.onnx"
WEIGHTS = "weights.bin"
_SMALL_BYTES = 1024  # smaller tensors stay in the graph: engines read shapes and scales from there
_ALIGNMENT = 64


def write_onnx_payload(
    model: onnx.ModelProto, directory: Path, weights_from: Path | None = None
) -> dict[str, Path]:
    """Write a model as members of an artifact.

    Args:
        model: Left as it is.
        directory: Where the files go.
        weights_from: Directory of the model's external data, where it has any.

    Returns:
        The files by name of the member; the weights first, for they change least in place.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    weights, offset = directory / WEIGHTS, 0
    with atomic_write(weights) as f:
        for tensor in _own_tensors(graph):
            if external.uses_external_data(tensor) and weights_from is not None:
                external.load_external_data_for_tensor(tensor, str(weights_from))
            raw = _raw(tensor)
            if raw is None:
                continue
            f.write(b"\0" * (-offset % _ALIGNMENT))
            offset += -offset % _ALIGNMENT
            f.write(raw)
            _point_to(tensor, offset, len(raw))
            offset += len(raw)
    with atomic_write(directory / GRAPH) as f:
        f.write(graph.SerializeToString(deterministic=True))
    if offset == 0:
        weights.unlink()
        return {GRAPH: directory / GRAPH}
    return {WEIGHTS: weights, GRAPH: directory / GRAPH}


def _own_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    # Initializers of subgraphs stay where they are: not every engine resolves external data there.
    yield from model.graph.initializer


def _raw(tensor: onnx.TensorProto) -> bytes | None:
    """Return the little-endian bytes of a tensor that is worth moving out of the graph."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    raw: bytes = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    if not tensor.HasField("raw_data") and sys.byteorder == "big":
        raw = numpy_helper.to_array(tensor).byteswap().tobytes()
    return raw if len(raw) >= _SMALL_BYTES else None


def _point_to(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
