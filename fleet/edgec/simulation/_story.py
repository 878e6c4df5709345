"""One rollout, from the upload to its end, told as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.simulation._settings import SimulationError

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient
    from edgec.fleet.views import RolloutView

_LOOK_S = 0.4
_OVER = ("finished", "undone", "aborted")
REASON = "made on the spot for a simulation: no compiler was asked, so that there is no report"


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A rollout of a story.

    Attributes:
        name: For people.
        model: That is rolled out.
        version: Of it.
        stages: Percent of the devices, and seconds of soak.
        query: Which devices; all if empty.
        least_devices: Of a stage.
        first_look_s: When the gate is first looked at.
    """

    name: str
    model: str
    version: str
    stages: Sequence[tuple[float, float]]
    query: str = ""
    least_devices: int = 10
    first_look_s: float = 1.0


class Story:
    """Rollouts of a fleet over its API.

    Args:
        client: With a token of role releaser or admin.
        say: Told, line by line, what happens.
    """

    def __init__(self, client: FleetClient, say: Callable[[str], None]) -> None:
        self._client, self._say = client, say
        self._begin = time.monotonic()

    def upload(self, artifact: Path, *, override: str | None = REASON) -> None:
        """Upload an artifact.

        Raises:
            FleetError: The server does not take it.
        """
        detail = self._client.upload(artifact, override=override)
        self.say(f"{detail.model} {detail.version} is uploaded: {detail.length} bytes, verified and signed")

    def roll_out(self, chapter: Chapter, timeout_s: float) -> dict[str, Any]:
        """Roll a release out, and wait for the end; return name, state, stages and evidence.

        Raises:
            FleetError: The server refuses, or cannot be reached.
            SimulationError: It has not ended in time.
        """
        from edgec.fleet.views import RolloutWanted, StageWanted

        wanted = RolloutWanted(
            model=chapter.model,
            version=chapter.version,
            name=chapter.name,
            query=chapter.query,
            stages=[StageWanted(percent=percent, soak_s=soak_s) for percent, soak_s in chapter.stages],
            least_devices=chapter.least_devices,
            first_look_s=chapter.first_look_s,
            install_s=60.0,
            start=True,
        )
        rollout, end, told = self._client.create_rollout(wanted), time.monotonic() + timeout_s, ""
        self.say(f"rollout {rollout.id} begins: {chapter.name}")
        while rollout.state not in _OVER:
            if time.monotonic() > end:
                raise SimulationError(
                    f"rollout {rollout.id} is {rollout.state} after {timeout_s:.0f} s: {_line(rollout)}"
                )
            time.sleep(_LOOK_S)
            rollout = self._client.rollout(rollout.id)
            line = _line(rollout)
            if line != told:
                self.say(line)
                told = line
        return summary(rollout)

    def say(self, line: str) -> None:
        """Say a line, with the seconds since the story began."""
        self._say(f"{time.monotonic() - self._begin:5.1f} s  {line}")


def summary(rollout: RolloutView) -> dict[str, Any]:
    """Return what became of a rollout, as ``edgec fleet demo --json`` prints it."""
    return {
        "name": rollout.name,
        "state": rollout.state,
        "stages": [
            {
                "percent": stage.percent,
                "state": stage.state,
                "devices": stage.devices,
                "outcome": None if stage.look is None else stage.look.outcome,
            }
            for stage in rollout.stages
        ],
        "evidence": [
            {"stage": stage.number, **finding.model_dump()}
            for stage in rollout.stages
            if stage.look is not None
            for finding in stage.look.findings
        ],
    }


def _line(rollout: RolloutView) -> str:
    counted = ", ".join(f"{count} {phase}" for phase, count in sorted(rollout.devices.items()) if count)
    where = f"stage {rollout.stage} of {rollout.of_stages}" if rollout.stage else "no stage yet"
    words = [f"{rollout.name}: {rollout.state}", where, counted]
    if rollout.state in ("undoing", "undone"):
        words.append(f"stopped by {rollout.reason}")
    elif rollout.held:
        words.append(rollout.held)
    return ", ".join(word for word in words if word)
