"""Scales of symmetric integer weights: the one place that chooses them.

A scale is the largest magnitude by 127. But weights that are whole steps of a grid already, because whoever
trained the model quantized it, get a scale that every one of them is a multiple of. Rounding them to another
grid would add as much noise again as their author accepted; so it adds none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
# What is left of a step where float32 rounds a product or two: up to 1.5e-5 at 127 steps.
_OFF_GRID = 2.0**-13
_GLIMPSE = 32  # weights of a channel, which tell nearly always that it is on no grid


def weight_scales(
    weights: NDArray[np.floating], axis: int | None, *, largest: int = LARGEST
) -> NDArray[np.float32]:
    """Return the scales by which weights become integers in ``-largest..largest``.

    On a grid of steps ``g``, where the largest weight is ``k * g`` with k up to `largest`, the scale is the
    smallest ``g / m`` with a whole m that `largest` has room for: at most twice what other weights get, so
    that a bias at this scale stays as fine. Nothing is asked of the number of weights: where they fit a grid
    by chance, as two weights may, their rounding is as exact.

    Args:
        weights: Of any shape; where they are not finite, the scale is not.
        axis: That has one scale per index; None for one scale in all.
        largest: Of the integers.

    Returns:
        One scale per index of `axis`, or an array without axes; 0 where all weights are.
    """
    rows, highest = _rows(weights, axis), peaks(weights, axis)
    scales = highest / _levels(rows, np.atleast_1d(highest), largest).reshape(highest.shape)
    return np.asarray(scales, np.float32)


def peaks(weights: NDArray[np.floating], axis: int | None) -> NDArray[np.float64]:
    """Return the largest magnitude per index of `axis`, or of all weights."""
    highest: NDArray[np.float64] = np.abs(_rows(weights, axis)).max(axis=1, initial=0).astype(np.float64)
    return highest.reshape(()) if axis is None else highest


def _rows(weights: NDArray[np.floating], axis: int | None) -> NDArray[np.floating]:
    if axis is None:
        return weights.reshape(1, -1)
    moved = np.moveaxis(weights, axis, 0)
    return moved.reshape(len(moved), int(np.prod(moved.shape[1:])))


def _levels(rows: NDArray[np.floating], highest: NDArray[np.float64], largest: int) -> NDArray[np.int64]:
    """Return the integers that the peaks of rows become: `largest` where a row is on no grid.

    Some multiple of the steps that a peak has, if any, is above half of `largest`.
    """
    levels = np.full(len(rows), largest)
    left = np.flatnonzero(np.isfinite(highest) & (highest >= np.finfo(np.float32).tiny))
    glimpses = rows[:, :: max(1, rows.shape[1] // _GLIMPSE)]
    for level in range(largest, largest // 2, -1):
        factors = level / highest[left]
        seem = np.flatnonzero(_are_whole(rows[left, :1], factors))
        seem = seem[_are_whole(glimpses[left[seem]], factors[seem])]
        found = [i for i in seem if _are_whole(rows[left[i], None], factors[i, None])[0]]
        levels[left[found]] = level
        left = np.delete(left, found)
    return levels


def _are_whole(rows: NDArray[np.floating], factors: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether rows times their factors are whole numbers, but for the rounding of float32."""
    steps = rows * factors[:, None]
    whole: NDArray[np.bool_] = np.abs(steps - np.rint(steps)).max(axis=1, initial=0) <= _OFF_GRID
    return whole
