"""Starts servers as often as it is told, each in a process that has imported all it needs already.

Read from standard input, one JSON a line: ``{"start": [arguments]}`` for ``edgec``, or ``{"side":
[arguments]}`` for `tests.fleet.mqtt_server`, answered with ``{"pid": 1}`` before what the process itself
prints; ``{"wait": pid}``, answered with ``{"code": 0}``, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Zygote:
    """The process that starts others, and is asked to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fleet.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._pids: set[int] = set()

    def start(self, **what: list[Any]) -> tuple[int, dict[str, Any]]:
        """Start a process; return its id and the first thing that it says."""
        pid = int(self._told(what)["pid"])
        self._pids.add(pid)
        return pid, self._heard()

    def end(self, pid: int, number: int) -> int:
        """Send a signal, and return how the process ended."""
        os.kill(pid, number)
        self._pids.remove(pid)
        return int(self._told({"wait": pid})["code"])

    def close(self) -> None:
        """End all of them."""
        for pid in list(self._pids):
            self.end(pid, signal.SIGKILL)
        self._process.communicate()

    def _told(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        heard: dict[str, Any] = json.loads(self._process.stdout.readline())
        return heard


def run(told: dict[str, list[Any]]) -> None:
    """Be the process that was asked for."""
    sys.stdin.close()
    try:
        if "side" in told:
            main(*told["side"])
        main_group.main(args=told["start"], prog_name="edgec")
    except SystemExit as e:
        sys.stdout.flush()
        os._exit(e.code if isinstance(e.code, int) else 1)


def tell(**facts: int) -> None:
    """Answer."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    from tests.fleet.mqtt_server import main

    import edgec.fleet.server  # noqa: F401
    from edgec.cli import main_group

    while line := sys.stdin.readline():
        told = json.loads(line)
        if "wait" not in told:
            told_of, tell_of = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(told_of, 1)
                run(told)
            tell(pid=child)
            os.write(tell_of, b"x")
            os.close(told_of)
            os.close(tell_of)
        else:
            tell(code=os.waitstatus_to_exitcode(os.waitpid(told["wait"], 0)[1]))
