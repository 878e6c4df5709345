"""Applications of simulated devices: their calls are drawn, or made for real by one thread for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from edgec.device_agent import Verdict
from edgec.errors import EdgecError
from edgec.simulation._behaviour import HEALTHY, Behaviour
from edgec.simulation._drawing import Chance, Declared, draw_window, read_declared
from edgec.simulation._places import file_digest
from edgec.simulation._settings import SimulationError

if TYPE_CHECKING:
    from pathlib import Path

    from edgec.device_agent import Agent
    from edgec.runtime import Window

_COMPARED_PER_S = 200.0


class DeclaredArtifacts:
    """What artifacts declare, read once for all devices of a process. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_file: dict[str, Declared] = {}

    def read(self, path: Path) -> Declared:
        """Return what the artifact at a path declares.

        Raises:
            EdgecError: It cannot be read, or what it declares not be used.
        """
        try:
            file = file_digest(path)
        except OSError as e:
            raise SimulationError(f"{path} cannot be read: {e.strerror}") from e
        known = self._by_file.get(file)
        if known is None:
            declared = read_declared(path)
            with self._lock:
                known = self._by_file.setdefault(file, declared)
        return known


class DeclaredCalls:
    """The applications of one device whose calls are drawn: an `Applications` of `edgec.device_agent`.

    Args:
        chance: Of the device.
        artifacts: Of the process.
        calls_per_s: Of the median device, for each model.
        followed: Called with model and version whenever what serves has changed; version None for nothing.
        poison: How all but the first release of each model do here, whatever they declare.
        monotonic: Seconds that only grow.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        chance: Chance,
        artifacts: DeclaredArtifacts,
        *,
        calls_per_s: float,
        followed: Callable[[str, str | None], None] = lambda model, version: None,
        poison: Behaviour | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._chance, self._artifacts, self._calls_per_s = chance, artifacts, calls_per_s
        self._followed, self._monotonic, self._wall = followed, monotonic, wall
        self._lock = threading.Lock()
        self._agent: Agent | None = None
        self._serving: dict[str, tuple[Declared, float]] = {}
        self._left: dict[str, list[Window]] = {}
        self._poison = poison
        # Digest of the first release of each model.
        self._first: dict[str, str] = {}
        self._beaten = monotonic()

    # -- of `Applications`

    def start(self, agent: Agent) -> None:
        """Begin, with the models that are there."""
        self._agent = agent
        for link in sorted(agent.config.models_dir.glob("*/current.edgec")):
            self._find(link.parent.name)

    def stop(self) -> None:
        """End."""
        with self._lock:
            self._serving.clear()
            self._left.clear()

    def follow(self, model: str, artifact: Path | None) -> None:
        """Call another artifact from now on, or none."""
        declared = None if artifact is None else self._read(artifact)
        with self._lock:
            if declared is not None:
                self._first.setdefault(model, declared.digest)
            known = self._serving.get(model)
            if known is not None and declared is not None and known[0].digest == declared.digest:
                return
            if known is not None:
                self._left.setdefault(model, []).append(self._drawn(*known))
            if declared is None:
                self._serving.pop(model, None)
            else:
                self._serving[model] = (declared, self._monotonic())
        self._followed(model, None if declared is None else declared.version)

    def held(self, model: str) -> frozenset[str]:
        """Return nothing: no file stays open."""
        return frozenset()

    def restart(self, model: str) -> None:
        """Do nothing: there is nothing to load."""

    def take(self, model: str) -> list[Window]:
        """Return windows of the calls since the last time."""
        self._find(model)
        with self._lock:
            windows = self._left.pop(model, [])
            known = self._serving.get(model)
            if known is not None:
                windows.append(self._drawn(*known))
                self._serving[model] = (known[0], self._monotonic())
            return windows

    def shadow(
        self, model: str, candidate: Path, seconds: float, wanted: Callable[[], bool]
    ) -> Verdict | None:
        """Let a candidate answer drawn calls, and judge by the share that it declares to answer otherwise."""
        from edgec.device_agent._judging import judge_shadow
        from edgec.runtime import ShadowReport

        declared = self._read(candidate)
        does = declared.behaviour.of_device(self._chance.luck(declared.digest))
        begin, passed = self._monotonic(), 0.0
        while passed < seconds and wanted():
            time.sleep(min(0.25, seconds - passed))
            passed = self._monotonic() - begin
        random, calls = self._chance.random, int(_COMPARED_PER_S * passed)
        failed = int(random.binomial(calls, does.errors))
        report = ShadowReport(
            sampled=calls,
            dropped=0,
            failed=failed,
            compared=calls - failed,
            disagreed=int(random.binomial(calls - failed, does.disagreement)),
            non_finite=int(random.binomial(calls - failed, does.non_finite)),
            max_abs_error={},
            live_p50_ms=HEALTHY.latency_ms,
            candidate_p50_ms=does.latency_ms,
            last_error="",
            scored=calls - failed,
            live_score=HEALTHY.confidence,
            candidate_score=does.confidence,
        )
        return judge_shadow(report, passed)

    # -- of the simulation

    @property
    def serving(self) -> dict[str, str]:
        """Version of each model that serves."""
        with self._lock:
            return {model: declared.version for model, (declared, _) in self._serving.items()}

    def is_first(self, artifact: Path) -> bool:
        """Return whether an artifact is the first of its model here.

        Raises:
            EdgecError: It cannot be read.
        """
        declared = self._artifacts.read(artifact)
        with self._lock:
            return self._first.get(declared.model, declared.digest) == declared.digest

    def crashes(self) -> list[str]:
        """Return the models that an application has died of since the last time, each as often as it did."""
        now = self._monotonic()
        with self._lock:
            minutes, self._beaten = (now - self._beaten) / 60, now
            found: list[str] = []
            for model, (declared, _) in self._serving.items():
                does = declared.behaviour.of_device(self._chance.luck(declared.digest))
                if does.crashes_per_minute:
                    found += [model] * int(self._chance.random.poisson(does.crashes_per_minute * minutes))
            return found

    def _read(self, artifact: Path) -> Declared:
        declared = self._artifacts.read(artifact)
        if self._poison is None or self.is_first(artifact):
            return declared
        return replace(declared, behaviour=self._poison)

    def _find(self, model: str) -> None:
        """Take up what served before this start."""
        agent = self._agent
        if model in self._serving or agent is None:
            return
        artifact = agent.serving(model)
        if artifact is None:
            return
        try:
            self.follow(model, artifact)
        except EdgecError:  # the agent finds out by itself, and says so
            return

    def _drawn(self, declared: Declared, since: float) -> Window:
        seconds = max(self._monotonic() - since, 0.0)
        return draw_window(
            declared,
            self._chance,
            since=self._wall() - seconds,
            seconds=seconds,
            calls_per_s=self._calls_per_s,
        )
