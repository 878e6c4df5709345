"""Applications in other processes, over a Unix socket: they follow updates, and say how models do."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgec.device_agent._actions import WorkFailedError
from edgec.device_agent._application_socket import Caller, listen, may_come_in
from edgec.device_agent._findings import FAIL, INCONCLUSIVE
from edgec.device_agent._observed_windows import ObservedWindows
from edgec.errors import AgentError, ArtifactError, ProtocolError
from edgec.runtime import _link_messages as said
from edgec.runtime._link_figures import report_from_plain, reports_as_one
from edgec.runtime._model_directory import InstalledFile, ModelDirectory

if TYPE_CHECKING:
    from edgec.device_agent._findings import Verdict
    from edgec.device_agent._judging import ShadowCriteria
    from edgec.runtime import Window

_log = logging.getLogger(__name__)
_MOST_CALLERS = 64
_HELLO_S = 5.0
_LOOK_S = 0.25
_LONGEST_LOOP_S = 1.0


class Owner(Protocol):
    """What applications need of an agent."""

    @property
    def epoch(self) -> int:
        """Of the assignment that it is at."""
        ...

    def crashed(self, model: str, detail: str) -> None:
        """Note that an application died while it ran what serves."""
        ...


class SocketApplications:
    """Applications that follow models of this device from processes of their own.

    Args:
        path: Of the socket.
        models: Directory of all models.
        users: Ids of users that may connect beside root and this one; None for all whom `mode` lets in.
        mode: Of the socket, as of a file.
        group: Id of the group that the socket belongs to; None for this process's.
        criteria: For candidates on live inputs; None for the defaults.
        request_s: How long an application may take to load an artifact.
        observe_s: How often they tell what they observed.
        watch_s: The same in the first time after a switch.
        watch_for_s: How long that time is.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        path: Path,
        models: Path,
        *,
        users: Collection[int] | None = None,
        mode: int = 0o600,
        group: int | None = None,
        criteria: ShadowCriteria | None = None,
        request_s: float = 90.0,
        observe_s: float = 60.0,
        watch_s: float = 2.0,
        watch_for_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._models, self._users, self._mode, self._group = path, models, users, mode, group
        self._criteria, self._request_s, self._clock = criteria, request_s, clock
        self._observe_s, self._watch_s, self._watch_for_s = observe_s, watch_s, watch_for_s
        self._owner: Owner | None = None
        self._server: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._callers: list[Caller] = []
        self._crashes: list[tuple[str, str]] = []
        self._watched_until: dict[str, float] = {}
        self._windows = ObservedWindows()
        self._number = 0
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

    def connected(self, model: str) -> tuple[str, ...]:
        """Return which applications follow a model, for people."""
        with self._changed:
            return tuple(str(caller) for caller in self._of(model))

    def held(self, model: str) -> frozenset[str]:
        """Return the digests of files of a model that applications have open: leave those where they are."""
        with self._changed:
            return frozenset(digest for caller in self._of(model) for digest in caller.held)

    def take(self, model: str) -> list[Window]:
        """Return what was observed of calls of a model since the last time."""
        return self._windows.take(model)

    def follow(self, model: str, artifact: Path | None) -> None:
        """Have all applications of a model change to another artifact; return when they have.

        One that goes meanwhile is not waited for. Where nothing serves any more, they go on with what they
        have in memory.

        Args:
            model: Its name.
            artifact: In a slot of the model; None for nothing.

        Raises:
            WorkFailedError: One cannot use it (``reason`` is its own word), or does not answer
                (``application_hangs``).
        """
        with self._changed:
            self._watched_until[model] = self._clock() + self._watch_for_s
        if artifact is None:
            self._tell(model, said.Active(digest="", file="", epoch=self._epoch()))
            return
        failed = self._switch(model, self._installed(model, artifact), again=False)
        self._tell(model, said.Observe(every_s=self._watch_s))
        if failed:
            raise failed[0]

    def restart(self, model: str) -> None:
        """Have all applications of a model load what serves anew.

        Raises:
            WorkFailedError: As of `follow`.
        """
        installed = ModelDirectory(self._models, model).current()
        if installed is not None:
            _raise_first(self._switch(model, installed, again=True))

    def _switch(self, model: str, installed: InstalledFile, *, again: bool) -> list[WorkFailedError]:
        asked: dict[Caller, int] = {}
        with self._changed:
            for caller in self._of(model):
                asked[caller] = self._ask(
                    caller,
                    lambda number: said.Switch(
                        request=number, digest=installed.digest, file=installed.file, again=again
                    ),
                )
        self._nudge()
        return self._wait(asked)

    def shadow(
        self, model: str, candidate: Path, seconds: float, wanted: Callable[[], bool]
    ) -> Verdict | None:
        """Let a candidate see live inputs of all applications of a model, and judge it.

        Args:
            model: Its name.
            candidate: In a slot of the model.
            seconds: For at most so long.
            wanted: Whether to go on.

        Returns:
            None where no application follows the model.

        Raises:
            WorkFailedError: An application cannot load it, or all of them have died.
        """
        from edgec.device_agent._judging import judge_shadow

        if not self.connected(model):
            return None
        installed = self._installed(model, candidate)
        begin, asked = self._clock(), dict[Caller, int]()
        verdict = None
        try:
            while True:
                with self._changed:
                    here = self._of(model)
                    for caller in here:
                        if caller not in asked:
                            asked[caller] = self._ask(caller, _shadow_of(installed))
                    if not asked:
                        return None
                    self._nudge()
                    _raise_first(_failures(asked) + self._deaths(asked))
                    reports = {str(n): c.reports[n] for c, n in asked.items() if n in c.reports}
                    report = reports_as_one(reports)
                    passed = self._clock() - begin
                    if report is not None:
                        verdict = judge_shadow(report, passed, criteria=self._criteria)
                    over = verdict is not None and verdict.outcome != INCONCLUSIVE
                    if over or passed >= seconds or not wanted():
                        return verdict or _nothing_seen(passed)
                    self._changed.wait(min(_LOOK_S, max(seconds - passed, 0.01)))
        finally:
            with self._changed:
                for caller, number in asked.items():
                    caller.forget(number)
            # One that has passed stays loaded, for the switch that follows.
            if verdict is None or verdict.outcome == FAIL or not wanted():
                self._tell(model, said.Drop(digest=installed.digest))

    def _of(self, model: str) -> list[Caller]:
        return [caller for caller in self._callers if caller.model == model and not caller.finished]

    def _tell(self, model: str, message: said.LinkMessage) -> None:
        with self._changed:
            for caller in self._of(model):
                caller.say(message)
        self._nudge()

    def _ask(self, caller: Caller, request: Callable[[int], said.LinkMessage]) -> int:
        self._number += 1
        caller.asked.add(self._number)
        if not caller.say(request(self._number)):
            caller.answers[self._number] = said.Failed(
                request=self._number, reason="application_hangs", detail=f"{caller} reads nothing"
            )
        return self._number

    def _wait(self, asked: dict[Caller, int]) -> list[WorkFailedError]:
        """Wait for the answers of those who stay; return what went wrong."""
        end = self._clock() + self._request_s

        def answered() -> bool:
            return all(n in c.answers or c not in self._callers for c, n in asked.items())

        with self._changed:
            while not answered() and (left := end - self._clock()) > 0:
                self._changed.wait(min(left, _LOOK_S))
            failed = _failures(asked)
            for caller, number in asked.items():
                if number not in caller.answers and caller in self._callers:
                    detail = f"{caller} did not answer within {self._request_s:g} s"
                    failed.append(WorkFailedError("application_hangs", detail, passing=True))
                caller.forget(number)
        return failed

    def _deaths(self, asked: Collection[Caller]) -> list[WorkFailedError]:
        """Return who died while a candidate saw its inputs; without any left, nothing can be said."""
        gone = [caller for caller in asked if caller not in self._callers]
        died = [caller for caller in gone if not caller.finished]
        if died or len(gone) == len(asked):
            detail = f"{(died or gone)[0]} ended while the candidate saw its inputs"
            return [WorkFailedError("application_died", detail, passing=True)]
        return []

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
                    self._gone(caller)
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

    def _installed(self, model: str, artifact: Path) -> InstalledFile:
        try:
            there = ModelDirectory(self._models, model)
            return there.slot(f"{artifact.parent.name}/{artifact.name}")
        except ArtifactError as e:
            raise WorkFailedError("slot_damaged", f"{artifact}: {e}", passing=True) from e

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


def _shadow_of(installed: InstalledFile) -> Callable[[int], said.LinkMessage]:
    return lambda number: said.Shadow(request=number, digest=installed.digest, file=installed.file)


def _failures(asked: dict[Caller, int]) -> list[WorkFailedError]:
    failed = []
    for caller, number in asked.items():
        answer = caller.answers.get(number)
        if isinstance(answer, said.Failed):
            failed.append(WorkFailedError(answer.reason, f"{caller}: {answer.detail or answer.reason}"))
    return failed


def _raise_first(failed: list[WorkFailedError]) -> None:
    if failed:
        raise failed[0]


def _nothing_seen(seconds: float) -> Verdict:
    from edgec.device_agent._findings import Verdict

    return Verdict(outcome=INCONCLUSIVE, figures={"seconds": seconds, "compared": 0.0})
