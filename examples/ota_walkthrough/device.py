"""The device: its agent and its application as processes of their own, which can be stopped and killed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgec.device_agent import AgentStatus, read_status

HERE = Path(__file__).parent
_AGENT = (sys.executable, "-m", "edgec.cli", "agent", "run")
# As in the field, but more eager: nobody wants to watch a device for an hour.
_SETTINGS = (
    "updates.refresh_s=2",
    "updates.allow_http=true",
    "updates.probation_s=30",
    "updates.probation_calls=200",
)


class Device:
    """A device in a directory.

    Attributes:
        config: File of the agent's settings.
        models: Directory that the application reads.
        kills: How often the agent was killed.
    """

    def __init__(self, directory: Path, state: Path, config: Path) -> None:
        self.directory, self.config = directory, config
        self.models = state / "models"
        self.kills = 0
        self._state = state
        self._counts = directory / "application.json"
        self._agent: subprocess.Popen[bytes] | None = None
        self._application: subprocess.Popen[bytes] | None = None

    def start_agent(self) -> None:
        """Start the agent."""
        with (self.directory / "agent.log").open("ab") as log:
            settings = [word for setting in _SETTINGS for word in ("--set", setting)]
            command = [*_AGENT, "--config", str(self.config), *settings]
            self._agent = subprocess.Popen(command, stdout=log, stderr=log)

    def kill_agent(self) -> None:
        """End it as a loss of power does: SIGKILL."""
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()
        self.kills += 1

    def stop_agent(self) -> None:
        """Ask it to end, and wait until it has.

        Raises:
            RuntimeError: It ended with an error.
        """
        assert self._agent is not None
        self._agent.terminate()
        status = self._agent.wait(30)
        if status != 0:
            raise RuntimeError(f"the agent ended with {status}: see {self.directory / 'agent.log'}")

    def start_application(self) -> None:
        """Start what uses the model."""
        with (self.directory / "application.log").open("ab") as log:
            program = [sys.executable, str(HERE / "application.py")]
            arguments = [str(self.models), str(self._state / "agent.sock"), str(self._counts)]
            self._application = subprocess.Popen([*program, *arguments], stdout=log, stderr=log)

    def stop_application(self) -> None:
        """Ask it to end, and wait until it has.

        Raises:
            RuntimeError: It ended with an error.
        """
        assert self._application is not None
        self._application.send_signal(signal.SIGTERM)
        status = self._application.wait(30)
        if status != 0:
            raise RuntimeError(
                f"the application ended with {status}: see {self.directory / 'application.log'}"
            )

    def close(self) -> None:
        """End both, whatever they do."""
        for process in (self._application, self._agent):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def counts(self) -> dict[str, Any]:
        """Return what the application has counted: ``calls``, ``failed``, ``nan``, and what it runs."""
        try:
            values: dict[str, Any] = json.loads(self._counts.read_bytes())
        except FileNotFoundError:
            return {"calls": 0, "failed": 0, "nan": 0, "digest": None}
        return values

    def serving(self, model: str) -> str | None:
        """Return the digest of the artifact that an application would open now; None for none."""
        try:
            return hashlib.sha256((self.models / model / "current.edgec").read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def status(self) -> AgentStatus:
        """Return what ``edgec agent status`` says, whether the agent runs or not."""
        return read_status(self._state)

    def phase(self, model: str) -> str:
        """Return how far an update is: ``idle``, ``downloading`` ..."""
        return next((m.phase for m in self.status().models if m.model == model), "")

    def calls_go_on(self, seconds: float = 1.0) -> bool:
        """Return whether the application makes calls, none of which fails."""
        before, deadline = self.counts(), time.monotonic() + 10 * seconds
        while (now := self.counts())["calls"] <= before["calls"] and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(now["calls"] > before["calls"] and now["failed"] == before["failed"])
