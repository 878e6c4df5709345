"""Engines that run on this host, as the compiler asks them: one module each, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import onnx

from edgec.errors.extras import import_failed

_JUDGES = {
    "onnxruntime": "edgec.compiler.engines.onnxruntime:OnnxRuntimeJudge",
    "openvino": "edgec.compiler.engines.openvino:OpenVinoJudge",
}


class Judge(Protocol):
    """An engine's own verdict on a model.

    Attributes:
        title: What people call the engine.
    """

    title: str

    def refusal(self, model: onnx.ModelProto | Path, *, compile_too: bool = True) -> str | None:
        """Return why the engine refuses the model, in one line; None where it takes it.

        Args:
            model: Or where it lies, if its weights are too large for one protobuf message.
            compile_too: Whether to go on from reading the model to making it ready to run, where these are
                two steps.
        """
        ...

    def version(self) -> str:
        """Return the version that judges."""
        ...


def find_judge(engine: str) -> Judge | None:
    """Return the judge of an engine; None where the engine does not run on this host.

    Raises:
        BrokenExtraError: Its package is installed and does not load; without it, others would judge unseen.
    """
    reference = _JUDGES.get(engine)
    if reference is None:
        return None
    module, _, attribute = reference.partition(":")
    try:
        judge: Judge = getattr(import_module(module), attribute)()
    except (ImportError, OSError, MemoryError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name is not None:
            if e.name.startswith("edgec."):
                raise
            return None
        raise import_failed(f"the verdict of {engine}", e, engine) from e
    return judge
