"""Looks at the rules now and then, and lets alerts be told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from edgec.fleet.alerts._rules import RULES, conditions
from edgec.fleet.alerts._settings import AlertSettings
from edgec.fleet.alerts._sinks import Courier, Sink
from edgec.fleet.drift import measure_drift
from edgec.fleet.service import Fleet
from edgec.fleet.store import AlertRecord

_log = logging.getLogger(__name__)
_HOUR_S, _DRIFT_S = 3600.0, 300.0


class Watch:
    """Alerts of a fleet. One thread looks now and then, and when the fleet wakes; another one tells.

    Drift is measured on the way.
    """

    def __init__(
        self, fleet: Fleet, *, settings: AlertSettings | None = None, sinks: Sequence[Sink] = ()
    ) -> None:
        """Prepare; `start` starts.

        Args:
            fleet: Open for as long.
            settings: From where on something is an alert.
            sinks: Who is told.
        """
        self._fleet, self.settings, self._sinks = fleet, settings or AlertSettings(), tuple(sinks)
        self._courier = Courier(fleet.store.alerts, self._sinks, clock=fleet.clock)
        self._stopping = False
        self._problem: str | None = None
        self._poked = threading.Event()
        self._forget = fleet.on_wake(self._poked.set)
        self._pruned_at = self._measured_at = 0.0
        self._threads = [
            threading.Thread(target=target, name=f"fleet-{name}", daemon=True)
            for name, target in (("alerts", self._run), ("courier", self._courier.run))
        ]

    def start(self) -> None:
        """Begin, with a look at once."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop after what is in hand."""
        self._forget()
        self._stopping = True
        self._poked.set()
        self._courier.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def problems(self) -> list[str]:
        """Return what does not work now, for people and health checks; nothing where all does."""
        died = [
            f"the thread {t.name} has died: restart the server" for t in self._threads if not t.is_alive()
        ]
        return died + [problem for problem in (self._problem, self._courier.problem) if problem]

    def look(self) -> list[tuple[str, AlertRecord]]:
        """Measure drift, look at all rules, and write down what is to be told; return what has changed."""
        now = self._fleet.clock()
        if not 0 <= now - self._measured_at < _DRIFT_S:
            measure_drift(self._fleet.store, now)
            self._measured_at = now
        changes = self._fleet.store.alerts.compare(
            conditions(self._fleet, self.settings, now),
            now,
            rules=RULES,
            quiet_s=self.settings.quiet_s,
            sinks=[sink.name for sink in self._sinks],
            about={"tenant": self._fleet.tenant},
        )
        for word, alert in changes:
            _log.warning("alert %s: %s", word, alert.summary)
        if changes:
            self._courier.poke()
        return changes

    def _run(self) -> None:
        while not self._stopping:
            self._poked.clear()
            began = time.monotonic()
            self._look_and_prune()
            # Others work, too.
            time.sleep(min(2 * (time.monotonic() - began), 1.0))
            self._poked.wait(self.settings.every_s)

    def _look_and_prune(self) -> None:
        try:
            self.look()
            self._prune()
            self._problem = None
        except Exception as e:  # noqa: BLE001
            # Whatever it is: a thread that ends raises no alert until a restart.
            self._problem = f"alerts cannot be looked at now: {e}"
            _log.exception("alerts cannot be looked at now, and will be")

    def _prune(self) -> None:
        now = self._fleet.clock()
        if now - self._pruned_at >= _HOUR_S:
            self._fleet.store.alerts.prune(now)
            self._fleet.store.drift.prune(now)
            self._pruned_at = now
