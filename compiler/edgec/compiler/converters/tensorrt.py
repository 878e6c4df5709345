"""TensorRT: the payload is a typed ONNX model and the recipe of its build; the device builds the engine.

An engine is tied to the version of TensorRT, the GPU and the system it is built on, and no builder runs
without an NVIDIA GPU. One path serves TensorRT 10 (JetPack 6) and 11 (JetPack 7): a strongly typed network,
int8 by explicit Q/DQ, fp16 by tensors typed float16, no builder flag that changes a precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx

from edgec.artifact import EngineSpec
from edgec.compiler.calibration import CalibrationTable
from edgec.compiler.converters import Converted, Prepared, fallback_spec
from edgec.compiler.lint import lint_tensorrt
from edgec.compiler.lint_sparsity import lint_two_of_four
from edgec.compiler.model import real_inputs, shape_option
from edgec.compiler.onnx_payload import GRAPH, WEIGHTS, write_onnx_payload
from edgec.compiler.passes.fit_limits import fit_limits
from edgec.compiler.precision import to_fp16
from edgec.compiler.pruning.patterns import TWO_OF_FOUR
from edgec.compiler.quantization import quantize_static
from edgec.errors import CalibrationError, ConversionError, PassError
from edgec.targets import Engine, Target

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

_PLAN = "model.plan"
# [trt-dla] DLA takes strongly typed networks from 11.4.1 on, in fp16 here: its int8 has rules of its own.
_DLA_PRECISIONS = ("fp16",)
NOT_BUILT = (
    "the TensorRT engine is built on the device: no TensorRT runs here, so its build, speed and placement "
    "are not proven; the numerics of its ONNX are, in ONNX Runtime"
)


class TensorRtConverter:
    """Writes ``model.onnx`` and ``weights.bin``, typed as the network is to be, and the recipe."""

    precisions = ("fp32", "fp16", "int8", "mixed")
    mixes = "fp16"

    def prepare(self, model: onnx.ModelProto, precision: str, target: Target) -> onnx.ModelProto:
        """Return the model typed fp32 or fp16, in an opset that the target's TensorRT takes."""
        return build_typed_onnx(model, target, precision, None)

    def to_half(self, model: onnx.ModelProto, target: Target, keep_fp32: Collection[str]) -> onnx.ModelProto:
        """Return the model typed float16, but for nodes that are to stay in fp32."""
        return to_fp16(_fitted(model, target), keep_fp32=keep_fp32)

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        """Hold the model against TensorRT's rules, and write the members.

        Raises:
            ConversionError: It breaks a rule; all that it breaks are named.
        """
        model = _fitted(prepared.model, target)
        sparse = prepared.sparsity is not None and prepared.sparsity.kind == TWO_OF_FOUR
        findings = [*lint_tensorrt(model, target), *(lint_two_of_four(model) if sparse else ())]
        errors = [f for f in findings if f.severity == "error"]
        if errors:
            broken = "; ".join(f"{f.node}: {f.message} ({f.fix})" for f in errors)
            raise ConversionError(f"TensorRT would refuse the model: {broken}")
        files = write_onnx_payload(model, directory, prepared.weights_from)
        names = tuple(name for name in (GRAPH, WEIGHTS) if name in files)
        return Converted(
            files=files,
            engine=_spec(engine, prepared.precision, names),
            fallback=fallback_spec(target, prepared.precision, names),
            recipe=recipe(model, target, prepared.precision, sparse=sparse),
            not_run=(NOT_BUILT,),
        )

    def version(self) -> str:
        """Return ONNX's version: TensorRT itself runs on the device."""
        return str(onnx.__version__)


