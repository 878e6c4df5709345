"""Converters: model -> payload of one engine; one module each, imported only when a target asks for it.

To add one: write ``converters/<engine>.py`` with a class that satisfies `Converter`, and name it in
``_BUILTIN``. A converter that lives elsewhere registers under the entry point group
``edgec.converters``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import onnx

from edgec.artifact import EngineSpec
from edgec.compiler.pruning.patterns import Pattern
from edgec.errors import ConversionError
from edgec.errors.extras import import_advice, import_cause
from edgec.targets import Engine, Target

if TYPE_CHECKING:
    from edgec.compiler.calibration import CalibrationTable

_BUILTIN = {
    "litert": "edgec.compiler.converters.litert:LiteRtConverter",
    "onnxruntime": "edgec.compiler.converters.onnxruntime:OnnxRuntimeConverter",
    "openvino": "edgec.compiler.converters.openvino:OpenVinoConverter",
    "tensorrt": "edgec.compiler.converters.tensorrt:TensorRtConverter",
}


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """What a converter that quantizes by itself goes by.

    Attributes:
        table: Ranges of the tensors of the model; None for precisions that need none.
        method: How ranges are taken from it, one of ``edgec.compiler.ranges.METHODS``.
        exclude: Names of nodes that stay in float.
        activation_bits: That activations are rounded to: 8 or 16.
        products_only: Whether only matrix products compute in integers, as transformers want it.
    """

    table: CalibrationTable | None = None
    method: str = "minmax"
    exclude: tuple[str, ...] = ()
    activation_bits: int = 8
    products_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model made ready for one precision: what a converter turns into a payload.

    Attributes:
        model: In fp32, in fp16, or with explicit Q/DQ, as `precision` asks; in fp32 for converters that
            quantize by themselves.
        precision: One of ``edgec.artifact.PRECISIONS``.
        weights_from: Directory of the external data of a model above 2 GB; None otherwise.
        quantities: For converters that quantize by themselves, the ones with a true ``quantizes``.
        sparsity: The pattern of zeros in its weights, where it was given one; None otherwise.
        environments: Where converters have environments of their own; None where none may be used.
        timeout_s: For a converter in such an environment.
    """

    model: onnx.ModelProto
    precision: str
    weights_from: Path | None = None
    quantities: Quantities | None = None
    sparsity: Pattern | None = None
    environments: Path | None = None
    timeout_s: float = 900.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How fast a target's own toolchain takes a payload to be.

    Attributes:
        latency_ms: Of one inference.
        source: Who says so, and for what, in words.
        figures: What else it says, by the names of `edgec.compiler.report.EstimateInfo`: ``cycles``.
    """

    latency_ms: float
    source: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a converter made.

    Attributes:
        files: Members of the artifact by name, in the order in which they are to be stored.
        engine: How the target runs them.
        fallback: What else may run them; None where nothing may.
        recipe: How the device finishes the build; empty where nothing is to be done.
        not_run: What could not be run here, in plain sentences.
        notes: What the user should know of it, in plain sentences.
        estimate: Of its speed; None where the toolchain gives none.
    """

    files: Mapping[str, Path]
    engine: EngineSpec
    fallback: EngineSpec | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    not_run: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    estimate: Estimate | None = None


class Converter(Protocol):
    """One engine's converter.

    Attributes:
        precisions: What it can build, as ``edgec.artifact.PRECISIONS`` names it.

    One that quantizes by itself has a true attribute ``quantizes``, and is given the float model with its
    `Quantities` in place of a Q/DQ graph.
    """

    precisions: tuple[str, ...]

    def prepare(self, model: onnx.ModelProto, precision: str, target: Target) -> onnx.ModelProto:
        """Return a model as this engine wants it for `precision`, a quantized one excepted.

        Quantized models are made once per scheme, by the compiler, and pass through unchanged.

        Raises:
            ConversionError: The precision cannot be reached.
        """
        ...

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        """Write the payload into `directory`, which exists and is empty.

        Raises:
            ConversionError: The engine refuses the model.
        """
        ...

    def version(self) -> str:
        """Return the version of the toolchain that converts."""
        ...


@runtime_checkable
class Casting(Protocol):
    """A converter whose models are typed: fp16 is in the graph, and some operators can stay in fp32."""

    def to_half(self, model: onnx.ModelProto, target: Target, keep_fp32: Collection[str]) -> onnx.ModelProto:
        """Return a model typed float16, with or without explicit Q/DQ.

        Args:
            model: In fp32.
            target: What it is for.
            keep_fp32: Names of nodes that stay in float32, between casts.

        Raises:
            ConversionError: It cannot be typed.
        """
        ...


def fallback_spec(target: Target, precision: str, files: tuple[str, ...]) -> EngineSpec | None:
    """Return how the target's fallback runs the same members; None where it has none for `precision`."""
    fallback = target.fallback
    if fallback is None or precision not in fallback.precisions:
        return None
    return EngineSpec(
        name=fallback.name, version=fallback.version, device=fallback.device, precision=precision, files=files
    )


def get_converter(name: str) -> Converter:
    """Return the converter of the engine called `name`.

    Raises:
        ConversionError: There is none, or its library is not installed or does not load.
    """
    reference = _BUILTIN.get(name)
    if reference is None:
        found = entry_points(group="edgec.converters", name=name)
        if not found:
            raise ConversionError(
                f"this edgec builds nothing for the engine {name!r} yet; it builds for: {', '.join(_BUILTIN)}"
            )
        reference = next(iter(found)).value
    module, _, attribute = reference.partition(":")
    try:
        converter: Converter = getattr(import_module(module), attribute)()
    except (ImportError, OSError, MemoryError) as e:  # a library that it needs is missing, or memory is short
        if isinstance(e, ModuleNotFoundError) and e.name is not None:
            if e.name.startswith("edgec."):
                raise
            raise ConversionError(
                f"compiling for {name} needs {e.name!r}, which is not installed: "
                f"run  pip install 'edgec[{name}]'"
            ) from e
        advice = import_advice(e, f"run  pip install --force-reinstall 'edgec[{name}]'")
        raise ConversionError(
            f"compiling for {name} cannot import its engine ({import_cause(e)}): {advice}"
        ) from e
    return converter
