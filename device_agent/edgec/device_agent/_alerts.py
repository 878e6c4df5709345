"""What a person should know of the device as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgec.protocol import Alert

if TYPE_CHECKING:
    from edgec.device_agent._seams import Clock
    from edgec.device_agent._store import Store
    from edgec.device_agent._wishes import Wishes
    from edgec.trust import DeviceTrust

_STALE_S = 300.0


class Alerts:
    """Collects alerts; cheap enough to be asked in every round.

    Args:
        trust: Of the device.
        wishes: Say what is not believed.
        store: Says how the database does.
        clock: Of the agent.
    """

    def __init__(self, trust: DeviceTrust, wishes: Wishes, store: Store, clock: Clock) -> None:
        self._trust, self._wishes, self._store, self._clock = trust, wishes, store, clock
        self._stale: tuple[float, float | None] = (float("-inf"), None)

    def refreshed(self) -> None:
        """Look at the metadata again, for there may be newer ones."""
        self._stale = (float("-inf"), None)

    def all(self) -> list[Alert]:
        """Return what a person should know."""
        found = self._wishes.alerts()
        if self._store.trouble is not None:
            found.append(Alert(reason="degraded", detail=f"the agent's database: {self._store.trouble}"))
        if self._store.rebuilt:
            found.append(Alert(reason="state_lost", detail="the agent's database was damaged and made anew"))
        stale = self._stale_since()
        if stale is not None:
            found.append(
                Alert(reason="stale", detail=f"no fresh metadata since {stale:.0f}; nothing new is accepted")
            )
        return found

    def _stale_since(self) -> float | None:
        looked, since = self._stale
        now = self._clock.monotonic()
        if now - looked > _STALE_S:
            # Before the first metadata there is nothing that could be out of date.
            since = self._trust.stale_since if self._trust.epoch else None
            self._stale = (now, since)
        return since
