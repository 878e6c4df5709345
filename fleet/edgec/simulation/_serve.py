"""A real fleet server in a process of its own, for a demonstration or a measurement.

Run by `OwnServer`, as ``python -m edgec.simulation._serve DIRECTORY BROKER``. It ends when its input does.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from edgec.errors import EdgecError
from edgec.simulation._places import allow_files
from edgec.simulation._settings import SimulationError

_END_S = 60.0
_ACTOR = "simulation"


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a server is reached.

    Attributes:
        url: Of API and dashboard.
        token: Of role admin.
        authority: File with the certificate that vouches for the server.
        broker: URL of its broker.
        pid: Of its process.
    """

    url: str
    token: str
    authority: str
    broker: str
    pid: int


class OwnServer:
    """A fleet server that this process starts, and that ends with it.

    Args:
        data_dir: Of the fleet; one that exists goes on.
        broker: ``auto``, ``mosquitto`` or ``nats``.
    """

    def __init__(self, data_dir: Path, *, broker: str = "auto") -> None:
        self._data_dir, self._broker = data_dir, broker
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Access:
        """Start it.

        Raises:
            SimulationError: It does not start; it has said why on standard error.
        """
        command = [sys.executable, "-m", "edgec.simulation._serve", str(self._data_dir), self._broker]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._child.stdout is not None
        try:
            said = json.loads(self._child.stdout.readline() or "{}")
        except BaseException:
            self.__exit__()
            raise
        if "url" not in said:
            self.__exit__()
            raise SimulationError(f"the fleet server does not start: {said.get('error', 'it has died')}")
        return Access(**said)

    def __exit__(self, *_: object) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


def main(data_dir: Path, broker: str) -> None:
    """Serve until the input ends.

    Raises:
        KeyboardInterrupt: It ended before there was a server.
    """
    over, ready = threading.Event(), threading.Event()
    threading.Thread(target=_until_over, args=(over, ready), daemon=True).start()
    from edgec.fleet.server import FleetOptions, FleetServer

    allow_files()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    logging.basicConfig(level=logging.WARNING, filename=data_dir / "server.log")
    options = FleetOptions(data_dir=data_dir, port=0, broker_port=0, token_port=0, broker=broker)
    with FleetServer(options) as server:
        ready.set()
        fleet = server.fleet
        name = f"simulation-{secrets.token_hex(3)}"
        _, token = fleet.tokens.create(name, "admin", now=fleet.clock(), actor=_ACTOR)
        said = {
            "url": server.url,
            "token": token,
            "authority": str(server.authority.root),
            "broker": server.broker_url,
            "pid": os.getpid(),
        }
        print(json.dumps(said), flush=True)
        over.wait()


def _until_over(over: threading.Event, ready: threading.Event) -> None:
    # Not `sys.stdin`: its lock must not be held while the interpreter ends.
    while os.read(0, 4096):
        pass
    over.set()
    if not ready.is_set():
        # Whoever asked is gone: nobody needs the server that the main thread is starting.
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except EdgecError as e:
        print(json.dumps({"error": str(e)}), flush=True)
        sys.exit(1)
    except (BrokenPipeError, KeyboardInterrupt):  # whoever asked is gone; what was begun has ended
        os._exit(130)