def build_typed_onnx(
    model: onnx.ModelProto,
    target: Target,
    precision: str,
    table: CalibrationTable | None,
    *,
    method: str = "minmax",
    exclude: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the model typed as TensorRT is to run it.

    Args:
        model: In fp32, weights inside; left as it is.
        target: Of the family ``tensorrt``.
        precision: ``fp32``; ``fp16``: every tensor that can be; ``int8``: Q/DQ by the target's scheme, the
            rest in fp32; ``mixed``: Q/DQ, the rest in fp16. Inputs and outputs stay as they are.
        table: Ranges for ``int8`` and ``mixed``.
        method: How ranges are taken from `table`.
        exclude: Names of nodes not to quantize.

    Raises:
        CalibrationError: Ranges are needed, and there are none.
        ConversionError: The precision cannot be reached.
    """
    model = _fitted(model, target)
    match precision:
        case "fp32":
            return model
        case "fp16":
            return to_fp16(model)
        case "int8" | "mixed":
            quantized = _quantized(model, target, table, method, exclude)
            return quantized if precision == "int8" else to_fp16(quantized)
        case _:
            raise ConversionError(f"TensorRT has no {precision} here: fp32, fp16, int8 or mixed")


def recipe(
    model: onnx.ModelProto,
    target: Target,
    precision: str,
    shapes: Mapping[str, Range] | None = None,
    *,
    sparse: bool = False,
) -> dict[str, Any]:
    """Return how the device builds the engine, as it stands in the manifest.

    Args:
        model: Typed, as it lies in the artifact.
        target: Of the family ``tensorrt``.
        precision: What `model` was typed for.
        shapes: Smallest, usual and largest shape of inputs with free dimensions. By default a free first
            dimension is 1 to 1; other free dimensions have no default.
        sparse: Whether the builder is to try sparse kernels for weights of which two of four are zero.

    Raises:
        ConversionError: An input has a free dimension and no range.
    """
    engine = target.engines[0]
    accelerator = dict(target.accelerator)
    workspace = int(accelerator.get("workspace_mib", target.memory_mib // 8))
    eleven = _is_eleven(engine)
    profile = _profile(model, shapes or {})
    dla = _dla(target, precision)
    return {
        "builder": "tensorrt",
        "version": engine.version,
        "onnx": GRAPH,
        "precision": precision,
        "network": {
            "strongly_typed": True,
            # Strong typing is the only kind in TensorRT 11, where the flag is gone or ignored.
            "creation_flags": [] if eleven else ["STRONGLY_TYPED"],
        },
        "config": {
            "memory_pools_mib": {"workspace": workspace},
            "builder_optimization_level": 3,
            "profiling_verbosity": "LAYER_NAMES_ONLY",
            # It allows sparse kernels; the builder times them against dense ones, layer by layer.
            **({"flags": ["SPARSE_WEIGHTS"]} if sparse else {}),
        },
        "memory_budget_mib": target.memory_mib,
        "profiles": [profile] if profile else [],
        "dla": dla,
        "requires": {
            "compute_capability": str(accelerator.get("compute_capability", "")),
            "jetpack": str(accelerator.get("jetpack", "")),
        },
        # What an engine, and the timings that led to it, are valid for: a cache is keyed by all of it.
        "engine_cache_key": [
            "artifact_digest",
            "tensorrt_version",
            "compute_capability",
            "cuda_version",
            "os",
            "profiles",
            "config",
            "dla",
        ],
        "timing_cache_key": [
            "tensorrt_version",
            "compute_capability",
            "cuda_version",
            "builder_optimization_level",
        ],
        "trtexec": _trtexec(eleven, workspace, profile, None, sparse),
        "trtexec_dla": _trtexec(eleven, workspace, profile, 0, sparse) if dla is not None else None,
    }


def _fitted(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    try:
        return fit_limits(model, target.limits)
    except PassError as e:
        raise ConversionError(str(e)) from e


def _quantized(
    model: onnx.ModelProto,
    target: Target,
    table: CalibrationTable | None,
    method: str,
    exclude: Collection[str],
) -> onnx.ModelProto:
    if table is None:
        raise CalibrationError("int8 needs calibration: give representative samples with --calibration")
    if target.quantization is None:
        raise ConversionError(f"the target {target.name} has no int8")
    return quantize_static(model, table, target.quantization, method=method, exclude=exclude)


def _spec(engine: Engine, precision: str, files: tuple[str, ...]) -> EngineSpec:
    return EngineSpec(
        name=engine.name, version=engine.version, device=engine.device, precision=precision, files=files
    )


def _is_eleven(engine: Engine) -> bool:
    # The lower bound of a version line such as ">=11.4.1,<12".
    lower = next((part[2:] for part in engine.version.split(",") if part.startswith(">=")), "0")
    return int(lower.split(".", maxsplit=1)[0]) >= 11


def _profile(model: onnx.ModelProto, shapes: Mapping[str, Range]) -> dict[str, dict[str, list[int]]]:
    found = {}
    for value in real_inputs(model):
        dims = value.type.tensor_type.shape.dim
        free = [axis for axis, d in enumerate(dims) if not d.HasField("dim_value")]
        if not free:
            continue
        if value.name in shapes:
            smallest, usual, largest = shapes[value.name]
        elif free == [0]:
            smallest = usual = largest = (1, *(d.dim_value for d in list(dims)[1:]))
        else:
            sizes = ",".join(str(d.dim_value or 1) for d in dims)
            raise ConversionError(
                f"input {value.name!r} has free dimensions beside the batch, and TensorRT needs a range for "
                f"them: pin it, for example {shape_option(value.name, sizes)}"
            )
        found[value.name] = {"min": list(smallest), "opt": list(usual), "max": list(largest)}
    return found


def _dla(target: Target, precision: str) -> dict[str, Any] | None:
    cores = int(dict(target.accelerator).get("dla_cores", 0))
    if cores == 0 or precision not in _DLA_PRECISIONS or not _is_eleven(target.engines[0]):
        return None
    return {"cores": cores, "gpu_fallback": True, "parser_flags": ["ADJUST_FOR_DLA"]}


def _trtexec(
    eleven: bool,
    workspace_mib: int,
    profile: Mapping[str, Mapping[str, list[int]]],
    dla_core: int | None,
    sparse: bool,
) -> str:
    """Return the command line of TensorRT's own tool that does the same."""
    words = ["trtexec", f"--onnx={GRAPH}", f"--saveEngine={_PLAN}"]
    if not eleven:
        words.append("--stronglyTyped")
    words += [f"--memPoolSize=workspace:{workspace_mib}", "--timingCacheFile=timing.cache", "--skipInference"]
    if sparse:
        words.append("--sparsity=enable")
    for flag, key in (("--minShapes", "min"), ("--optShapes", "opt"), ("--maxShapes", "max")):
        if profile:
            sizes = ",".join(f"{name}:{'x'.join(map(str, p[key]))}" for name, p in profile.items())
            words.append(f"{flag}={sizes}")
    if dla_core is not None:
        words += [f"--useDLACore={dla_core}", "--allowGPUFallback"]
    return " ".join(words)
