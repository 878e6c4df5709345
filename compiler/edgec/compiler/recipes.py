"""Recipes: how a model is made ready for a precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is made ready for a precision.

    Attributes:
        precision: One of ``edgec.artifact.PRECISIONS``.
        method: How quantization ranges are taken from the calibration table, one of
            ``edgec.compiler.ranges.METHODS``.
        exclude: Names of nodes that stay in higher precision, sorted.
    """

    precision: str
    method: str = "minmax"
    exclude: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The precision, and what differs from its usual recipe: ``int8 (percentile, 2 in float)``."""
        extras = [] if self.method == "minmax" else [self.method]
        if self.exclude:
            extras.append(f"{len(self.exclude)} in float")
        return f"{self.precision} ({', '.join(extras)})" if extras else self.precision
