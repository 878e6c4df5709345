"""OpenVINO: what it says of a model."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import openvino as ov

from edgec.compiler.model import first_line

# Lines that name OpenVINO's own source files and nothing of the model.
_NOISE = re.compile(
    r"^(Exception from|Check '|FrontEnd API failed|Model wasn't fully converted|Summary:|Failed op)"
)
_NO_RULE = re.compile(r"No conversion rule found for operations: (?P<names>.*)")


class OpenVinoJudge:
    """Asks OpenVINO's ONNX frontend to convert the model, and its CPU plugin to compile what came out."""

    title = "OpenVINO"

    def refusal(self, model: onnx.ModelProto | Path, *, compile_too: bool = True) -> str | None:
        """Return why the model is refused, in one line; None where it is taken."""
        core = ov.Core()
        try:
            converted = core.read_model(str(model) if isinstance(model, Path) else model.SerializeToString())
            if compile_too:
                core.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as e:  # what ov::Exception becomes
            return openvino_reason(str(e))
        return None

    def version(self) -> str:
        """Return the version that judges, without its build."""
        return str(ov.__version__).split("-", maxsplit=1)[0]


def openvino_reason(message: str) -> str:
    """Return the sentence of an OpenVINO message that speaks of the model."""
    if (rule := _NO_RULE.search(message)) is not None:
        return f"there is no conversion rule for {rule['names'].strip()}"
    lines = [line.strip() for line in message.splitlines()]
    telling = [line for line in lines if line and not _NOISE.match(line) and not line.startswith("--")]
    telling = [line for line in telling if not line.startswith("While validating")]
    # The name of an operation is made up by the frontend where the node has none.
    return re.sub(r"\s*Operation name: .*", "", first_line("\n".join(telling or lines)))
