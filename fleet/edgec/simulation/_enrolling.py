"""Simulated devices come into a fleet as real ones do: with a claim, and a key of their own."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edgec.artifact import atomic_write
from edgec.device_agent import AgentConfig, BrokerSettings
from edgec.device_agent._enrolment import _certificate_request, _private_key
from edgec.simulation._plain import config_from_plain, config_to_plain
from edgec.simulation._settings import TELEMETRY, SimulationError, SimulationSettings

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient

_TIMEOUT_S = 60.0
_MOST_BYTES = 2**20
_TRIES = 20
_SETTINGS = "simulated.json"
_ROOTS = {"image_root": "image-root.json", "director_root": "director-root.json", "authority": "ca.crt"}


def make_claim(client: FleetClient, uses: int, labels: Mapping[str, str]) -> str:
    """Return a claim for some devices, which get these labels.

    Raises:
        FleetError: The client's token has not the role admin, or the server cannot be reached.
    """
    from edgec.fleet.api._enrol import ClaimWanted, NewClaim

    wanted = ClaimWanted(uses=uses, labels=dict(labels))
    return client.http.change(NewClaim, "POST", "/api/v1/claims", wanted).claim


class Enroller:
    """Brings devices into a fleet over its API; those that are in it already keep what they have.

    Args:
        url: Of the fleet server: ``https://fleet.example:8443``.
        claim: With as many uses as there are new devices.
        folder: Of all devices; each has a directory of its name in it.
        authority: File with the certificate (PEM) that vouches for the server; None for the system's.
        hardware: Class of hardware that devices say they are.
        settings: Of the simulation.

    Raises:
        SimulationError: The URL is none.
    """

    def __init__(
        self,
        url: str,
        claim: str,
        folder: Path,
        *,
        authority: Path | None,
        hardware: str,
        settings: SimulationSettings,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise SimulationError(f"expected the URL of a fleet server, https://..., got {url!r:.200}")
        self._claim, self._folder, self._hardware, self._settings = claim, folder, hardware, settings
        self._path = f"{parts.path.rstrip('/')}/api/v1/enrol"
        self._connection = _connection(parts.scheme, parts.hostname, parts.port, authority)

    def enrol(
        self, names: Iterable[str], told: Callable[[int], None] = lambda number: None
    ) -> list[AgentConfig]:
        """Bring devices into the fleet, one after the other.

        Args:
            names: Their ids.
            told: Called with how many are in it.

        Raises:
            SimulationError: The server cannot be reached, or refuses one; it says why.
            OutputError: What a device is given cannot be written.
        """
        configs = []
        try:
            for number, name in enumerate(names, 1):
                configs.append(self._one(name))
                told(number)
        finally:
            self._connection.close()
        return configs

    def _one(self, name: str) -> AgentConfig:
        folder = self._folder / name
        kept = folder / _SETTINGS
        if kept.exists():
            return config_from_plain({**json.loads(kept.read_bytes()), **self._of_all()})
        folder.mkdir(parents=True, exist_ok=True)
        key = _private_key(folder / "device.key", None)
        request = _certificate_request(key, name).decode()
        given = self._post(
            {"claim": self._claim, "hardware": [self._hardware], "device": name, "request": request}
        )
        (folder / "device.crt").write_text(str(given["certificate"]))
        for field, file in _ROOTS.items():
            if not (self._folder / file).exists():
                (self._folder / file).write_text(str(given[field]))
        config = self._config(name, folder, given)
        with atomic_write(kept) as out:
            out.write(json.dumps(config_to_plain(config)).encode())
        return config

    def _config(self, name: str, folder: Path, given: Mapping[str, Any]) -> AgentConfig:
        broker = urlsplit(str(given["broker"]))
        if not broker.hostname or not broker.port:
            raise SimulationError(f"the server names no broker that can be reached: {given['broker']!r:.200}")
        return AgentConfig(
            device=name,
            hardware=(self._hardware,),
            state_dir=folder / "state",
            image_root=self._folder / _ROOTS["image_root"],
            director_root=self._folder / _ROOTS["director_root"],
            tenant=str(given["tenant"]),
            sources=tuple(str(source) for source in given["sources"]),
            authority=self._folder / _ROOTS["authority"],
            broker=BrokerSettings(
                host=broker.hostname,
                port=broker.port,
                authority=self._folder / _ROOTS["authority"],
                certificate=folder / "device.crt",
                key=folder / "device.key",
            ),
            updates=self._settings.updates,
            telemetry=TELEMETRY,
        )

    def _of_all(self) -> dict[str, Any]:
        updates = {name: value for name, value in asdict(self._settings.updates).items() if value is not None}
        return {"updates": updates, "telemetry": TELEMETRY.to_dict()}

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        for _ in range(_TRIES):
            status, reply, wait_s = self._ask(json.dumps(body).encode())
            if status == 200:
                return reply
            if status not in (429, 503):
                detail = reply.get("detail") or reply.get("title") or reply
                raise SimulationError(f"the fleet does not let {body['device']} in ({status}): {detail}")
            time.sleep(wait_s)
        raise SimulationError(f"the fleet has no time for {body['device']}: it is asked again in vain")

    def _ask(self, body: bytes) -> tuple[int, dict[str, Any], float]:
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            data = response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as e:
            self._connection.close()
            host = f"{self._connection.host}:{self._connection.port}"
            raise SimulationError(
                f"the fleet server at {host} cannot be reached: {e}; is it up, and --ca its authority?"
            ) from e
        try:
            reply = json.loads(data)
        except ValueError:
            reply = {}
        after = response.headers.get("Retry-After", "1")
        wait_s = min(float(after), 30.0) if after.isascii() and after.isdigit() else 1.0
        return response.status, reply if isinstance(reply, dict) else {}, wait_s


def _connection(
    scheme: str, host: str, port: int | None, authority: Path | None
) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        context = ssl.create_default_context(cafile=None if authority is None else str(authority))
    except OSError as e:
        raise SimulationError(f"{authority} is no certificate that can be used: {e}") from e
    return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
