"""What a running agent says of itself, to who asks it and to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgec.device_agent._device_status import AgentStatus, status_of, write_status
from edgec.device_agent._parts import Parts, software

if TYPE_CHECKING:
    from edgec.device_agent._config import AgentConfig
    from edgec.device_agent._seams import Clock
    from edgec.device_agent._store import Store
    from edgec.protocol import LinkStatus

_EVERY_S = 10.0


class OwnStatus:
    """The status of an agent that runs.

    Args:
        config: Of the device.
        store: Of its states.
        parts: Of the agent.
        clock: Its time.
        link: Returns how the link does.
    """

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        parts: Parts,
        clock: Clock,
        link: Callable[[], LinkStatus],
    ) -> None:
        self._config, self._store, self._parts, self._clock, self._link = config, store, parts, clock, link
        self._started = clock.wall()
        self._due = 0.0
        self._written: AgentStatus | None = None

    def now(self, *, running: bool) -> AgentStatus:
        """Return what runs, since when, and why not the newest."""
        link, outbox, parts = self._link(), self._parts.outbox.state(), self._parts
        word = "connected" if link.connected else "not_connected"
        return AgentStatus(
            device=self._config.device,
            running=running,
            pid=os.getpid() if running else None,
            started=self._started,
            boot=self._store.boot,
            agent=software(),
            link=word if self._config.broker is not None else "no_broker",
            link_error="" if link.error is None else str(link.error)[:400],
            epoch=parts.wishes.epoch,
            alerts=tuple((alert.reason, alert.detail) for alert in parts.alerts.all()),
            waiting=sum(outbox.records.values()),
            lost=sum(loss.records for loss in outbox.losses),
            models=status_of(parts.models.states(), self._config.models_dir),
        )

    def write(self, *, running: bool, at_once: bool = False) -> None:
        """Write it down for ``edgec agent status``, from time to time and where it has changed."""
        now = self._clock.monotonic()
        if now < self._due and not at_once:
            return
        self._due = now + _EVERY_S
        status = self.now(running=running)
        if status != self._written:
            write_status(self._config.state_dir, status)
            self._written = status
