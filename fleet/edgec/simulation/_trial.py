"""The trial of a model before it may serve, done once for all simulated devices of a process."""

from __future__ import annotations

import threading
from pathlib import Path

from edgec.device_agent import HealthBudgets, HealthReport, check_health
from edgec.simulation._places import file_digest

_Key = tuple[str, str, HealthBudgets]


class SharedTrial:
    """`check_health`, once for each pair of artifacts: all devices of a process are one machine.

    Attributes:
        tried: How many trials were made.
    """

    def __init__(self) -> None:
        self.tried = 0
        self._lock = threading.Lock()
        self._turns: dict[_Key, threading.Lock] = {}
        self._reports: dict[_Key, HealthReport] = {}

    def __call__(
        self,
        artifact: Path,
        /,
        *,
        previous: Path | None,
        budgets: HealthBudgets,
        timeout_s: float,
        cache_dir: Path | None,
    ) -> HealthReport:
        """Return the report of the trial that the first device made; see `check_health`."""
        key = (file_digest(artifact), "" if previous is None else file_digest(previous), budgets)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            if key not in self._reports:
                self.tried += 1
                self._reports[key] = check_health(
                    artifact, previous=previous, budgets=budgets, timeout_s=timeout_s, cache_dir=cache_dir
                )
            return self._reports[key]
