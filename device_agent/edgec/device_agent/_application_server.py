"""Who is at the agent's socket: applications that connect, say what they run, and go."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from edgec.device_agent._application_socket import Caller, listen, may_come_in
from edgec.device_agent._observed_windows import ObservedWindows
from edgec.errors import AgentError, ArtifactError, ProtocolError
from edgec.runtime import _link_messages as said
from edgec.runtime._link_figures import report_from_plain
from edgec.runtime._model_directory import ModelDirectory

_log = logging.getLogger(__name__)
_MOST_CALLERS = 64
_HELLO_S = 5.0
_LONGEST_LOOP_S = 1.0
# Of what one that has gone may have said, more than a socket keeps.
_MOST_READS = 16


class Owner(Protocol):
    """What applications need of an agent."""

    @property
    def epoch(self) -> int:
        """Of the assignment that it is at."""
        ...

    def crashed(self, model: str, detail: str) -> None:
        """Note that an application died while it ran what serves."""
        ...


class ApplicationServer:
    """Serves applications in a thread of its own; what is asked of them is up to who derives from it.

    Who they are and what they said changes under `_changed`, which is notified of it.

    Its arguments are those of `SocketApplications`.
    """

    def __init__(
        self,
        path: Path,
        models: Path,
        *,
        users: Collection[int] | None,
        mode: int,
        group: int | None,
        observe_s: float,
        watch_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._models, self._users, self._mode, self._group = path, models, users, mode, group
        self._observe_s, self._watch_s, self._clock = observe_s, watch_s, clock
        self._owner: Owner | None = None
        self._server: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._callers: list[Caller] = []
        self._crashes: list[tuple[str, str]] = []
        self._watched_until: dict[str, float] = {}
        self._windows = ObservedWindows()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)

    def start(self, agent: Owner) -> None:
        """Listen.

        Raises:
            AgentError: The socket cannot be made.
        """
        self._owner = agent
        self._server = listen(self._path, mode=self._mode, group=self._group)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain)
        self._thread = threading.Thread(target=self._serve, name="edgec-applications", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hang up; applications go on with what they run, and find the agent again when it is back."""
        if self._thread is None:
            return
        self._stopping = True
        self._nudge()
        self._thread.join()
        self._thread = None

    def _of(self, model: str) -> list[Caller]:
        return [caller for caller in self._callers if caller.model == model and not caller.finished]

    def _tell(self, model: str, message: said.LinkMessage) -> None:
        with self._changed:
            for caller in self._of(model):
                caller.say(message)
        self._nudge()

    def _nudge(self) -> None:
        with suppress(BlockingIOError):  # it is awake already
            self._wake.send(b"\0")

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _serve(self) -> None:
        while not self._stopping:
            busy = self._watched_until or any(not caller.model for caller in self._callers)
            for key, _events in self._selector.select(_LONGEST_LOOP_S if busy else None):
                key.data()
            self._look_after()
            crashes, self._crashes = self._crashes, []
            for model, detail in crashes:
                if self._owner is not None:
                    self._owner.crashed(model, detail)
        with self._changed:
            for caller in self._callers:
                caller.refuse("stopping", "the agent stops")
                caller.link.close()
            self._callers.clear()
            self._changed.notify_all()
        assert self._server is not None
        self._selector.close()
        self._path.unlink(missing_ok=True)
        for end in (self._server, self._wake, self._woken):
            end.close()

    def _look_after(self) -> None:
        """Send what waits, end what is silent, and slow down what was watched."""
        now = self._clock()
        with self._changed:
            for caller in list(self._callers):
                if not caller.model and now - caller.since > _HELLO_S:
                    self._send_away(caller, "malformed", f"no hello within {_HELLO_S:g} s")
                elif not caller.write():
                    self._hear_out(caller)
                else:
                    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if caller.unsent else 0)
                    key = self._selector.get_key(caller.link)
                    if key.events != events:
                        self._selector.modify(caller.link, events, key.data)
            over = [model for model, until in self._watched_until.items() if now >= until]
            for model in over:
                del self._watched_until[model]
        for model in over:
            self._tell(model, said.Observe(every_s=self._observe_s))

    def _accept(self) -> None:
        assert self._server is not None
        try:
            link, _ = self._server.accept()
        except OSError as e:  # it has gone, or there are too many files
            _log.warning("an application cannot connect: %s", e)
            return
        caller = Caller.accept(link, self._clock())
        with self._changed:
            self._callers.append(caller)
            self._selector.register(link, selectors.EVENT_READ, lambda: self._hear(caller))
            if not may_come_in(caller.user, self._mode, self._users):
                self._send_away(caller, "permission", f"user {caller.user} is not allowed")
            elif len(self._callers) > _MOST_CALLERS:
                self._send_away(caller, "too_many", f"at most {_MOST_CALLERS} applications are served")

    def _hear(self, caller: Caller) -> None:
        """Take in what an application says."""
        with self._changed:
            if caller not in self._callers:
                return
            try:
                messages = caller.read(self._clock())
                for message in messages or ():
                    self._take(caller, message)
            except (ProtocolError, AgentError) as e:
                self._send_away(caller, "malformed", str(e))
                return
            if messages is None:
                self._gone(caller)
            self._changed.notify_all()

    def _hear_out(self, caller: Caller) -> None:
        """Take in what an application said before it went: a goodbye, maybe."""
        try:
            # It may read parts of a line, which are no message yet.
            for _ in range(_MOST_READS):
                for message in caller.read(self._clock()) or ():
                    self._take(caller, message)
                if caller not in self._callers:
                    return
        except (ProtocolError, AgentError) as e:
            self._send_away(caller, "malformed", str(e))
        self._gone(caller)

    def _take(self, caller: Caller, message: said.LinkMessage) -> None:
        if caller.finished:
            return
        if not caller.model or isinstance(message, said.Hello):
            self._greet(caller, message)
        elif isinstance(message, said.Holds):
            caller.digest, caller.held = message.digest, frozenset(message.held)
        elif isinstance(message, said.Done | said.Failed):
            if message.request in caller.asked:
                caller.answers[message.request] = message
        elif isinstance(message, said.Shadowed):
            if message.request in caller.asked:
                caller.reports = {message.request: report_from_plain(message.report)}
        elif isinstance(message, said.Observed):
            self._windows.put(caller.model, ModelDirectory(self._models, caller.model), message)
        elif isinstance(message, said.Goodbye):
            caller.finished = True
            self._gone(caller)

    def _greet(self, caller: Caller, message: said.LinkMessage) -> None:
        if caller.model or not isinstance(message, said.Hello):
            raise ProtocolError("expected one hello, and first")
        if message.v != said.VERSION:
            detail = f"this agent speaks version {said.VERSION}, not {message.v}"
            self._send_away(caller, "version", detail)
            return
        caller.model, caller.digest, caller.name = message.model, message.digest, message.name
        caller.held = frozenset(message.held)
        caller.say(self._active(caller.model))
        watched = caller.model in self._watched_until
        caller.say(said.Observe(every_s=self._watch_s if watched else self._observe_s))
        _log.info("%s follows %s", caller, caller.model)

    def _active(self, model: str) -> said.Active:
        try:
            installed = ModelDirectory(self._models, model).current()
        except ArtifactError as e:
            _log.warning("%s", e)
            installed = None
        if installed is None:
            return said.Active(digest="", file="", epoch=self._epoch())
        return said.Active(digest=installed.digest, file=installed.file, epoch=self._epoch())

    def _epoch(self) -> int:
        return 0 if self._owner is None else self._owner.epoch

    def _send_away(self, caller: Caller, reason: str, detail: str) -> None:
        _log.warning("%s is refused: %s", caller, detail)
        caller.refuse(reason, detail)
        self._gone(caller)

    def _gone(self, caller: Caller) -> None:
        """Forget an application; where it ran what serves and said no goodbye, it has crashed."""
        if caller not in self._callers:
            return
        self._callers.remove(caller)
        self._selector.unregister(caller.link)
        caller.link.close()
        self._changed.notify_all()
        if caller.finished or not caller.digest:
            return
        if caller.digest == self._active(caller.model).digest:
            # Told when nothing is locked any more.
            self._crashes.append((caller.model, f"{caller} ended without a goodbye"))
