"""Source models as something to run, for comparing artifacts with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.ingest import load_source
from edgec.compiler.model import SourceModel
from edgec.compiler.onnxruntime import reference_program, version


class SourceProgram:
    """An ONNX model in ONNX Runtime, fp32, one thread, optimizations off.

    Attributes:
        inputs: What `run` takes.
        outputs: What `run` gives.
        engine: ``onnxruntime``.
        engine_version: Version of ONNX Runtime.
    """

    engine = "onnxruntime"

    def __init__(self, source: SourceModel) -> None:
        """Use `open_source`."""
        self.inputs = source.inputs
        self.outputs = source.outputs
        self.engine_version = version()
        self._program = reference_program(source)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once, and return one array per output.

        Raises:
            InputError: A name, dtype or shape differs from `inputs`.
            UnsupportedModelError: The model fails on these inputs.
        """
        for spec in self.inputs:
            spec.check(inputs[spec.name])
        return self._program.run(inputs)

    def close(self) -> None:
        """Free the model."""
        self._program.close()

    def __enter__(self) -> SourceProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    home: Path | None = None,
) -> SourceProgram:
    """Open a model to compare with: ONNX, or of another framework as ONNX.

    Raises:
        ModelError: It cannot be read, or is not valid ONNX.
        UnsupportedModelError: ONNX Runtime refuses it.
    """
    return SourceProgram(load_source(Path(path), shapes, home=home))
