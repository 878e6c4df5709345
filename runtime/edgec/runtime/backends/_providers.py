"""Which execution providers ONNX Runtime is asked for, with which options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgec.artifact import EngineSpec
from edgec.errors import BackendUnavailableError
from edgec.runtime.backends import LoadOptions

_SUFFIX = "ExecutionProvider"
CPU = "CPU"
# Providers for the device GPU, the one that is tried first in front.
_GPU = ("Tensorrt", "CUDA")
Providers = list["tuple[str, dict[str, str]]"]


def choose_providers(
    spec: EngineSpec, options: LoadOptions, available: Collection[str], version: str
) -> Providers:
    """Return providers and their options, the one that is tried first in front, the CPU last.

    What the application names comes first, and all of it must be there. Where it names none, the artifact's
    device decides: ``CPU``, or ``GPU`` for TensorRT and CUDA, as far as they are there.

    Args:
        spec: What the artifact says.
        options: What the application says: `LoadOptions.providers`.
        available: Of `onnxruntime.get_available_providers`.
        version: Of ONNX Runtime.

    Raises:
        BackendUnavailableError: A provider is not in this build of ONNX Runtime, or the device is unknown.
    """
    there = [name.removesuffix(_SUFFIX) for name in available]
    if options.providers:
        asked = {name.removesuffix(_SUFFIX): given for name, given in options.providers.items()}
        missing = [name for name in asked if name not in there]
        if missing:
            raise BackendUnavailableError(
                f"ONNX Runtime {version} has no {' and no '.join(missing)} here, only {', '.join(there)}: "
                f"{_remedy(missing)}"
            )
    elif spec.device == CPU:
        asked = {}
    elif spec.device == "GPU":
        asked = {name: {} for name in _GPU if name in there}
        if not asked:
            raise BackendUnavailableError(
                f"ONNX Runtime {version} reaches no GPU here, only {', '.join(there)}: {_remedy(_GPU)}"
            )
    else:
        raise BackendUnavailableError(
            f"expected the device CPU or GPU for ONNX Runtime, got {spec.device!r}: compile for a target "
            "that it runs"
        )
    chosen = [
        (name + _SUFFIX, {**_defaults(name, spec, options), **{key: _text(v) for key, v in given.items()}})
        for name, given in asked.items()
    ]
    return chosen if CPU in asked else [*chosen, (CPU + _SUFFIX, {})]


def asked_device(options: LoadOptions) -> str | None:
    """Return the provider that the application wants the model to run on; None where it named none."""
    return next((name.removesuffix(_SUFFIX) for name in options.providers), None)


def check_started(providers: Providers, started: Collection[str], version: str) -> None:
    """Do nothing if all providers run: one whose libraries or device are missing is left out silently.

    Raises:
        BackendUnavailableError: One does not.
    """
    left_out = [name.removesuffix(_SUFFIX) for name, _ in providers if name not in started]
    if left_out:
        raise BackendUnavailableError(
            f"ONNX Runtime {version} has {', '.join(left_out)}, which does not start here: its libraries "
            "(CUDA, cuDNN, TensorRT) or its device are missing, or of another version than it was built for"
        )


def _defaults(name: str, spec: EngineSpec, options: LoadOptions) -> dict[str, str]:
    """Return options that follow from the artifact's promise, and from where engines are kept."""
    if name == "CUDA":
        # Matrix products in TF32 have 10 bits of mantissa, which is no fp32.
        return {"use_tf32": "0"} if spec.precision == "fp32" else {}
    if name != "Tensorrt":
        return {}
    chosen = {
        "trt_fp16_enable": _text(spec.precision in ("fp16", "mixed")),
        "trt_int8_enable": _text(spec.precision in ("int8", "mixed")),
    }
    if options.cache_dir is not None:
        place = str(options.cache_dir)
        chosen |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": place}
        chosen |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": place}
    return chosen


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _remedy(missing: Collection[str]) -> str:
    if set(missing) & set(_GPU):
        return (
            "run  pip install onnxruntime-gpu  in place of onnxruntime (on a Jetson: the wheel for its "
            "JetPack), or load without them"
        )
    return "install the build of ONNX Runtime that has it, or load without it"


def check_options(providers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError where an option is no text, number or truth value."""
    for name, given in providers.items():
        for key, value in given.items():
            if not isinstance(value, (str, int, float)):
                raise ValueError(
                    f"expected text or a number for the option {key!r} of {name}, got {type(value).__name__}"
                )
