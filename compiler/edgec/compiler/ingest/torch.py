"""Programs of torch.export, through PyTorch's own exporter in its own environment."""

from __future__ import annotations

from edgec.compiler.ingest._kinds import Request, Taken
from edgec.compiler.ingest._workers import take_in_environment

_OPSET = 18  # what the exporter writes without converting downwards


def take(request: Request) -> Taken:
    """Convert a program, and run it.

    Raises:
        MissingEnvironmentError: There is no PyTorch.
        UnsupportedModelError: PyTorch refuses it.
        ConversionError: The worker crashes, or takes too long.
    """
    return take_in_environment(request, "torch", "from_torch", _OPSET)
