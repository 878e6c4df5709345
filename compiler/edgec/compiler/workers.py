"""Worker processes: a converter that crashes or hangs takes its candidate with it, and nothing else.

A worker is ``python -m edgec.compiler.worker``, connected by a socket. It keeps what candidates share
(calibration, quantized graphs) in memory, so work comes in groups, whose jobs one worker does in turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from edgec.errors import CompileError, OutputError

CONTEXT = "context.pickle"
_LAST_LINES = 3
_START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work.

    Attributes:
        key: Tells jobs apart.
        payload: What the worker's function is called with; fit for pickling.
    """

    key: str
    payload: Any


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that its worker did not survive.

    Attributes:
        reason: In words, with the last lines that the worker printed.
    """

    reason: str


@dataclass(kw_only=True)
class _Worker:
    """A process, and what it is at."""

    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    group: deque[Job] = field(default_factory=deque)
    deadline: float = 0.0


class Workers:
    """Up to `count` worker processes that run jobs; use it in a ``with`` statement.

    Args:
        count: How many.
        scratch: Directory for their logs; in it is `CONTEXT`, a pickle that every worker loads first.
        timeout_s: For one job.
        in_process: What a worker does with a payload; does all the work where `count` is 0.
    """

    def __init__(
        self, *, count: int, scratch: Path, timeout_s: float, in_process: Callable[[Any], Any]
    ) -> None:
        self._count = count
        self._scratch = scratch
        self._timeout_s = timeout_s
        self._in_process = in_process
        self._workers: list[_Worker] = []
        self._started = 0
        # Sockets have short path limits, which a deep scratch directory may exceed.
        self._sockets = tempfile.TemporaryDirectory(prefix="edgec-")

    def run(
        self,
        groups: Sequence[Sequence[Job]],
        *,
        progress: Callable[[str], None],
        done: Callable[[Job, Any], None],
    ) -> None:
        """Run every job; jobs of one group run in turn in one worker, groups side by side.

        Args:
            groups: The jobs.
            progress: Told what workers are at.
            done: Called with each job and its result, or a `Failure`, as they come.

        Raises:
            OutputError: A worker cannot write to the disk.
            CompileError: A worker failed in a way that is a bug of edgec; its traceback is in the message.
        """
        if self._count == 0:
            for job in (job for group in groups for job in group):
                done(job, self._in_process(job.payload))
            return
        waiting = deque(deque(group) for group in groups if group)
        while waiting or any(w.group for w in self._workers):
            self._assign(waiting)
            self._step(waiting, progress, done)

    def close(self) -> None:
        """End every worker."""
        for worker in self._workers:
            _kill(worker)
        self._workers.clear()
        self._sockets.cleanup()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assign(self, waiting: deque[deque[Job]]) -> None:
        while waiting and len([w for w in self._workers if w.group]) < self._count:
            worker = next((w for w in self._workers if not w.group), None) or self._start()
            worker.group = waiting.popleft()
            self._send(worker)

    def _send(self, worker: _Worker) -> None:
        worker.deadline = time.monotonic() + self._timeout_s
        worker.connection.send(worker.group[0].payload)

    def _step(
        self,
        waiting: deque[deque[Job]],
        progress: Callable[[str], None],
        done: Callable[[Job, Any], None],
    ) -> None:
        busy = [w for w in self._workers if w.group]
        left = max(0.0, min(w.deadline for w in busy) - time.monotonic())
        ready = wait([w.connection for w in busy], timeout=left)
        for worker in busy:
            if worker.connection in ready:
                self._receive(worker, waiting, progress, done)
            elif time.monotonic() >= worker.deadline:
                reason = f"it took longer than {self._timeout_s:g} s (--timeout-s){_last_lines(worker.log)}"
                self._give_up(worker, reason, waiting, done)

    def _receive(
        self,
        worker: _Worker,
        waiting: deque[deque[Job]],
        progress: Callable[[str], None],
        done: Callable[[Job, Any], None],
    ) -> None:
        try:
            kind, value = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.wait()
            reason = f"it crashed ({_end(worker.process.returncode)}){_last_lines(worker.log)}"
            self._give_up(worker, reason, waiting, done)
            return
        match kind:
            case "progress":
                progress(value)
            case "output-error":
                raise OutputError(value)
            case "bug":
                raise CompileError(f"a worker failed unexpectedly, please report this: {value}")
            case _:
                done(worker.group.popleft(), value)
                if worker.group:
                    self._send(worker)

    def _give_up(
        self, worker: _Worker, reason: str, waiting: deque[deque[Job]], done: Callable[[Job, Any], None]
    ) -> None:
        _kill(worker)
        self._workers.remove(worker)
        done(worker.group.popleft(), Failure(reason=reason))
        if worker.group:
            waiting.appendleft(worker.group)

    def _start(self) -> _Worker:
        self._started += 1
        address = str(Path(self._sockets.name) / str(self._started))
        log = self._scratch / f"worker-{self._started}.log"
        key = os.urandom(16)
        with Listener(address, family="AF_UNIX", authkey=key) as listener, log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "edgec.compiler.worker",
                    address,
                    str(self._scratch / CONTEXT),
                    str(self._started),
                ],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                # Ctrl-C is for the parent, which decides what becomes of the workers.
                start_new_session=True,
            )
            assert process.stdin is not None
            process.stdin.write(key)
            process.stdin.close()
            listener._listener._socket.settimeout(_START_S)  # type: ignore[attr-defined]
            try:
                connection = listener.accept()
            except (OSError, EOFError) as e:
                process.kill()
                raise CompileError(f"a worker process did not start: {e}{_last_lines(log)}") from e
        worker = _Worker(process=process, connection=connection, log=log)
        self._workers.append(worker)
        return worker


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.connection.close()


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def _last_lines(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f"; its last lines: {' | '.join(lines[-_LAST_LINES:])}" if lines else ""
