"""The parent's end of a process that runs one model; see `edgec.runtime._isolation`."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

from numpy.typing import NDArray

import edgec.errors as errors
from edgec.artifact import TensorSpec
from edgec.errors import EdgecError, InferenceError, IsolationError
from edgec.runtime._memory import resident_bytes
from edgec.runtime._shared_tensors import Segment, SharedTensors

# First byte of a message.
RUN, ASK, DONE, FAILED = b"R", b"A", b"D", b"F"
MAX_MESSAGE = 2**17
CRASH, TIMEOUT, MEMORY = "crash", "timeout", "memory"
# How often a process that computes for long is looked at.
_LOOK_S = 0.1
_END_S = 10.0
_START = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
    "from edgec.runtime._isolated_child import main; main()"
)


class Worker:
    """A process that has loaded a model; for one caller at a time.

    Attributes:
        engine_version: Of the engine, as it says itself.
        placement: How many nodes run where.
        calls: How many it has answered.
    """

    engine_version: str
    placement: Mapping[str, int]
    calls: int

    def __init__(
        self,
        request: Mapping[str, Any],
        artifact: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        timeout_s: float,
    ) -> None:
        """Start it and wait until the model is loaded.

        Args:
            request: What `edgec.runtime._isolated_child` is told, as JSON has it.
            artifact: Descriptor of the artifact.
            inputs: Of the model.
            outputs: Of the model.
            timeout_s: For all of it.

        Raises:
            EdgecError: The model cannot be loaded: what `edgec.runtime.load` would raise.
            IsolationError: The process ended, or took too long.
        """
        self.calls = 0
        self._inputs = SharedTensors(inputs, Segment())
        self._outputs = SharedTensors(outputs, Segment())
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, self._life = os.pipe()
        shared = (theirs.fileno(), life, self._inputs.segment.fd, self._outputs.segment.fd, artifact)
        try:
            # Through a new interpreter: a fork would take the locks of this one's threads along.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *map(str, shared), "\n".join(sys.path)],
                pass_fds=shared,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except BaseException:
            os.close(self._life)
            raise
        finally:
            theirs.close()
            os.close(life)
        files = self._socket, self._inputs, self._outputs
        self._end = weakref.finalize(self, _end, self._process, os.getpid(), self._life, files)
        _workers.add(self)
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLIN)
        try:
            self._send(json.dumps(request).encode())
            facts = json.loads(self._receive(timeout_s, None))
        except BaseException:
            self.end()
            raise
        self.engine_version, self.placement = str(facts["engine_version"]), facts["placement"]

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """How much of it is in memory."""
        return resident_bytes(self._process.pid)

    def run(
        self, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None, memory_bytes: float | None
    ) -> dict[str, NDArray[Any]]:
        """Run once.

        Args:
            inputs: Of the model.
            timeout_s: Longest time; None for as long as it takes.
            memory_bytes: Most that the process may have in memory; it is looked at while it computes.

        Raises:
            IsolationError: The process ended, took too long or too much memory; it has to be ended.
            EdgecError: What the engine raised; it can be used again.
        """
        try:
            told = self._inputs.write(inputs)
        except OSError as e:
            raise InferenceError(f"there is no memory to hand the inputs over in: {e.strerror}") from e
        self._send(RUN + told)
        reply = self._receive(timeout_s, memory_bytes)
        try:
            outputs = self._outputs.read(reply)
        except ValueError as e:
            raise IsolationError(f"the process that runs the model answered nonsense: {e}", CRASH) from e
        self.calls += 1
        return outputs

    def ask(self, timeout_s: float | None) -> dict[str, Any]:
        """Return what the engine tells of the model after it has loaded it; errors as of `run`."""
        self._send(ASK)
        answer: dict[str, Any] = json.loads(self._receive(timeout_s, None))
        return answer

    def end(self) -> None:
        """Kill the process, and what it started; calling it again does nothing."""
        self._end()

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message)
        except OSError as e:  # it has ended
            raise self._lost() from e

    def _receive(self, timeout_s: float | None, memory_bytes: float | None) -> bytes:
        """Return the next message, without its first byte; raise what it says where that is an error."""
        end = None if timeout_s is None else monotonic() + timeout_s
        while not self._poller.poll(
            1e3 * (_LOOK_S if end is None else min(_LOOK_S, max(end - monotonic(), 0)))
        ):
            if memory_bytes is not None and (has := self.resident_bytes) > memory_bytes:
                raise too_large(has, memory_bytes)
            if end is not None and monotonic() >= end:
                raise IsolationError(
                    f"the model did not answer within {timeout_s:g} s: its process was ended", TIMEOUT
                )
        try:
            message = self._socket.recv(MAX_MESSAGE)
        except OSError as e:
            raise self._lost() from e
        if not message:
            raise self._lost()
        if message[:1] == FAILED:
            raise _error(**json.loads(message[1:]))
        return message[1:]

    def _lost(self) -> IsolationError:
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return IsolationError("the process that runs the model hung up, and does not end", CRASH)
        what = f"exit status {status}"
        if status < 0:
            what = f"signal {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            what += ", which the system sends where memory is short"
        return IsolationError(f"the process that runs the model ended with {what}", CRASH)


def too_large(has: float, allowed: float) -> IsolationError:
    """Return what is raised where a process takes too much memory."""
    return IsolationError(
        f"the process that runs the model took {has / 2**20:.0f} MiB, and {allowed / 2**20:.0f} are allowed: "
        "it was ended",
        MEMORY,
    )


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _forget() -> None:
    """Let a fork of this process go of what its parent has: the next call starts a process of its own."""
    for worker in list(_workers):
        worker.end()


os.register_at_fork(after_in_child=_forget)


class _Closable(Protocol):
    def close(self) -> None: ...


def _end(process: subprocess.Popen[bytes], owner: int, life: int, files: tuple[_Closable, ...]) -> None:
    if os.getpid() == owner:  # in a fork of the parent it is not ours to end
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    for file in files:
        file.close()
    os.close(life)


def _error(kind: str, message: str) -> EdgecError:
    """Return an error that was raised in the process."""
    found = getattr(errors, kind, InferenceError)
    try:
        error = found(message)
    except TypeError:  # its attributes do not come along
        error = InferenceError(message)
    return error if isinstance(error, EdgecError) else InferenceError(message)
