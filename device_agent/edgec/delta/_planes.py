"""What changed in an array of numbers, as planes of bytes.

A fine-tuned weight keeps its sign and exponent, most often the first bits of its mantissa too. The exclusive
or of old and new is zero there, and putting the first bytes of all numbers together, then the second ones,
and so on, puts the zeros together, which no general compressor does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.delta._format import XOR


def to_planes(old: bytes, new: bytes, width: int, operation: int) -> bytes:
    """Return what changed between two blocks of the same length, a multiple of `width`."""
    before, after = _numbers(old, width), _numbers(new, width)
    if operation == XOR:
        changed = before ^ after
    else:
        difference = (after - before).view(f"<i{width}")
        # Small differences of either sign have zeros in their high bytes.
        changed = ((difference << 1) ^ (difference >> (8 * width - 1))).view(f"<u{width}")
    planes: bytes = changed.view(np.uint8).reshape(-1, width).T.tobytes()
    return planes


def from_planes(old: bytes, planes: bytes, width: int, operation: int) -> bytes:
    """Return the new block, from the old one and what `to_planes` returned."""
    turned = np.frombuffer(planes, np.uint8).reshape(width, -1).T
    changed = np.ascontiguousarray(turned).reshape(-1).view(f"<u{width}")
    before = _numbers(old, width)
    if operation == XOR:
        after = before ^ changed
    else:
        one = changed.dtype.type(1)
        after = before + ((changed >> one) ^ (np.zeros_like(changed) - (changed & one)))
    new: bytes = after.tobytes()
    return new


def _numbers(data: bytes, width: int) -> NDArray[Any]:
    return np.frombuffer(data, f"<u{width}")
