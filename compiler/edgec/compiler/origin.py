"""Where a model came from, and how exactly it was taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model's source in another framework.

    Attributes:
        framework: ``TFLite``, ``Keras``, ``SavedModel`` or ``PyTorch``.
        file: As it was given.
        sha256: Of the file; of a directory, of all its files in the order of their names.
        tools: Versions of what converted it.
        comparison: How exact the ONNX model is, in words.
        samples: Made-up inputs that both ran on.
        outputs: Figures of each output: ``name``, ``max_abs_error``, ``tolerance``, ``snr_db`` (None where
            all values are the same).
    """

    framework: str
    file: str
    sha256: str
    tools: Mapping[str, str]
    comparison: str
    samples: int
    outputs: tuple[Mapping[str, Any], ...]

    @property
    def sentence(self) -> str:
        """What a report says of it."""
        by = ", ".join(f"{name} {version}" for name, version in self.tools.items())
        return f"the source is {self.framework}, taken over to ONNX by {by}: {self.comparison}"

    def to_dict(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return {**asdict(self), "outputs": [dict(o) for o in self.outputs]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Origin:
        """Return what `to_dict` gave.

        Raises:
            TypeError: It is something else.
        """
        return Origin(**{**data, "outputs": tuple(data["outputs"])})
