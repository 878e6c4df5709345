"""The broker lets in whom the books let in: written anew whenever that changes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable

from edgec.fleet.service import Fleet
from edgec.protocol.brokers import Access, Broker

_log = logging.getLogger(__name__)
# Another server of the same fleet may have changed something.
_LOOK_S = 10.0
_LEAST_PAUSE_S = 0.1


def access_of(fleet: Fleet, broker: str) -> Access:
    """Return who may connect, as the books say.

    Args:
        fleet: With devices and credentials.
        broker: Whose hashes of tokens are asked for: ``mosquitto`` or ``nats``.
    """
    certified: dict[str, str] = {}
    hashes: dict[str, str] = {}
    revoked: set[str] = set()
    known: set[str] = set()
    for credential, in_force in fleet.claims.standing():
        known.add(credential.device)
        if credential.kind == "certificate" and in_force:
            certified[credential.device] = credential.fingerprint
        elif credential.kind == "certificate":
            revoked.add(credential.serial)
        elif in_force and broker in (kept := json.loads(credential.document)):
            hashes[credential.device] = kept[broker]
    return Access(
        devices=certified,
        hashes=hashes,
        refused=frozenset(known - set(certified) - set(hashes)),
        revoked=frozenset(revoked),
    )


def _proofs(access: Access) -> dict[str, str]:
    """Return what each device proves its identity with."""
    return {**access.hashes, **access.devices}


class BrokerAccess:
    """Keeps a broker as the books are, in a thread of its own; `look` does it at once."""

    def __init__(
        self, fleet: Fleet, broker: Broker, *, shut_out: Callable[[str], None] = lambda device: None
    ) -> None:
        """Prepare; `start` starts.

        Args:
            fleet: With devices and credentials.
            broker: That is told.
            shut_out: Called with each device that may no longer connect with what it has, once the broker
                refuses that: ends its connection.
        """
        self._fleet, self._broker, self._shut_out = fleet, broker, shut_out
        self._seen: tuple[object, ...] | None = None
        self._access = Access()
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fleet-access", daemon=True)
        self._problem: str | None = None
        self._forget: Callable[[], None] | None = None

    def look(self) -> None:
        """Tell the broker who may connect, if that has changed.

        Raises:
            OutputError: Its settings cannot be written.
        """
        with self._lock:
            state = self._fleet.claims.state()
            if state == self._seen:
                return
            before, access = self._access, access_of(self._fleet, self._broker.name)
            self._broker.allow(access)
            self._access, self._seen = access, state
        for device, _ in sorted(_proofs(before).items() - _proofs(access).items()):
            self._shut_out(device)

    def start(self) -> None:
        """Look now, whenever something changes, and now and then.

        Raises:
            OutputError: The broker's settings cannot be written.
        """
        self.look()
        self._forget = self._fleet.on_wake(self._woken.set)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        if self._forget is not None:
            self._forget()
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def problem(self) -> str | None:
        """Return what is wrong, for people; None where the broker is told."""
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping:
            return "nobody tells the broker any more who may connect: restart the server"
        return self._problem

    def _run(self) -> None:
        while not self._stopping:
            self._woken.wait(_LOOK_S)
            self._woken.clear()
            began = time.monotonic()
            try:
                self.look()
                self._problem = None
            # Whatever fails, a disk, a database or a bug: without this thread nobody would be shut out.
            except Exception as e:  # noqa: BLE001
                self._problem = f"the broker cannot be told who may connect, and will be: {e}"
                _log.exception("the broker cannot be told who may connect, and will be")
            # Many that come at once are let in together.
            time.sleep(max(_LEAST_PAUSE_S, 2 * (time.monotonic() - began)))
