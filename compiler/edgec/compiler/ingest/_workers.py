"""What readers that work through an environment share."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler import environments
from edgec.compiler.environments import Answer, call_worker, get_environment
from edgec.compiler.ingest._kinds import Request, Taken
from edgec.compiler.model import first_line
from edgec.errors import ConversionError, UnsupportedModelError

OPSET = 17
SAMPLES = 4
_LONGEST = 240
_ADVICE = {
    "`Lambda` layer": "edgec runs no code that is in a model file: give a SavedModel, of model.export()",
    "No model config found": "the file has weights only: give what model.save('model.keras') writes",
}


def worker(name: str) -> Path:
    """Return the path of a worker."""
    return Path(environments.__file__).with_name("workers") / f"{name}.py"


def result_of(answer: Answer, source: Path, what: str) -> Mapping[str, Any]:
    """Return what a worker made of a model.

    Raises:
        UnsupportedModelError: It refuses the model, in words of its framework.
    """
    if answer.result is None:
        said = first_line(answer.message)
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        advice = next((f"; {fix}" for sign, fix in _ADVICE.items() if sign in answer.message), "")
        raise UnsupportedModelError(f"{what} cannot convert {source}: {answer.error_type}: {said}{advice}")
    return answer.result


def take_in_environment(request: Request, environment: str, name: str, opset: int) -> Taken:
    """Convert a model and run it, both in an environment.

    Raises:
        MissingEnvironmentError: It is not installed.
        UnsupportedModelError: The framework refuses the model.
        ConversionError: The worker crashes, or takes too long.
    """
    python = request.store.python(get_environment(environment))
    request.progress(f"converting {request.source.name} to ONNX in the environment {environment!r}")
    samples = request.output.with_name("samples.npz")
    answer = call_worker(
        python,
        worker(name),
        {
            "source": str(request.source.resolve()),
            "output": str(request.output),
            "samples": str(samples),
            "count": SAMPLES,
            "opset": opset,
            "shapes": {n: list(s) for n, s in request.shapes.items()},
        },
        timeout_s=request.timeout_s,
        what=f"the environment {environment!r}",
    )
    result = result_of(answer, request.source, environment)
    arrays = _read(samples)
    samples.unlink()
    return Taken(
        tools=result["tools"],
        inputs=[_part(arrays, f"{n}/i/") for n in range(SAMPLES)],
        outputs=[_part(arrays, f"{n}/o/") for n in range(SAMPLES)],
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise ConversionError(f"what the framework computed cannot be read: {e}") from e


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
