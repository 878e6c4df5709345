"""What a gate found of a model, and what it says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
# Of a normal distribution: one side, 95 %.
_Z = 1.6449


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Why a gate stops a model.

    Attributes:
        word: For programs: ``latency``, ``non_finite`` ...
        message: In words: what was expected, what came.
        figure: That was measured; None where there is none.
        limit: That it had to keep; likewise.
    """

    word: str
    message: str
    figure: float | None = None
    limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON has it: figures that JSON has not are None."""
        return {
            "word": self.word,
            "message": self.message,
            "figure": self.figure if self.figure is None or math.isfinite(self.figure) else None,
            "limit": self.limit,
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a period of live calls says of a model.

    Attributes:
        outcome: ``pass``, ``fail``, or ``inconclusive`` where there is too little to say.
        findings: Why it fails.
        figures: That were measured: ``{"compared": 512, "agreement": 0.97}``.
    """

    outcome: str
    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


def wilson_bounds(successes: int, n: int) -> tuple[float, float]:
    """Return the lower and the upper 95 % confidence bound, each one-sided, of a share (Wilson 1927)."""
    if not n:
        return 0.0, 1.0
    share, z2 = successes / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
