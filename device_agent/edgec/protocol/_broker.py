"""A broker run as a process of one's own: started on free ports, reloaded, paused, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgec.artifact import atomic_write
from edgec.errors import LinkError
from edgec.protocol._kinds import ID
from edgec.protocol.certificates import CertificateAuthority

# Common name of the certificate that may read and write every topic of the tenant.
FLEET = "fleet"
_START_S = 20.0
_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Access:
    """Which devices may connect.

    Attributes:
        devices: Fingerprints of keys with certificates (`CertificateAuthority.sign`), by id.
        hashes: What the broker keeps of a device's password (`hash_password`), by id.
        refused: Ids that may not, although they have certificates.
        revoked: Serial numbers of certificates that count no more, in hex.
    """

    devices: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()


class Broker(ABC):
    """A broker that this process started.

    Listens with TLS: on `port` to clients that show a certificate of the authority, whose common
    name is the device's id, or ``fleet`` for what may see all devices; on `password_port`, where passwords
    were given, to clients with name and password (nats-server: to these only). A device may write below its
    own ``up/`` and read below its own ``dn/`` and its groups', nothing else.

    Attributes:
        name: ``mosquitto`` or ``nats``.
        host: To connect to.
        port: To connect to with a certificate.
        password_port: To connect to with name and password; 0 where that is not possible.
        authority: Issued the broker's certificate, and issues those of devices.
        directory: Holds configuration, data and log.
    """

    name: str
    # What the log says when every listener is open.
    _ready: str

    def __init__(
        self,
        directory: Path,
        *,
        authority: CertificateAuthority | None = None,
        tenant: str = "default",
        devices: Iterable[str] = (),
        passwords: Mapping[str, str] | None = None,
        max_packet_bytes: int = 8 * 1024 * 1024,
        listen: str = "127.0.0.1",
        names: Sequence[str] = ("localhost", "127.0.0.1"),
        ports: tuple[int, int] = (0, 0),
    ) -> None:
        """Describe the broker; `start` starts it.

        Args:
            directory: For its files; made where it is missing.
            authority: Whom it trusts; one of its own in `directory` when None.
            tenant: Whose topics devices may use.
            devices: Ids that may connect; Mosquitto takes every id with a certificate.
            passwords: By device id, or ``fleet``; no passwords at all where None or empty.
            max_packet_bytes: Of a message, at the most.
            listen: Address to listen at.
            names: Names and addresses that it is reached under, for its certificate.
            ports: To listen at with certificates, and with passwords; 0 for any that is free.
        """
        self.host = "127.0.0.1" if listen in ("0.0.0.0", "::") else listen
        self.listen, self.names = listen, tuple(names)
        self.port, self.password_port = ports
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.authority = authority or CertificateAuthority(self.directory / "certificates")
        self.tenant = ID.read(tenant, "tenant")
        self._devices = {ID.read(device, "device") for device in devices}
        self._passwords = dict(passwords or {})
        self._access = Access()
        self._max_packet_bytes = max_packet_bytes
        self._process: subprocess.Popen[bytes] | None = None
        # Whoever starts it again after a crash and whoever says who may connect write the same files.
        self._writing = threading.RLock()
        # Whether the files may be other than what was said.
        self._stale = False

    @abstractmethod
    def _write_configuration(self) -> list[str]:
        """Write the configuration for the ports as they are; return the command that starts the broker."""

    @property
    def log(self) -> str:
        """What it has said so far."""
        path = self.directory / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, the first time on free ports and later on the same; return when it listens.

        Raises:
            LinkError: It does not start; the message has the end of its log.
        """
        with self._writing:
            if not self.running:
                self._start()

    def _start(self) -> None:
        fixed = (self.port, self.password_port)
        complete = self.port and (self.password_port or not self._passwords)
        # Another process may take a port between the choice and the start.
        attempts = 1 if complete else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            self.port = fixed[0] or _free_port()
            self.password_port = (fixed[1] or _free_port()) if self._passwords else 0
            try:
                self._spawn()
            except LinkError:
                if attempt == attempts or "in use" not in self.log:
                    raise
            else:
                return

    def admit(self, device: str) -> None:
        """Let a device in whose id was not known at the start."""
        self._devices.add(ID.read(device, "device"))
        self.reload()

    def allow(self, access: Access) -> None:
        """Say who may connect from now on, beside those named at the start; others keep their connections.

        Who may no longer is refused at the next attempt; nats-server ends the connection that there is, too.

        Raises:
            OutputError: The settings cannot be written; said again, they are tried again.
        """
        with self._writing:
            before, self._access = self._access, access
            if self._stale or self._concerns(before, access):
                self._stale = True
                self.reload()
                self._stale = False

    def _concerns(self, before: Access, after: Access) -> bool:
        """Return whether the broker must read anew who may connect."""
        return before != after

    @property
    def pid(self) -> int | None:
        """Id of its process; None where it is not started."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """Ask it to stop, and wait; kill it when it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill it at once (SIGKILL); `start` starts it again with what is on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it in place (SIGSTOP): connections stay open, and nothing answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reload(self) -> None:
        """Have it read its settings and certificates anew; connections stay."""
        with self._writing:
            self._write_configuration()
        if self.running and self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def _write(self, name: str, text: str) -> None:
        """Write a file that only this user may read; whole, since the broker may read it at any moment."""
        with atomic_write(self.directory / name) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text.encode())

    def _spawn(self) -> None:
        command = self._write_configuration()
        with open(self.directory / "log", "wb") as log:
            # In a session of its own: who interrupts this process at a terminal does not mean the broker.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while self._ready not in self.log:
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise LinkError(f"{self.name} does not start; the end of its log says: {self.log[-500:]}")
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
