"""Simulated devices in several processes: one interpreter computes on one core at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgec.device_agent import AgentConfig
from edgec.simulation._device import DeviceNews
from edgec.simulation._plain import config_to_plain, settings_to_plain
from edgec.simulation._settings import SimulationError, SimulationSettings
from edgec.simulation._simulation import Counts

_END_S = 60.0


class Swarm:
    """Simulated devices in processes of their own; else as `Simulation`.

    Args:
        configs: Of the agents, each with a directory of its own.
        settings: Of all.
        processes: How many.
        nice: Added to their niceness: so that a server on the same machine does not wait for them.
        news: Told of what happens, from a thread per process.
        failed: Told of devices that cannot be started, and why.
    """

    def __init__(
        self,
        configs: Sequence[AgentConfig],
        settings: SimulationSettings,
        *,
        processes: int,
        nice: int = 0,
        news: Callable[[DeviceNews], None] = lambda news: None,
        failed: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._news, self._failed = news, failed
        shares = [list(configs[i::processes]) for i in range(processes)]
        self._requests = [
            {"configs": [config_to_plain(c) for c in share], "settings": settings_to_plain(settings)}
            for share in shares
            if share
        ]
        self._devices = len(configs)
        self._nice = nice
        self._closed = False
        self._counts: dict[int, Counts] = {}
        self._children: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start all processes; return at once."""
        for number, request in enumerate(self._requests):
            child = subprocess.Popen(
                [sys.executable, "-m", "edgec.simulation._worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # So that an interrupt from the keyboard reaches only who ends them in order.
                start_new_session=True,
            )
            self._children.append(child)
            if self._nice:
                _make_nice(child.pid, self._nice)
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it has ended already, which `counts` tells
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
            thread = threading.Thread(target=self._listen, args=(number, child), daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Switch all devices off, and end the processes."""
        self._closed = True
        for child in self._children:
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.close()
        end = time.monotonic() + _END_S
        for child, thread in zip(self._children, self._threads, strict=True):
            try:
                child.wait(max(end - time.monotonic(), 1.0))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            thread.join()
            if child.stdout is not None:
                child.stdout.close()

    def __enter__(self) -> Swarm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def counts(self) -> Counts:
        """Return how all devices are, as of the last second.

        Raises:
            SimulationError: A process has ended by itself.
        """
        for child in self._children if not self._closed else ():
            if child.poll() is not None:
                raise SimulationError(
                    f"a process with simulated devices has ended with {child.returncode}: see what it said "
                    "on standard error"
                )
        total = Counts()
        for counts in list(self._counts.values()):
            total = total.plus(counts)
        return total

    def wait(self, condition: Callable[[Counts], bool], timeout_s: float) -> bool:
        """Wait until something holds of the counts; return whether it does.

        Raises:
            SimulationError: A process has ended by itself.
        """
        end = time.monotonic() + timeout_s
        while not condition(self.counts()):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes."""
        return tuple(child.pid for child in self._children)

    def wait_online(self, timeout_s: float, share: float = 1.0) -> bool:
        """Wait until a share of the devices is connected; return whether it is."""
        return self.wait(lambda counts: counts.online >= share * self._devices, timeout_s)

    def _listen(self, number: int, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._hear(number, json.loads(line))

    def _hear(self, number: int, said: dict[str, Any]) -> None:
        if "counts" in said:
            self._counts[number] = Counts(**said["counts"])
        for news in said.get("news", ()):
            self._news(DeviceNews(**news))
        for message in said.get("failed", ()):
            self._failed(message)


def _make_nice(pid: int, more: int) -> None:
    """Let a process that leads a session wait for others, before it has threads, which inherit that."""
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + more, 19)
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    # Threads of hundreds of devices wake each other all the time. As a batch, none interrupts the one that
    # computes: they take a tenth less of the processors, measured with 500 devices that undo a release.
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    # Where Linux groups processes by session, niceness counts within a group only, and the group has its own.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
