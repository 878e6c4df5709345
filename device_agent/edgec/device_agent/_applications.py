"""Applications in other processes, over a Unix socket: they follow updates, and say how models do."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.device_agent._actions import WorkFailedError
from edgec.device_agent._application_server import ApplicationServer
from edgec.device_agent._application_socket import Caller
from edgec.device_agent._findings import FAIL, INCONCLUSIVE
from edgec.errors import ArtifactError
from edgec.runtime import _link_messages as said
from edgec.runtime._link_figures import reports_as_one
from edgec.runtime._model_directory import InstalledFile, ModelDirectory

if TYPE_CHECKING:
    from edgec.device_agent._findings import Verdict
    from edgec.device_agent._judging import ShadowCriteria
    from edgec.runtime import Window

_LOOK_S = 0.25


class SocketApplications(ApplicationServer):
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
        super().__init__(
            path,
            models,
            users=users,
            mode=mode,
            group=group,
            observe_s=observe_s,
            watch_s=watch_s,
            clock=clock,
        )
        self._criteria, self._request_s, self._watch_for_s = criteria, request_s, watch_for_s
        self._number = 0

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

    def _installed(self, model: str, artifact: Path) -> InstalledFile:
        try:
            there = ModelDirectory(self._models, model)
            return there.slot(f"{artifact.parent.name}/{artifact.name}")
        except ArtifactError as e:
            raise WorkFailedError("slot_damaged", f"{artifact}: {e}", passing=True) from e


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
