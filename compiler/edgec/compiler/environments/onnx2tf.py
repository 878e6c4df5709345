"""ONNX to float TFLite by onnx2tf in its own environment, for operators that edgec's writer lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgec.compiler.environments._process import call_worker
from edgec.compiler.environments._store import EnvironmentStore
from edgec.compiler.environments._table import get_environment
from edgec.errors import ConversionError

_WORKER = Path(__file__).with_name("workers") / "to_tflite.py"


def convert_with_onnx2tf(
    model: Path,
    directory: Path,
    store: EnvironmentStore,
    *,
    keep: Sequence[str] = (),
    timeout_s: float = 900.0,
) -> Path:
    """Convert an ONNX model to a float32 TFLite file; the caller compares what it computes.

    onnx2tf is silently wrong on some models (a bidirectional LSTM, for one), and wants simplified ones.

    Args:
        model: The file, simplified.
        directory: Where results go; must be there.
        store: Where environments are.
        keep: Names of inputs that keep their axes; others of three or four axes become channels-last.
        timeout_s: For the conversion.

    Returns:
        The path of the TFLite file in `directory`.

    Raises:
        MissingEnvironmentError: onnx2tf is not installed: ``edgec doctor --install onnx2tf``.
        ConversionError: It refuses the model, crashes, or takes too long.
    """
    python = store.python(get_environment("onnx2tf"))
    request = {"source": str(model.resolve()), "output": str(directory.resolve()), "keep": list(keep)}
    answer = call_worker(python, _WORKER, request, timeout_s=timeout_s, what="onnx2tf")
    if answer.result is None:
        said = f"{answer.error_type}: {answer.message[:240]}"
        raise ConversionError(f"onnx2tf cannot convert {model}: {said}{answer.last_lines}")
    made = Path(str(answer.result["file"]))
    if made.parent != directory.resolve() or not made.is_file():
        raise ConversionError(f"onnx2tf names {made}, which is no file in {directory}")
    return made
