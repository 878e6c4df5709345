"""Weights that become zero, and the others that make up for them.

The order in which weights go, and what the rest of their row does about it, come from a second-order view of
one layer's output error, E = (w' - w) H (w' - w)' with H = X X' over calibration inputs: the "optimal brain
surgeon" (Hassibi and Stork, NIPS 1992) as SparseGPT makes it cheap (Frantar and Alistarh, ICML 2023). Columns
go from left to right; a weight w whose column has d on the diagonal of the Cholesky factor of the inverse of
what is left of H costs w^2 / d^2, and when it goes, w / d times that row of the factor is taken from the
columns to its right. H is damped; how much is chosen on a quarter of the samples.

Before its weights go, a layer is fitted to what the *original* network gives at its place, from what the
sparse one gives it: least squares as in `refit`. The error of that fit and of the sparse weights around it
add up, because the fit's residual is orthogonal to the inputs; so errors of earlier layers are made up for
too. Layers go in the order of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.pruning.linear import Linear, linear_layers
from edgec.compiler.pruning.patterns import TWO_OF_FOUR, Pattern
from edgec.compiler.pruning.pruner import lifted
from edgec.compiler.pruning.refit import LayerFit, Refit, Sums, refit_layers
from edgec.errors import CalibrationError, UnsupportedModelError

Arrays = Mapping[str, NDArray[Any]]
Matrix = NDArray[np.float64]

_DAMPINGS = (1e-2, 1e-1, 1.0)  # of the mean diagonal of H
_COLUMNS_AT_ONCE = 128  # after which the columns to the right are updated; a multiple of four


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """A model with weights of zero.

    Attributes:
        model: With the same inputs, outputs, names and shapes.
        pattern: Of the zeros.
        layers: What each layer that has them lost: `before` if weights had only been cut, by magnitude;
            `after` as it is.
        zeros: Share of the weights of all Conv, ConvTranspose, Gemm and MatMul that is zero.
    """

    model: onnx.ModelProto
    pattern: Pattern
    layers: tuple[Refit, ...]
    zeros: float


def sparsify(
    model: onnx.ModelProto,
    pattern: Pattern,
    samples: Sequence[Arrays],
    *,
    compensate: bool = True,
    seed: int = 0,
) -> Sparse:
    """Return the model with a pattern of zeros in the weights of every layer that it fits.

    Args:
        model: In float, weights inside; left as it is.
        pattern: Of the zeros.
        samples: Real inputs.
        compensate: Whether weights go by what they cost, and the others make up for them. Otherwise the
            smallest ones are cut.
        seed: Of the positions in large tensors that are looked at.

    Raises:
        CalibrationError: There are no samples.
        UnsupportedModelError: The pattern fits no layer.
    """
    if not samples:
        raise CalibrationError("pruning needs real inputs, and there are none: give --calibration")
    source = lifted(model)
    layers = linear_layers(source)
    chosen = [name for name, layer in layers.items() if pattern.fits(layer)]
    if not chosen:
        raise UnsupportedModelError(f"no layer can have {pattern} zeros: that takes a {pattern.wants}")

    def make(layer: Linear, place: str, _: bool, kept: NDArray[np.bool_] | None) -> LayerFit:
        return _SparseFit(layer, place, False, kept, pattern=pattern, compensate=compensate)

    made, done = refit_layers(source, source, {}, chosen, samples, seed, make=make)
    return Sparse(model=made, pattern=pattern, layers=done, zeros=_zeros(made))


def _zeros(model: onnx.ModelProto) -> float:
    weights = [layer.weight for layer in linear_layers(model).values()]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.size for w in weights))


class _SparseFit(LayerFit):
    """One layer, whose weights become zero where they cost least."""

    def __init__(
        self,
        layer: Linear,
        place: str,
        rectified: bool,
        kept: NDArray[np.bool_] | None,
        *,
        pattern: Pattern,
        compensate: bool,
    ) -> None:
        super().__init__(layer, place, rectified, kept)
        self._pattern, self._compensate = pattern, compensate
        # Where channels are neighbours: the kernel first, then the channels.
        columns, spread = self.matrix.shape[2], pattern.spread(layer)
        self._order = np.arange(columns).reshape(-1, spread).T.ravel()

    def solve(self) -> tuple[Matrix, Matrix, float, float]:
        """Return the change of weights and bias, and the errors of a plain cut and of this."""
        total, shift = self.total(), self.layer.can_shift
        cut = self._cut() - self.matrix
        plain = total.error(cut, np.zeros_like(total.r))
        if not self._compensate:
            return cut, np.zeros_like(total.r), plain, plain
        penalty = self.penalty(shift)
        best = self._change(total, penalty, self._damping(penalty, shift), shift)
        bias = total.bias(best, shift)
        return best, bias, plain, total.error(best, bias)

    def _damping(self, penalty: float | None, shift: bool) -> float:
        """Return the damping that does best on samples that it was not fitted to."""
        if not self.judging.rows:
            return _DAMPINGS[1]
        found = {}
        for damping in _DAMPINGS:
            change = self._change(self.fitting, penalty, damping, shift)
            found[damping] = self.judging.error(change, self.fitting.bias(change, shift))
        return min(found, key=lambda d: found[d])

    def _cut(self) -> Matrix:
        scores = np.square(self.matrix)
        return np.stack([self._zeroed(w, s) for w, s in zip(self.matrix, scores, strict=True)])

    def _zeroed(self, weights: Matrix, scores: Matrix) -> Matrix:
        kept = weights.copy()
        ordered = self._pattern.mask(scores[:, self._order])
        mask = np.zeros_like(ordered)
        mask[:, self._order] = ordered
        kept[mask] = 0
        return kept

    def _change(self, sums: Sums, penalty: float | None, damping: float, shift: bool) -> Matrix:
        """Return the change of the weights for some samples: the fit, then the zeros."""
        start = self.matrix
        if penalty is not None:
            start = start + sums.solve(penalty, shift)[0]
        moments = sums.moments(shift)
        made = np.empty_like(start)
        for part, (weights, hessian) in enumerate(zip(start, moments, strict=True)):
            ordered = hessian[np.ix_(self._order, self._order)]
            made[part][:, self._order] = _prune(weights[:, self._order], ordered, damping, self._pattern)
        return made - self.matrix


def _prune(weights: Matrix, hessian: Matrix, damping: float, pattern: Pattern) -> Matrix:
    """Return the weights, ``[rows, columns]``, with the pattern's zeros and the others moved to make up."""
    columns = weights.shape[1]
    mean = float(np.trace(hessian)) / columns
    damped = hessian + (damping * mean if mean > 0 else 1.0) * np.eye(columns)
    # Upper, with U' U = H^-1: row i holds what is left of the inverse once the columns before i are done.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    diagonal = np.diagonal(upper)
    left = weights.copy()
    for first in range(0, columns, _COLUMNS_AT_ONCE):
        last = min(columns, first + _COLUMNS_AT_ONCE)
        errors = np.zeros((len(left), last - first))
        mask = np.zeros((len(left), last - first), np.bool_)
        whole = pattern.kind != TWO_OF_FOUR
        if whole:
            mask = pattern.mask(np.square(left[:, first:last] / diagonal[first:last]))
        for i in range(first, last):
            at = i - first
            if not whole and at % 4 == 0:
                mask[:, at : at + 4] = pattern.mask(np.square(left[:, i : i + 4] / diagonal[i : i + 4]))
            gone = np.where(mask[:, at], left[:, i], 0.0)
            errors[:, at] = gone / diagonal[i]
            left[:, i:last] -= errors[:, at, None] * upper[i, i:last]
            left[mask[:, at], i] = 0.0
        left[:, last:] -= errors @ upper[first:last, last:]
    return left
