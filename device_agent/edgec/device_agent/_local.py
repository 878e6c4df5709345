"""Sessions of the agent's own process, which follow its updates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING

from edgec.device_agent._findings import INCONCLUSIVE
from edgec.errors import AgentError, EdgecError

if TYPE_CHECKING:
    from pathlib import Path

    from edgec.device_agent._agent import Agent
    from edgec.device_agent._findings import Verdict
    from edgec.runtime import ObserveOptions, Session, Window

_LOOK_S = 0.25


class LocalSessions:
    """One session per model, given to all who ask for it: an `Applications` of this process.

    Args:
        observe: What is looked at in calls; None for the defaults.
    """

    def __init__(self, observe: ObserveOptions | None = None) -> None:
        self._observe = observe
        self._lock = RLock()
        self._agent: Agent | None = None
        self._sessions: dict[str, Session] = {}
        # Which file each has, so that following twice costs once.
        self._files: dict[str, tuple[int, int, int]] = {}

    def start(self, agent: Agent) -> None:
        """Begin."""
        self._agent = agent

    def stop(self) -> None:
        """Close all sessions."""
        with self._lock:
            sessions, self._sessions = self._sessions, {}
            self._files.clear()
        for session in sessions.values():
            session.close()

    def session(self, model: str) -> Session:
        """Return the session of a model; it is closed by `stop`, or when the model is removed.

        Raises:
            AgentError: The model is not installed, or the agent does not run.
            EdgecError: As of `edgec.runtime.load`.
        """
        from edgec.runtime import load

        with self._lock:
            if model not in self._sessions:
                artifact = None if self._agent is None else self._agent.serving(model)
                if artifact is None:
                    raise AgentError(f"no artifact of {model} is installed here: see  edgec agent status")
                session = load(artifact)
                session.observe(self._observe)
                self._sessions[model], self._files[model] = session, _file(artifact)
            return self._sessions[model]

    def follow(self, model: str, artifact: Path | None) -> None:
        """Swap the session, or close it; see `Applications`."""
        with self._lock:
            session = self._sessions.get(model)
            if session is None:
                return
            if artifact is None:
                del self._sessions[model], self._files[model]
                session.close()
            elif self._files[model] != (file := _file(artifact)):
                session.swap(artifact)
                self._files[model] = file

    def held(self, model: str) -> frozenset[str]:
        """Return nothing: sessions of this process have changed when `follow` returns."""
        return frozenset()

    def restart(self, model: str) -> None:
        """Load the session's model anew; see `Applications`."""
        with self._lock:
            session = self._sessions.get(model)
            artifact = None if self._agent is None else self._agent.serving(model)
            if session is not None and artifact is not None:
                session.swap(artifact)

    def take(self, model: str) -> list[Window]:
        """Return what was observed; see `Applications`."""
        with self._lock:
            session = self._sessions.get(model)
        observer = None if session is None else session.observer
        return [] if observer is None else observer.take_all()

    def shadow(
        self, model: str, candidate: Path, seconds: float, wanted: Callable[[], bool]
    ) -> Verdict | None:
        """Run a candidate beside the session's model; see `Applications`."""
        from edgec.device_agent._judging import judge_shadow
        from edgec.runtime import load
        from edgec.runtime._shadow import Shadow, check_same_interface

        with self._lock:
            live = self._sessions.get(model)
        if live is None:
            return None
        with load(candidate) as other:
            check_same_interface(live, other)
            shadow = Shadow(other.run, str(candidate), fraction=1.0, max_queue=8, agree=None)
            live.set_shadow(shadow)
            begin = time.monotonic()
            try:
                verdict = judge_shadow(shadow.report(), 0.0)
                while verdict.outcome == INCONCLUSIVE and wanted() and time.monotonic() - begin < seconds:
                    time.sleep(min(_LOOK_S, seconds))
                    verdict = judge_shadow(shadow.report(), time.monotonic() - begin)
                return verdict
            finally:
                with suppress(EdgecError):  # closed meanwhile
                    live.set_shadow(None)
                shadow.close()


def _file(artifact: Path) -> tuple[int, int, int]:
    state = os.stat(artifact)
    return state.st_dev, state.st_ino, state.st_mtime_ns
