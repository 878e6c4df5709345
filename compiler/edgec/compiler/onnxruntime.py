"""The reference: the source model in ONNX Runtime, fp32, one thread, optimizations off.

What the source computes is by definition what this computes; every artifact is held against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.compiler.model import SourceModel, first_line, walk_nodes
from edgec.errors import UnsupportedModelError

_STRUCTURAL_INPUTS = {
    "Resize": (1, 2),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "NonMaxSuppression": (3, 4),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
}

# As in the runtime: weights that a Q/DQ graph leaves in float stay in float.
DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]

Arrays = Mapping[str, NDArray[Any]]


class ReferenceProgram:
    """A model in ONNX Runtime with every optimization off, so that it computes node by node as written.

    Attributes:
        outputs: Names of what `run` gives.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model, so there is nothing to compare with.
    """

    def __init__(self, model: onnx.ModelProto | Path, *, optimize: bool = False, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait for work by turning round take the cores of the workers beside them: of a
        # quantized source, run as it is written, half of the CPU time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            self._session: Any = ort.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
            )
        except Exception as e:  # the binding's exception classes share no base but Exception
            raise UnsupportedModelError(
                f"ONNX Runtime {ort.__version__} cannot run the model, so nothing can be proven about it: "
                f"{first_line(str(e))}"
            ) from e
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run once.

        Raises:
            UnsupportedModelError: The model fails on these inputs.
        """
        try:
            values = self._session.run(self.outputs, dict(inputs))
        except Exception as e:  # as above
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise UnsupportedModelError(
                f"the model fails in ONNX Runtime on inputs of the shapes {shapes}: {first_line(str(e))}; "
                "where dynamic dimensions were guessed, pin them with --shape or give --calibration"
            ) from e
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        self._session = None

    def __enter__(self) -> ReferenceProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reference_program(source: SourceModel, *, optimize: bool = False) -> ReferenceProgram:
    """Open a source model; one with large external data is read from where it lies."""
    if source.large:
        return ReferenceProgram(source.path, optimize=optimize)
    return ReferenceProgram(source.proto, optimize=optimize)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a model that also gives the named inner tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {o.name for o in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def version() -> str:
    """Return the version of ONNX Runtime."""
    return str(ort.__version__)


def perturbed(model: onnx.ModelProto, roundoff: float, seed: int) -> onnx.ModelProto:
    """Return a copy whose float weights are off by one unit roundoff each, up or down at random.

    Args:
        model: With its weights inside.
        roundoff: Relative change of a weight: ``2**-24`` for fp32.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    structural = _structural_constants(copy)
    for tensor in copy.graph.initializer:
        if tensor.name not in structural and tensor.data_type in (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.DOUBLE,
            onnx.TensorProto.FLOAT16,
        ):
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(perturb(array, roundoff, rng), tensor.name))
    return copy


def _structural_constants(model: onnx.ModelProto) -> set[str]:
    """Return the names of the floats that decide shapes or steps, such as the scales of a Resize."""
    return {
        name
        for node in walk_nodes(model.graph)
        for position in _STRUCTURAL_INPUTS.get(node.op_type, ())
        for name in node.input[position : position + 1]
    }


def perturb(array: NDArray[Any], roundoff: float, rng: np.random.Generator) -> NDArray[Any]:
    """Return a copy of a float array with every value off by one unit roundoff, up or down at random."""
    sign = rng.integers(0, 2, array.shape, dtype=np.int8) * 2.0 - 1.0
    noisy: NDArray[Any] = (array * (1.0 + roundoff * sign)).astype(array.dtype)
    return noisy
