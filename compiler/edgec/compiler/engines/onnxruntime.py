"""ONNX Runtime: every float tensor of a model for a sample, and what it says of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from edgec.compiler.model import first_line, real_inputs, walk_nodes
from edgec.errors import UnsupportedModelError

Sample = Mapping[str, NDArray[Any]]

_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)"}


class Recorder:
    """Runs a model so that every float tensor of it can be seen, a bounded number of bytes at a time."""

    def __init__(self, model: onnx.ModelProto, weights_from: Path | None, chunk_bytes: int) -> None:
        self._graph, self._weights = _apart(model, weights_from)
        self._chunk_bytes = chunk_bytes
        self._float_inputs = [
            i.name
            for i in real_inputs(model)
            if i.type.tensor_type.elem_type
            in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        ]
        self._planned_for = -1
        self._sessions: list[tuple[Any, list[str]]] = []

    def record(self, sample: Sample) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the graph's float inputs, then every float tensor that its nodes make of them."""
        for name in self._float_inputs:
            yield name, sample[name]
        size = sum(a.nbytes for a in sample.values())
        if size > self._planned_for:  # larger tensors than the chunks were planned for
            self._plan(sample)
            self._planned_for = size
        for session, names in self._sessions:
            yield from zip(names, _run(session, names, sample), strict=True)

    def _plan(self, sample: Sample) -> None:
        self._sessions.clear()
        chunks: list[list[str]] = [[]]
        room = self._chunk_bytes
        for name, nbytes in self._sizes(sample).items():
            if nbytes > room and chunks[-1]:
                chunks.append([])
                room = self._chunk_bytes
            chunks[-1].append(name)
            room -= nbytes
        self._sessions = [(self._open(self._with_outputs(names)), names) for names in chunks if names]

    def _sizes(self, sample: Sample) -> dict[str, int]:
        """Return the bytes of every float tensor that the nodes make, in their order.

        ONNX Runtime infers what onnx's own inference does not know, of contributed operators too. A
        tensor whose size depends on values is taken to be as large as the largest of the others.
        """
        names = [name for node in self._graph.graph.node for name in node.output if name]
        probe = self._with_outputs(names)
        for value in probe.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, sample[value.name].shape, strict=True):
                dim.dim_value = size
        shapes = {o.name: o.shape for o in self._open(probe).get_outputs() if o.type in _FLOATS}
        known = {
            name: 4 * math.prod(shape)
            for name, shape in shapes.items()
            if all(isinstance(n, int) for n in shape)
        }
        largest = max(known.values(), default=self._chunk_bytes // 8)
        return {name: known.get(name, largest) for name in names if name in shapes}

    def _with_outputs(self, names: list[str]) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(self._graph)
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return copy

    def _open(self, graph: onnx.ModelProto) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Packed copies of the weights and memory kept for the next run, one set per session, would break
        # the bound on memory.
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
        try:
            return ort.InferenceSession(
                graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # the binding's exceptions share no base but Exception
            raise UnsupportedModelError(
                f"ONNX Runtime {ort.__version__} cannot load the model to calibrate it: {first_line(str(e))}"
            ) from e


def _run(session: Any, names: list[str], sample: Sample) -> Iterator[NDArray[Any]]:
    feed = {name: ort.OrtValue.ortvalue_from_numpy(np.asarray(a, order="C")) for name, a in sample.items()}
    try:
        values = session.run_with_ort_values(names, feed)
    except Exception as e:  # as above
        raise UnsupportedModelError(f"the model fails on a calibration sample: {first_line(str(e))}") from e
    # The arrays are copies of the values: one at a time, or the bound on memory would be twice as high.
    values.reverse()
    while values:
        yield values.pop().numpy()


def _apart(model: onnx.ModelProto, weights_from: Path | None) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the graph with its large weights marked as external, and these as values that sessions share."""
    graph = onnx.ModelProto()
    graph.ir_version = model.ir_version
    graph.opset_import.extend(model.opset_import)
    graph.functions.extend(model.functions)
    # Old models list initializers among the inputs, which makes them overridable and not shareable.
    graph.graph.input.extend(real_inputs(model))
    graph.graph.node.extend(model.graph.node)
    graph.graph.name = model.graph.name
    graph.graph.output.extend(model.graph.output)
    graph.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    weights: dict[str, Any] = {}
    used = {name for node in walk_nodes(model.graph) for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name not in used:
            continue  # ONNX Runtime drops it, and then complains that it is gone
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if not external and (tensor.ByteSize() < 1024 or tensor.data_type == onnx.TensorProto.STRING):
            graph.graph.initializer.append(tensor)
            continue
        array = _mapped(tensor, weights_from) if external else onnx.numpy_helper.to_array(tensor)
        weights[tensor.name] = ort.OrtValue.ortvalue_from_numpy(array)
        stub = graph.graph.initializer.add(
            name=tensor.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        stub.external_data.add(key="location", value="shared")
    return graph, weights


def _mapped(tensor: onnx.TensorProto, weights_from: Path | None) -> NDArray[Any]:
    if weights_from is None:
        raise UnsupportedModelError(
            f"tensor {tensor.name!r} lies outside the model: load the model with its external data"
        )
    info = ExternalDataInfo(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(
        weights_from / info.location, dtype, mode="c", offset=info.offset or 0, shape=tuple(tensor.dims)
    )


class OnnxRuntimeJudge:
    """Asks ONNX Runtime to make a session, with optimizations off."""

    title = "ONNX Runtime"

    def refusal(self, model: onnx.ModelProto | Path, *, compile_too: bool = True) -> str | None:
        """Return why the model is refused, in one line; None where it is taken. It reads as it compiles."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # noqa: BLE001  the binding's exceptions share no base but Exception
            return _reason(str(e))
        return None

    def version(self) -> str:
        """Return the version that judges."""
        return str(ort.__version__)


def _reason(message: str) -> str:
    # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Erf(13) node ..."
    line = first_line(message).rpartition("failed:")[2]
    line = re.sub(r"^(\[ONNXRuntimeError\] : )?(\d+ : [A-Z_]+ : )?(Fatal error: )?", "", line)
    return re.sub(r" node with name '[^']*'", "", line).removeprefix("This is an invalid model. ").strip()
