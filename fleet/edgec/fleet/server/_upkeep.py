"""What has to be done now and then: signed metadata renewed, old telemetry forgotten."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timezone

from edgec.fleet.service import Fleet

_log = logging.getLogger(__name__)
_EVERY_S = 3600.0
_AFTER_FAILURE_S = 60.0
# Metadata of the image repository is renewed when less than this part of its life is left.
_LEFT = 0.67


class Upkeep:
    """Looks every hour, in a thread of its own."""

    def __init__(
        self, fleet: Fleet, *, also: Callable[[], object] = lambda: None, every_s: float = _EVERY_S
    ) -> None:
        """Prepare; `start` starts.

        Args:
            fleet: Whose metadata is renewed, and whose old telemetry is forgotten.
            also: What else is to be done each time.
            every_s: How often.
        """
        self._fleet, self._also, self._every_s = fleet, also, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-upkeep", daemon=True)
        self._problem: str | None = None

    def start(self) -> None:
        """Begin, with a look at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop after what is in hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def problem(self) -> str | None:
        """Return what is wrong, for people; None where nothing is."""
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set():
            return "nobody renews signed metadata and certificates any more: restart the server"
        return self._problem

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self._every_s
            try:
                renew(self._fleet)
                self._fleet.store.telemetry.prune(self._fleet.clock())
                self._also()
                self._problem = None
            # Whatever fails, a disk, a database or a bug: without this thread all metadata would end.
            except Exception as e:  # noqa: BLE001
                self._problem = f"the upkeep of the fleet failed, and is tried again: {e}"
                _log.exception("the upkeep of the fleet failed, and is tried again")
                pause = min(pause, _AFTER_FAILURE_S)
            self._stopping.wait(pause)


def renew(fleet: Fleet) -> bool:
    """Sign snapshot and timestamp of the image repository again if a third of their life is over.

    Raises:
        TrustError: The online key is missing.
        OutputError: They cannot be written.
    """
    snapshot = fleet.image.snapshot()
    expires = 0.0 if snapshot is None else snapshot.signed.expires.replace(tzinfo=timezone.utc).timestamp()
    if expires - fleet.clock() > _LEFT * fleet.image.lifetimes.online * 86400:
        return False
    with fleet.publishing, fleet.image.locked():
        fleet.image.release(renew=True)
    fleet.wake()
    return True


def remove_leftovers(fleet: Fleet) -> int:
    """Remove what uploads have left behind that a killed server was receiving; return how many files."""
    found = [path for path in (fleet.image.directory / "incoming").glob("*") if path.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
