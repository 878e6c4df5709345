"""What the engines' own names of precisions come to."""

from __future__ import annotations

from collections.abc import Mapping


def effective_precision(precisions: Mapping[str, int], promised: str) -> str:
    """Return the precision that a program computes in.

    Args:
        precisions: How many of the layers that do the arithmetic compute in which precision.
        promised: What holds where the engine does not tell.

    Returns:
        The one precision of all layers, ``mixed`` where they differ, `promised` where there are none.
    """
    if not precisions:
        return promised
    return next(iter(precisions)) if len(precisions) == 1 else "mixed"
