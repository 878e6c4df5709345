"""Which positions of large tensors are looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What least squares needs to see of a layer, over all samples: so many rows, and so many for each column.
_ROWS, _ROWS_PER_COLUMN = 8192, 4


def picked_positions(count: int, sample: int, seed: int, *, samples: int, width: int) -> NDArray[np.int64]:
    """Return at which positions of a sample's output a layer is looked at, the same ones every time.

    What a layer does at one place it does at all, so that a part of them will do.

    Args:
        count: Of the positions.
        sample: Number of the sample.
        seed: Of the choice.
        samples: How many there are.
        width: Columns of the layer.
    """
    enough = -(-max(_ROWS, _ROWS_PER_COLUMN * width) // max(1, samples))
    if count <= enough:
        return np.arange(count)
    rng = np.random.default_rng((seed, sample, count))
    return np.sort(rng.choice(count, enough, replace=False))
