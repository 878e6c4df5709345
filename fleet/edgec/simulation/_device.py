"""One simulated device: a real agent, whose applications and trial are simulated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from edgec.device_agent import Agent, AgentConfig, HealthBudgets, HealthReport
from edgec.device_agent._findings import Finding
from edgec.device_agent._turn import Limits
from edgec.protocol import Announcement, Inbound, LinkOptions, LinkStatus, MqttLink
from edgec.runtime import ObserveOptions
from edgec.simulation._calls import DeclaredArtifacts, DeclaredCalls
from edgec.simulation._drawing import Chance
from edgec.simulation._rounds import Round, Rounds
from edgec.simulation._settings import SimulationSettings
from edgec.simulation._trial import SharedTrial

Kind = Literal["order", "follow", "crash"]


@dataclass(frozen=True, kw_only=True)
class DeviceNews:
    """Something happened on a device.

    Attributes:
        device: Its id.
        kind: ``order``: its agent took up what it is to have; ``follow``: another artifact serves; ``crash``.
        at: When, in seconds since 1970.
        came_at: When the message of an order came; 0 for other news.
        model: Name of the model; empty for an order.
        version: That serves now; None for none.
    """

    device: str
    kind: Kind
    at: float
    model: str = ""
    version: str | None = None
    came_at: float = 0.0


class SimulatedDevice:
    """A device that can be started, switched off, and started again.

    Args:
        config: Of the agent.
        settings: Of the simulation.
        artifacts: Of the process.
        trial: Of the process.
        rounds: Of the process.
        spawn: Of the process; see `Agent`.
        spawn_check: Likewise.
        news: Told of what happens, from threads of the device: it must be quick.
        drawn: Whether calls are drawn; otherwise somebody makes them, on sessions of the agent.
    """

    def __init__(
        self,
        config: AgentConfig,
        settings: SimulationSettings,
        artifacts: DeclaredArtifacts,
        trial: SharedTrial,
        *,
        rounds: Rounds,
        spawn: Callable[[Callable[[], None]], None] | None = None,
        spawn_check: Callable[[Callable[[], None]], None] | None = None,
        news: Callable[[DeviceNews], None] = lambda news: None,
        drawn: bool = True,
    ) -> None:
        self.config, self._settings = config, settings
        self._trial, self._news = trial, news
        self._rounds, self._spawn, self._spawn_check = rounds, spawn, spawn_check
        self._chance = Chance(settings.seed, config.device)
        self.stricken = settings.poison is not None and self._chance.luck("") < settings.poison.share
        self._drawn = drawn
        self._calls = DeclaredCalls(
            self._chance,
            artifacts,
            calls_per_s=settings.calls_per_s if drawn else 0.0,
            followed=self._followed,
            poison=settings.poison.behaviour if settings.poison is not None and self.stricken else None,
        )
        self._link: _HeardLink | None = None
        self._connections_before = 0
        self._agent: Agent | None = None
        self._round: Round | None = None

    @property
    def agent(self) -> Agent | None:
        """Its agent; None while it is off."""
        return self._agent

    @property
    def link(self) -> LinkStatus | None:
        """Of its connection; None while it is off."""
        link = self._link
        return None if link is None else link.status

    @property
    def connections(self) -> int:
        """How many it has made, those before it was last switched off included."""
        link = self.link
        return self._connections_before + (0 if link is None else link.connections)

    @property
    def serving(self) -> dict[str, str]:
        """Version of each model that serves."""
        return self._calls.serving

    def start(self) -> None:
        """Switch it on; one that is on stays so.

        Raises:
            AgentError: Its directory cannot be used.
            TrustError: The roots are not to be used.
            LinkError: Certificate or key cannot be read.
        """
        if self._agent is not None:
            return
        agent = Agent(
            self.config,
            link=self._connect,
            applications=[self._calls],
            # Of calls that are made, each is looked into: there are few.
            observe=None if self._drawn else ObserveOptions(max_share=math.inf),
            limits=Limits(backoff_s=self._settings.backoff_s),
            trial=self._try,
            spawn=self._spawn,
            spawn_check=self._spawn_check,
        )
        agent.start(thread=False)
        self._round = self._rounds.add(partial(_turn, agent))
        self._agent = agent

    def stop(self) -> None:
        """Switch it off in order; what is under way goes on at the next start."""
        agent, self._agent = self._agent, None
        taken, self._round = self._round, None
        if taken is not None:
            self._rounds.remove(taken)
        if agent is not None:
            agent.stop()
        self._connections_before, self._link = self.connections, None

    def live(self) -> None:
        """Die of what serves, as often as that happened since the last time."""
        agent = self._agent
        for model in self._calls.crashes() if agent is not None else ():
            assert agent is not None
            agent.crashed(model, "simulated: the application died")
            self._tell("crash", model)

    def flush(self) -> None:
        """Tell the fleet what was observed."""
        agent = self._agent
        if agent is not None:
            agent.flush()

    def _try(
        self,
        artifact: Path,
        /,
        *,
        previous: Path | None,
        budgets: HealthBudgets,
        timeout_s: float,
        cache_dir: Path | None,
    ) -> HealthReport:
        kind = "" if self._settings.poison is None or not self.stricken else self._settings.poison.kind
        if kind in ("install", "memory") and not self._calls.is_first(artifact):
            message = f"simulated: every trial ends with {kind}"
            return HealthReport(passed=False, findings=(Finding(word=kind, message=message),))
        return self._trial(
            artifact, previous=previous, budgets=budgets, timeout_s=timeout_s, cache_dir=cache_dir
        )

    def _connect(self, options: LinkOptions, announce: Callable[[int], Announcement]) -> MqttLink:
        settings = self._settings
        options = replace(options, first_retry_s=settings.first_retry_s, last_retry_s=settings.last_retry_s)
        self._link = _HeardLink(options, announce, self._heard, self._came)
        return self._link

    def _came(self) -> None:
        if (taken := self._round) is not None:
            taken.ask()

    def _heard(self, inbound: Inbound) -> None:
        self._tell("order", came_at=inbound.at)

    def _followed(self, model: str, version: str | None) -> None:
        self._tell("follow", model, version)

    def _tell(self, kind: Kind, model: str = "", version: str | None = None, *, came_at: float = 0.0) -> None:
        self._news(
            DeviceNews(
                device=self.config.device,
                kind=kind,
                at=time.time(),
                model=model,
                version=version,
                came_at=came_at,
            )
        )


class _HeardLink(MqttLink):
    """An MQTT link that notes when orders are taken."""

    def __init__(
        self,
        options: LinkOptions,
        announce: Callable[[int], Announcement],
        heard: Callable[[Inbound], None],
        came: Callable[[], None],
    ) -> None:
        super().__init__(options, announce=announce, came=came)
        self._heard = heard

    def get(self, timeout_s: float | None = None) -> Inbound | None:
        """Return the next message; see `MqttLink.get`."""
        inbound = super().get(timeout_s)
        if inbound is not None and inbound.topic.endswith("/dn/desired"):
            self._heard(inbound)
        return inbound


def _turn(agent: Agent) -> float:
    agent.turn(0.0)
    return agent.patience_s
