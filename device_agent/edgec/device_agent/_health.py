"""The health gate: a model is tried on this device, in a process of its own, before it may serve.

Whatever the model does to its engine, hang, crash, abort or take all memory, happens to that process.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgec.device_agent._findings import Finding
from edgec.runtime._memory import resident_bytes

_MAX_LINE = 2**20
_TAIL = 2000
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class HealthBudgets:
    """What a release holds a model to on this device; None for what its manifest says, or what follows.

    Attributes:
        latency_p95_ms: Largest 95th percentile of the latency of one inference.
        memory_mib: Most that the process may grow for it.
        slowdown: Without a budget: how many times slower than the previous model, in turns with it.
        growth: Likewise: how many times the memory of the previous model, and 64 MiB.
        agreement: Least share of the golden inputs of both on which it agrees with the previous model.
        scale: How many times larger or smaller the spread of its outputs may be.
    """

    latency_p95_ms: float | None = None
    memory_mib: float | None = None
    slowdown: float = 3.0
    growth: float = 4.0
    agreement: float = 0.5
    scale: float = 4.0


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """What the gate says.

    Attributes:
        passed: Whether the model may go on.
        findings: Why not; empty where it may.
        figures: What was measured: ``{"latency_p95_ms": 3.1, "calls": 200}``.
        phase: That it ended in; ``done`` where all was tried.
        seconds: That it took.
        notes: What is no fault of the model: that the previous one could not be compared with, and why.
    """

    passed: bool
    findings: tuple[Finding, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    phase: str = "done"
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def check_health(
    artifact: str | Path,
    *,
    previous: str | Path | None = None,
    budgets: HealthBudgets | None = None,
    timeout_s: float = 30.0,
    calls: int = 200,
    memory_limit_mib: float | None = None,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
) -> HealthReport:
    """Try a model in a process of its own.

    It is loaded with strict placement and runs its golden vectors; zeros, extremes, random and shifted inputs
    must give finite numbers, and different inputs different outputs; its outputs must lie where its manifest
    says that they usually do; then it is called again and again, in turns with the previous model where there
    is one: latency, memory, and what those two say of the same inputs are compared.

    Args:
        artifact: Of the model.
        previous: Artifact of the model that it is to replace; None where there is none.
        budgets: Of the release; None for the defaults.
        timeout_s: Of all; a model that is not through then hangs. Slow models are called less often. Half as
            long again where the previous model hangs.
        calls: In a row.
        memory_limit_mib: Of the process; None for half of what is free now.
        threads: Of an inference.
        cache_dir: Where the engine may keep what it compiled.
    """
    start = time.monotonic()
    memory = _half_of_free_mib() if memory_limit_mib is None else memory_limit_mib
    request: dict[str, Any] = {
        "artifact": os.fspath(artifact),
        "previous": None if previous is None else os.fspath(previous),
        "budgets": asdict(HealthBudgets() if budgets is None else budgets),
        "seconds": timeout_s * 0.7,
        "cpu_seconds": timeout_s * (os.cpu_count() or 1) + 5,
        "calls": calls,
        "memory_mib": memory,
        "threads": threads,
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
    }
    report = _try(request, timeout_s, memory)
    if report.phase != "previous" or report.passed:
        return report
    # It was the previous model that failed, which is no fault of this one.
    left = max(timeout_s - (time.monotonic() - start), timeout_s / 2)
    alone = _try({**request, "previous": None, "seconds": left * 0.7}, left, memory)
    return replace(alone, notes=tuple(f"the previous model: {f.message}" for f in report.findings))


def _try(request: Mapping[str, Any], timeout_s: float, memory_mib: float) -> HealthReport:
    child = _Child(request, timeout_s, memory_mib)
    try:
        return child.follow()
    finally:
        child.end()


class _Child:
    """The process that tries the model; it tells in lines of JSON what it does and finds."""

    def __init__(self, request: Mapping[str, Any], timeout_s: float, memory_mib: float) -> None:
        self._timeout_s, self._memory_mib = timeout_s, memory_mib
        self._start = time.monotonic()
        self._phase, self._call = "start", 0
        self._findings: list[Finding] = []
        self._figures: dict[str, float] = {}
        self._notes: list[str] = []
        self._said = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgec.device_agent._health_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that what it starts ends with it
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and says why
            self._process.stdin.write(json.dumps(request).encode())
            self._process.stdin.close()

    def follow(self) -> HealthReport:
        """Read what it says until it ends, or must."""
        buffer = b""
        with selectors.DefaultSelector() as selector:
            out, err = self._process.stdout, self._process.stderr
            assert out is not None
            assert err is not None
            for stream in (out, err):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(_POLL_S):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is err:
                        self._said = (self._said + data)[-_TAIL:]
                    else:
                        *lines, buffer = (buffer + data).split(b"\n")
                        buffer = buffer[-_MAX_LINE:]
                        for line in lines:
                            self._hear(line)
                if self._must_end():
                    return self._report()
        self._process.wait()
        self._judge_end()
        return self._report()

    def end(self) -> None:
        """Kill it, and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _hear(self, line: bytes) -> None:
        # An engine may print to the same stream: what is no line of ours is passed over.
        try:
            said = json.loads(line)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        if "phase" in said:
            self._phase, self._call = str(said["phase"]), 0
        if "call" in said:
            self._call = int(said["call"])
        if "finding" in said:
            self._findings.append(Finding(**said["finding"]))
        if "note" in said:
            self._notes.append(str(said["note"]))
        self._figures.update(said.get("figures", {}))

    def _must_end(self) -> bool:
        if time.monotonic() - self._start > self._timeout_s:
            self._add(
                "hang", f"it was not through after {self._timeout_s:g} s", self._timeout_s, self._timeout_s
            )
            return True
        used = resident_bytes(self._process.pid) / 2**20
        if used > self._memory_mib:
            self._add(
                "memory",
                f"it took {used:.0f} MiB, and {self._memory_mib:.0f} are allowed",
                used,
                self._memory_mib,
            )
            return True
        return False

    def _judge_end(self) -> None:
        status = self._process.returncode
        if status == 0 and self._phase == "done":
            return
        if any(finding.word in ("load", "memory") for finding in self._findings):
            return
        last = self._said.decode(errors="replace").strip().splitlines()
        what = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        word = "cpu_time" if status == -signal.SIGXCPU else "crash"
        self._add(word, f"its process ended with {what}: {last[-1] if last else 'it said nothing'}", status)

    def _add(self, word: str, message: str, figure: float | None = None, limit: float | None = None) -> None:
        where = f" (in {self._phase}{f', call {self._call}' if self._call else ''})"
        self._findings.append(Finding(word=word, message=message + where, figure=figure, limit=limit))

    def _report(self) -> HealthReport:
        return HealthReport(
            passed=not self._findings,
            findings=tuple(self._findings),
            figures=self._figures,
            phase=self._phase,
            seconds=time.monotonic() - self._start,
            notes=tuple(self._notes),
        )


def _half_of_free_mib() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 2**20
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 2**31)
    return free / 1024 / 2
