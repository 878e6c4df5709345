"""What the fleet's side of a broker has done since it started."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Counts by name and label, from any thread.

    Names are ``messages`` (by kind), ``dropped`` (by reason), ``records``, ``batches``, ``repeated_batches``,
    ``acknowledgements``, ``orders`` (by outcome), ``turns``, ``commands`` (by outcome); and sums of seconds:
    ``batch_seconds``, ``lag_seconds`` (from a message's arrival to its commit), ``turn_seconds``.
    """

    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _sums: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, label: str = "", by: int = 1) -> None:
        """Count something."""
        with self._lock:
            self._counts[name, label] += by

    def spend(self, name: str, seconds: float) -> None:
        """Add seconds."""
        with self._lock:
            self._sums[name] = self._sums.get(name, 0.0) + seconds

    def get(self, name: str, label: str = "") -> int:
        """Return a count."""
        with self._lock:
            return self._counts[name, label]

    def total(self, name: str) -> int:
        """Return the sum over all labels."""
        with self._lock:
            return sum(n for (known, _), n in self._counts.items() if known == name)

    def snapshot(self) -> tuple[dict[tuple[str, str], int], dict[str, float]]:
        """Return all counts by name and label, and all sums of seconds by name."""
        with self._lock:
            return dict(self._counts), dict(self._sums)
