"""The thread that keeps a session up to date, and talks to the agent."""

from __future__ import annotations

import logging
import random
import re
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread, current_thread
from time import monotonic
from typing import TYPE_CHECKING

from edgec.errors import ArtifactError, EdgecError, LinkError, ProtocolError
from edgec.runtime import _link_messages as said
from edgec.runtime._agent_socket import AgentSocket, agent_users
from edgec.runtime._link_figures import observed, report_to_plain
from edgec.runtime._model_directory import InstalledFile, ModelDirectory
from edgec.runtime._shadow import Shadow, check_same_interface
from edgec.runtime._swap import swap

if TYPE_CHECKING:
    from edgec.runtime._session import Session

_log = logging.getLogger("edgec.runtime")
_OBSERVE_S = 60.0
_AGAIN_S = _REFUSED_S = 60.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 5.0
_MOST_WINDOWS = 64
_MOST_KNOWN = 16
_SHADOW_QUEUE = 8


class _Candidate:
    """What is loaded beside the running model, and what shows it live inputs."""

    def __init__(self, installed: InstalledFile, session: Session) -> None:
        self.installed = installed
        self.session = session
        self.shadow: Shadow | None = None
        self.request = 0
        self.every_s = 1.0
        self.due = 0.0


class Follower:
    """Keeps a session at what is installed: as the agent says, or while it does not answer, as the disk says.

    Args:
        session: That runs `installed`.
        there: The model's directory.
        installed: What the session runs.
        path: Of the agent's socket; None for the directory alone.
        loader: How artifacts are loaded.
        name: Of the application.
        poll_s: Between two looks into the directory.
        drain_s: As of ``Session.swap``.
    """

    def __init__(
        self,
        session: Session,
        there: ModelDirectory,
        installed: InstalledFile,
        path: Path | None,
        *,
        loader: Callable[[Path], Session],
        name: str,
        poll_s: float,
        drain_s: float,
    ) -> None:
        self.installed = installed
        self.problem = ""
        self._session, self._there, self._path = session, there, path
        self._loader, self._name = loader, said.plain_text(name)
        self._poll_s, self._drain_s = poll_s, drain_s
        self._link: AgentSocket | None = None
        self._connect_at, self._retry_s = 0.0, _FIRST_RETRY_S
        self._candidate: _Candidate | None = None
        self._observe_s, self._observe_at = _OBSERVE_S, monotonic() + _OBSERVE_S
        self._windows: deque[said.Observed] = deque(maxlen=_MOST_WINDOWS)
        # Digests of files by those of their contents, which is what observers name.
        self._known = {session.content_digest: installed.digest}
        self._failed: dict[str, float] = {}
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        self._thread = Thread(target=self._work, name="edgec-follow", daemon=True)

    @property
    def linked(self) -> bool:
        """Whether the agent answers."""
        return self._link is not None

    def start(self, link: AgentSocket | None) -> None:
        """Begin.

        Args:
            link: To the agent, which has had its `Hello`; None where it does not answer.
        """
        if link is not None:
            link.wake_by(self._woken)
        self._link = link
        self._thread.start()

    def stop(self, *, goodbye: bool) -> None:
        """End it.

        Args:
            goodbye: Whether all is well; otherwise the agent takes it for a crash.
        """
        if self._stopping:
            return
        self._stopping = True
        self._wake.send(b"\0")
        if current_thread() is not self._thread:
            self._thread.join()
        self._drop()
        if self._link is not None:
            try:
                if goodbye:
                    self._tell_windows()
                    self._link.send(said.Goodbye())
            except (LinkError, ValueError):  # a ValueError: the session was closed before
                pass
            self._link.close()
            self._link = None
        self._wake.close()
        self._woken.close()

    def _work(self) -> None:
        while not self._stopping:
            self._go_on()

    def _go_on(self) -> None:
        try:
            if self._link is not None or self._connect():
                self._listen()
                return
        except ProtocolError as e:  # a LinkError is one
            self._hang_up(e)
        self._look()
        left = self._connect_at - monotonic()
        self._wait(min(self._poll_s, max(left, 0.01)) if self._path is not None else self._poll_s)

    def _wait(self, seconds: float) -> None:
        self._woken.settimeout(seconds)
        with suppress(TimeoutError):
            self._woken.recv(1)

    def _connect(self) -> bool:
        """Try to reach the agent, if it is time to; say hello."""
        if self._path is None or monotonic() < self._connect_at:
            return False
        wait = random.uniform(0.5, 1.0) * self._retry_s
        self._connect_at = monotonic() + wait
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
        try:
            link = AgentSocket(self._path, agent_users(self._there.path.parent))
        except LinkError as e:
            _log.debug("%s", e)
            return False
        link.wake_by(self._woken)
        self._link = link
        link.send(
            said.Hello(
                model=self._there.model, digest=self.installed.digest, held=self._held(), name=self._name
            )
        )
        return True

    def _hang_up(self, why: EdgecError) -> None:
        _log.info("%s: %s; the directory is followed", self._there.model, why)
        if self._link is not None:
            self._link.close()
        self._link = None
        self._observe_s = _OBSERVE_S
        self._drop()

    def _look(self) -> None:
        """Follow the directory."""
        try:
            current = self._there.current()
        except ArtifactError as e:
            self._note(str(e))
            return
        if current is None:
            self._nothing_serves()
        else:
            self._follow(current)

    def _listen(self) -> None:
        """Do what the agent says, or tell it what is due."""
        assert self._link is not None
        due = self._observe_at
        if self._candidate is not None and self._candidate.shadow is not None:
            due = min(due, self._candidate.due)
        for message in self._link.receive(min(max(due - monotonic(), 0.0), 60.0)):
            self._obey(message)
            if self._link is None or self._stopping:
                return
        self._retry_s = _FIRST_RETRY_S
        if monotonic() >= self._observe_at:
            self._observe_at = monotonic() + self._observe_s
            self._tell_windows()
        self._tell_shadow()

    def _obey(self, message: said.LinkMessage) -> None:
        if isinstance(message, said.Active):
            if not message.digest:
                self._nothing_serves()
                return
            try:
                self._follow(self._slot(message.file, message.digest))
            except ArtifactError as e:
                self._note(str(e))
        elif isinstance(message, said.Prepare | said.Shadow | said.Switch):
            self._answer(message)
        elif isinstance(message, said.Drop):
            if self._candidate is not None and self._candidate.installed.digest == message.digest:
                self._drop()
                self._tell_held()
        elif isinstance(message, said.Observe):
            self._observe_s, self._observe_at = message.every_s, monotonic()
        elif isinstance(message, said.Refused):
            self._connect_at = monotonic() + (0.0 if message.reason == "stopping" else _REFUSED_S)
            raise LinkError(f"the agent refuses this application: {message.reason}: {message.detail}")

    def _answer(self, message: said.Prepare | said.Shadow | said.Switch) -> None:
        """Carry a request out, and say whether it is done."""
        assert self._link is not None
        try:
            installed = self._slot(message.file, message.digest)
            if isinstance(message, said.Switch):
                self._switch(installed, again=message.again)
            else:
                self._prepare(installed)
            if isinstance(message, said.Shadow):
                self._begin_shadow(message)
        except (EdgecError, OSError) as e:
            reason = re.sub(r"(?<=.)(?=[A-Z])", "_", type(e).__name__.removesuffix("Error")).lower()
            failed = said.Failed(request=message.request, reason=reason, detail=said.plain_text(str(e)))
            self._tell_held()
            self._link.send(failed)
            return
        self._tell_held()
        self._link.send(said.Done(request=message.request))

    def _slot(self, file: str, digest: str) -> InstalledFile:
        installed = self._there.slot(file)
        if installed.digest != digest:
            raise ArtifactError(f"{installed.path} holds {installed.digest:.12}, not {digest:.12}")
        return installed

    def _prepare(self, installed: InstalledFile) -> None:
        """Load a file beside the one that runs."""
        if self._candidate is not None and self._candidate.installed.digest == installed.digest:
            return
        self._drop()
        session = self._loader(installed.path)
        try:
            check_same_interface(self._session, session)
        except BaseException:
            session.close()
            raise
        self._candidate = _Candidate(installed, session)

    def _begin_shadow(self, message: said.Shadow) -> None:
        candidate = self._candidate
        assert candidate is not None
        self._end_shadow()
        candidate.request, candidate.every_s = message.request, message.every_s
        candidate.due = monotonic() + message.every_s
        candidate.shadow = Shadow(
            candidate.session.run, candidate.installed.digest,
            fraction=message.fraction, max_queue=_SHADOW_QUEUE, agree=None,
        )  # fmt: skip
        self._session.set_shadow(candidate.shadow)

    def _end_shadow(self) -> None:
        if self._candidate is not None and self._candidate.shadow is not None:
            with suppress(EdgecError):  # the session was closed before
                self._session.set_shadow(None)
            self._candidate.shadow.close()
            self._candidate.shadow = None

    def _drop(self) -> None:
        """Close what is loaded beside."""
        self._end_shadow()
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            candidate.session.close()

    def _switch(self, installed: InstalledFile, *, again: bool = False) -> None:
        """Run a file from the next call on."""
        if installed.digest == self.installed.digest and not again:
            self._drop()
            return
        self._end_shadow()
        candidate, self._candidate = self._candidate, None
        if candidate is not None and candidate.installed.digest == installed.digest:
            new = candidate.session
        else:
            if candidate is not None:
                candidate.session.close()
            new = self._loader(installed.path)
        self._known = dict([*self._known.items(), (new.content_digest, installed.digest)][-_MOST_KNOWN:])
        swap(self._session, new, self._drain_s)
        self.installed, self.problem = installed, ""
        self._collect()

    def _follow(self, installed: InstalledFile) -> None:
        """Run what is installed, unless that failed a moment ago."""
        digest = installed.digest
        if digest == self.installed.digest:
            self.problem = ""
            return
        if monotonic() < self._failed.get(digest, 0.0):
            return
        try:
            self._switch(installed)
        except (EdgecError, OSError) as e:
            self._failed = {digest: monotonic() + _AGAIN_S}
            self._note(f"{installed.path} cannot be run, and {self.installed.digest:.12} goes on: {e}")
            return
        self._failed = {}
        self._tell_held()

    def _nothing_serves(self) -> None:
        """Go on with what runs where the model was removed from the device."""
        self._note(f"nothing is installed any more, and {self.installed.digest:.12} goes on")

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("%s: %s", self._there.model, problem)
        self.problem = problem

    def _held(self) -> tuple[str, ...]:
        beside = [] if self._candidate is None else [self._candidate.installed.digest]
        return tuple(dict.fromkeys([self.installed.digest, *beside]))

    def _tell_held(self) -> None:
        if self._link is not None:
            self._link.send(said.Holds(digest=self.installed.digest, held=self._held()))

    def _collect(self) -> None:
        """Take what was observed; it is kept until the agent has it."""
        observer = self._session.observer
        if observer is None:
            return
        for window in observer.take_all():
            digest = self._known.get(window.artifact)
            if digest is not None and not window.is_empty:
                self._windows.append(observed(digest, window))

    def _tell_windows(self) -> None:
        self._collect()
        while self._link is not None and self._windows:
            self._link.send(self._windows[0])
            self._windows.popleft()

    def _tell_shadow(self) -> None:
        candidate = self._candidate
        if self._link is None or candidate is None or candidate.shadow is None:
            return
        if monotonic() >= candidate.due:
            candidate.due = monotonic() + candidate.every_s
            report = report_to_plain(candidate.shadow.report())
            self._link.send(said.Shadowed(request=candidate.request, report=report))
