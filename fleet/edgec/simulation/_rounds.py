"""Rounds of many agents in one thread: hundreds that wait for one interpreter keep it from its work."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)
# How often it is looked for rounds that are due without having been asked for.
_LOOK_S = 0.25


class Round:
    """What is done again and again for one agent: made by `Rounds.add`."""

    def __init__(self, turn: Callable[[], float], asked: queue.SimpleQueue[Round | None]) -> None:
        self._turn, self._asked = turn, asked
        self._lock = threading.Lock()
        self._over = self._waits = False
        self._due = 0.0

    def ask(self) -> None:
        """Have it done soon; from any thread, and as often as one likes."""
        if not self._waits:
            self._waits = True
            self._asked.put(self)

    def ask_if_due(self, now: float) -> None:
        """Have it done soon where its time has come, by `time.monotonic`."""
        if now >= self._due:
            self.ask()

    def do(self) -> None:
        """Do it now."""
        # What is asked for from here on is not seen by this round, maybe.
        self._waits = False
        with self._lock:
            if self._over:
                return
            try:
                self._due = time.monotonic() + self._turn()
            except Exception:  # noqa: BLE001
                # A bug in an agent: as in a thread of its own, it ends this one, and is told.
                self._over = True
                _log.exception("an agent has died of an error")

    def end(self) -> None:
        """Do it no more; when this returns, nobody is at it."""
        self._over = True
        with self._lock:
            return


class Rounds:
    """A thread that does all rounds, one after the other, in the order in which they were asked for."""

    def __init__(self) -> None:
        """Prepare; `start` starts it."""
        self._asked: queue.SimpleQueue[Round | None] = queue.SimpleQueue()
        self._rounds: set[Round] = set()
        self._thread = threading.Thread(target=self._run, name="edgec-simulation-rounds", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; rounds that were asked for before are done. Nothing is to be ended before `start`."""
        if self._thread.ident is not None:
            self._asked.put(None)
            self._thread.join()

    def add(self, turn: Callable[[], float]) -> Round:
        """Do something again and again.

        Args:
            turn: Does it once, and returns in how many seconds it is due again unless it is asked for.
        """
        added = Round(turn, self._asked)
        self._rounds.add(added)
        added.ask()
        return added

    def remove(self, added: Round) -> None:
        """Do it no more; when this returns, nobody is at it."""
        added.end()
        self._rounds.discard(added)

    def _run(self) -> None:
        look = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= look:
                for added in list(self._rounds):
                    added.ask_if_due(now)
                look = now + _LOOK_S
            try:
                asked = self._asked.get(timeout=look - now if look > now else 0.001)
            except queue.Empty:
                continue
            if asked is None:
                return
            asked.do()
