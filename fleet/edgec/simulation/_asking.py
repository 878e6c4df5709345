"""Calls that are made for real: the sessions of simulated devices are asked, one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.simulation._device import SimulatedDevice

_PAUSE_S = 0.05


class RealCalls:
    """One thread that asks the models of many devices, as their applications would.

    Args:
        samples: What models are asked, by name of the model: arguments of ``Session.predict``.
        calls_per_s: Of each model on each device; fewer where this machine is too slow.
    """

    def __init__(self, samples: Mapping[str, Sequence[Any]], calls_per_s: float) -> None:
        self._samples, self._calls_per_s = samples, calls_per_s
        self._made = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, devices: Iterable[SimulatedDevice]) -> None:
        """Begin to ask."""
        self._thread = threading.Thread(
            target=self._run, args=(list(devices),), name="edgec-calls", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, devices: Sequence[SimulatedDevice]) -> None:
        rounds, begin = 0, time.monotonic()
        while not self._over.wait(_PAUSE_S):
            due = int((time.monotonic() - begin) * self._calls_per_s)
            # What could not be done in time is not caught up with.
            rounds = max(rounds, due - int(self._calls_per_s))
            while rounds < due and not self._over.is_set():
                rounds += 1
                for device in devices:
                    self._ask(device)

    def _ask(self, device: SimulatedDevice) -> None:
        agent = device.agent
        if agent is None:
            return
        for model, samples in self._samples.items():
            # Nothing installed yet, swapped or switched off just now; a call that fails is in its window.
            with suppress(EdgecError):
                agent.session(model).predict(samples[self._made % len(samples)])
                self._made += 1
