"""Remote operations: what an operator may have a device do, bounded in number, time and size.

Each is a function from arguments to what JSON can hold. The agent has verified who orders it, for whom and
until when, and that it was not ordered before; it replies, and keeps the audit.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from edgec.artifact._fields import Fields, mapping, matching, natural, number
from edgec.device_agent._logs import LogMemory, clean_tail, tail_of
from edgec.device_agent._policy import TelemetryPolicy
from edgec.device_agent._rates import Rate, TokenBucket
from edgec.device_agent._seams import OrderRefusedError
from edgec.errors import AgentError, ManifestError

if TYPE_CHECKING:
    from edgec.trust import SignedCommand

# By command; benchmarks and restarts disturb what serves.
RATES: Mapping[str, Rate] = MappingProxyType(
    {
        "benchmark": Rate(burst=2, every_s=600.0),
        "logs": Rate(burst=5, every_s=30.0),
        "restart": Rate(burst=2, every_s=300.0),
        "status": Rate(burst=10, every_s=5.0),
        "telemetry": Rate(burst=5, every_s=60.0),
        "verify": Rate(burst=3, every_s=120.0),
    }
)
_MOST_LOG = 32 * 1024
_MOST_LINES = 2000
_MOST_SECONDS = 60.0
_CHILD_S = 180.0
_CHILD_MIB = 4096.0
_MOST_SAID = 256 * 1024
_END_S = 5.0
_NAME = matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name of 1 to 64 letters, digits, '_', '.', '-'")


class Operated(Protocol):
    """What operations need of an agent."""

    def status(self) -> Any:
        """Return what runs; its `to_dict` is sent."""
        ...

    def serving(self, model: str) -> Path | None:
        """Return the path of the artifact that serves; None for none."""
        ...

    def restart(self, model: str) -> None:
        """Load what serves anew, wherever it is used."""
        ...

    def set_telemetry_policy(self, policy: TelemetryPolicy) -> TelemetryPolicy:
        """Let leave what a policy allows, within what the owner permits; return what holds."""
        ...


class RemoteOperations:
    """``status``, ``logs``, ``verify``, ``benchmark``, ``telemetry`` and ``restart``.

    Args:
        clock: Monotonic, in seconds.
        logs: Log files that may be read from afar, by name; what the agent logs is ``agent``.
        rates: How often each may be ordered; those that are missing are as in `RATES`.
        child_s: How long verifying or measuring may take.
        child_mib: Memory that it may take.

    Attributes:
        names: Of the operations.
        memory: Handler of `logging` that keeps what ``logs`` tells of the agent.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        logs: Mapping[str, Path] | None = None,
        rates: Mapping[str, Rate] | None = None,
        child_s: float = _CHILD_S,
        child_mib: float = _CHILD_MIB,
    ) -> None:
        self.memory = LogMemory()
        self._logs = dict(logs or {})
        self._child_s, self._child_mib = child_s, child_mib
        self._do: dict[str, Callable[[Fields, Operated], Mapping[str, Any]]] = {
            "benchmark": self._benchmark,
            "logs": self._tail,
            "restart": self._restart,
            "status": self._status,
            "telemetry": self._telemetry,
            "verify": self._verify,
        }
        self.names: Collection[str] = tuple(self._do)
        rates = {**RATES, **(rates or {})}
        self._buckets = {name: TokenBucket(rates[name], clock) for name in self._do}
        self._measuring = Lock()

    def carry_out(self, command: SignedCommand, agent: Operated) -> Mapping[str, Any]:
        """Do what a command says; return what JSON can hold.

        Raises:
            OrderRefusedError: It is ordered too often (``rate``), with arguments that it does not take
                (``args``), of a model that is not here (``unknown_model``), or beside another (``busy``).
            EdgecError, OSError: It has failed.
        """
        do = self._do.get(command.name)
        if do is None:
            raise OrderRefusedError("unknown_command", f"there is no operation {command.name!r}")
        wait_s = self._buckets[command.name].take()
        if wait_s:
            detail = f"{command.name} is ordered too often: again in {wait_s:.0f} s"
            raise OrderRefusedError("rate", detail)
        try:
            return do(Fields(command.args, command.name), agent)
        except ManifestError as e:
            raise OrderRefusedError("args", str(e)) from e

    def _status(self, args: Fields, agent: Operated) -> Mapping[str, Any]:
        found: Mapping[str, Any] = agent.status().to_dict()
        return found

    def _tail(self, args: Fields, agent: Operated) -> Mapping[str, Any]:
        name = args.may("source", _NAME, "agent")
        lines = min(args.may("lines", natural, 200), _MOST_LINES)
        most = min(args.may("bytes", natural, 16 * 1024), _MOST_LOG)
        if name != "agent" and name not in self._logs:
            known = ", ".join(["agent", *self._logs])
            raise OrderRefusedError("args", f"there is no log {name!r}; there are {known}")
        raw = self.memory.tail(4 * most) if name == "agent" else tail_of(self._logs[name], 4 * most)
        text, cut = clean_tail(raw, lines=lines, most_bytes=most)
        return {"source": name, "text": text, "cut": cut}

    def _telemetry(self, args: Fields, agent: Operated) -> Mapping[str, Any]:
        try:
            policy = TelemetryPolicy.from_dict(args.need("policy", mapping))
        except AgentError as e:
            raise OrderRefusedError("args", str(e)) from e
        return {"policy": agent.set_telemetry_policy(policy).to_dict()}

    def _restart(self, args: Fields, agent: Operated) -> Mapping[str, Any]:
        model = args.need("model", _NAME)
        self._serving(model, agent)
        agent.restart(model)
        return {}

    def _verify(self, args: Fields, agent: Operated) -> Mapping[str, Any]:
        artifact = self._serving(args.need("model", _NAME), agent)
        return self._try({"do": "verify", "artifact": os.fspath(artifact)})

    def _benchmark(self, args: Fields, agent: Operated) -> Mapping[str, Any]:
        artifact = self._serving(args.need("model", _NAME), agent)
        seconds = args.may("seconds", number, 5.0)
        if not 0.1 <= seconds <= _MOST_SECONDS:
            raise OrderRefusedError("args", f"benchmark.seconds must be from 0.1 to {_MOST_SECONDS:g}")
        return self._try({"do": "benchmark", "artifact": os.fspath(artifact), "seconds": seconds})

    def _serving(self, model: str, agent: Operated) -> Path:
        artifact = agent.serving(model)
        if artifact is None:
            raise OrderRefusedError("unknown_model", f"nothing of {model} is installed here")
        return artifact

    def _try(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do it in a process of its own, one at a time."""
        if not self._measuring.acquire(blocking=False):
            raise OrderRefusedError("busy", "another artifact is being verified or measured: order it again")
        try:
            cpu_s = self._child_s * (os.cpu_count() or 1) + 5
            whole = {**request, "memory_mib": self._child_mib, "cpu_seconds": cpu_s}
            return _run_child(whole, self._child_s)
        finally:
            self._measuring.release()


def _read_ends(process: subprocess.Popen[bytes], end: float) -> list[bytes]:
    """Return the end of what a process says on both streams, however much it is.

    Raises:
        TimeoutError: It did not end by then.
    """
    streams = [process.stdout, process.stderr]
    tails = dict.fromkeys(streams, b"")
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, stream)
        while selector.get_map():
            if time.monotonic() >= end:
                raise TimeoutError
            for key, _ in selector.select(max(end - time.monotonic(), 0.0)):
                if data := os.read(key.fd, 65536):
                    tails[key.data] = (tails[key.data] + data)[-_MOST_SAID:]
                else:
                    selector.unregister(key.fileobj)
    return [tails[stream] for stream in streams]


def _run_child(request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgec.device_agent._operation_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and says why
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.close()
        out, err = _read_ends(process, time.monotonic() + timeout_s)
        process.wait(_END_S)
    except (TimeoutError, subprocess.TimeoutExpired) as e:
        raise AgentError(f"{request['do']} was not through after {timeout_s:g} s") from e
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    said = out.strip().splitlines()
    try:
        found = json.loads(said[-1], parse_constant=lambda _: None) if said else None
    except ValueError:
        found = None
    if process.returncode != 0 or not isinstance(found, dict):
        last = clean_tail(err, lines=1, most_bytes=500)[0]
        raise AgentError(
            f"{request['do']} ended with status {process.returncode}: {last or 'it said nothing'}"
        )
    if "error" in found:
        raise AgentError(str(found["error"]))
    return found
