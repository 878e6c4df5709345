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
        smooth: How much of the difficulty of activations goes to the weights of matrix products, 0 to 1; what
            is between the products stays in float then. None for models that are no transformers.
        equalize: Whether channels between layers are brought to similar ranges first.
        correct_bias: Whether biases make up for what quantization shifts on average.
        exclude: Names of nodes that stay in higher precision, sorted.
        narrow_weights: Whether weights use 7 bits, for CPUs on which sums of products saturate otherwise.
        products_only: Whether only layers with weights are in int8, and what is between them in float, as
            the state of recurrent cells may need. Transformers, with `smooth`, are so anyway.
    """

    precision: str
    method: str = "mse"
    smooth: float | None = None
    equalize: bool = False
    correct_bias: bool = True
    exclude: tuple[str, ...] = ()
    narrow_weights: bool = False
    products_only: bool = False

    @property
    def passes_on(self) -> bool:
        """Whether operators without weights are in int8 where int8 comes in."""
        return self.smooth is None and not self.products_only

    @property
    def name(self) -> str:
        """The precision, and what differs from its usual recipe: ``int8 (percentile, 2 in float)``."""
        # Transformers have outliers that must not be clipped, and no biases of their own after products;
        # 16 bits have room for outliers, and next to nothing to correct.
        usual = self.smooth is None and self.precision != "int16x8"
        method, correct_bias = ("mse", True) if usual else ("minmax", False)
        extras = [] if self.method == method else [self.method]
        if self.smooth is not None:
            extras.append(f"smooth {self.smooth:g}")
        if self.equalize:
            extras.append("equalized")
        if self.correct_bias != correct_bias:
            extras.append("bias corrected" if self.correct_bias else "biases as they are")
        if self.narrow_weights:
            extras.append("7-bit weights")
        if self.products_only:
            extras.append("products only")
        if self.exclude:
            extras.append(f"{len(self.exclude)} in float")
        return f"{self.precision} ({', '.join(extras)})" if extras else self.precision
