"""What an engine raised, as an error of edgec: whether memory was short is what callers act on."""

from __future__ import annotations

import re

from edgec.errors import DeviceMemoryError, InferenceError

# Of ONNX Runtime on CPU and GPU, OpenVINO, TensorRT and the C++ library; none of them has a class for it.
_SIGNS = (
    "failed to allocate",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "is smaller than requested bytes",
    "std::length_error",
)
_ASKED = re.compile(r"(?:failed to allocate|buffer of size|requested bytes of) *:? *(\d+)", re.IGNORECASE)


def engine_failure(engine: str, said: str, error: BaseException) -> InferenceError:
    """Return what to raise where an engine failed in a call.

    Args:
        engine: Its name: ``ONNX Runtime``.
        said: The telling part of its message.
        error: What it raised.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(sign in text.lower() for sign in _SIGNS):
        return InferenceError(f"{engine} failed: {said}")
    sizes = [int(size) for size in _ASKED.findall(text)]
    asked = f", it asked for {sizes[-1] / 2**20:,.0f} MiB at once" if sizes else ""
    return DeviceMemoryError(
        f"{engine} has not the memory for this call{asked}: give smaller inputs or batches, or close what "
        f"else is loaded ({said})"
    )
