"""What an agent is told by its owner: who the device is, whom it trusts, and what it may do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from edgec.device_agent._policy import TelemetryPolicy
from edgec.errors import AgentError, PipelineError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAX_BYTES = 256 * 1024
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
# Settings that are one id, or ids.
_IDS = ("device", "tenant", "groups")
_NOT_NEGATIVE = (
    "refresh_s", "max_bytes_per_s", "shadow_s", "probation_s", "probation_calls", "latency_p95_ms",
    "memory_mib",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """How the broker is reached.

    Attributes:
        host: Its name or address.
        port: Its port.
        tls: Whether to encrypt; only a broker on this machine should go without.
        authority: File with the certificate that vouches for the broker; None for the system's.
        certificate: File with the device's own certificate, for mutual TLS.
        key: File with the private key of that.
        username: For brokers that ask for one.
        password_file: File with a password or token in its first line.
        version: Of MQTT: ``auto``, ``5`` or ``3.1.1``.
        keepalive_s: A connection that is silent for twice as long is made anew.
    """

    host: str
    port: int = 8883
    tls: bool = True
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    version: str = "auto"
    keepalive_s: int = 60


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """When and how models are updated.

    Attributes:
        refresh_s: How often the sources are asked for news, where none is announced; 0 for never.
        window: Local time of day in which updates may begin: ``22:00-05:30``; None for always.
        min_battery_percent: Below it, and not charging, no update begins; 0 for no such limit.
        max_bytes_per_s: Of downloads; 0 for no limit.
        allow_http: Whether sources may be ``http://``: what is fetched is verified in any case.
        shadow_s: How long a new model runs beside the active one before the switch; 0 for not at all.
        probation_s: How long it must hold after the switch.
        probation_calls: How many calls that were looked into prove it earlier; 0 for only time does.
        health_timeout_s: For the health check.
        latency_p95_ms: Largest 95th percentile of the latency; 0 for what the artifact says.
        memory_mib: Most that the model may take; 0 for what the artifact says.
    """

    refresh_s: float = 3600.0
    window: str | None = None
    min_battery_percent: int = 0
    max_bytes_per_s: int = 0
    allow_http: bool = False
    shadow_s: float = 0.0
    probation_s: float = 600.0
    probation_calls: int = 0
    health_timeout_s: float = 60.0
    latency_p95_ms: float = 0.0
    memory_mib: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ApplicationSettings:
    """How programs on the device reach the agent.

    Attributes:
        socket: Where ``edgec agent run`` listens; None for ``agent.sock`` in `state_dir`.
        group: Name of the group whose members may connect, beside the agent's user and root.
        users: Names of users that may connect; of the group's members, only these.
    """

    socket: Path | None = None
    group: str = ""
    users: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """All settings of an agent.

    Attributes:
        device: Id of the device: 1 to 64 letters, digits, ``_``, ``.``, ``-``.
        tenant: Whose topics it uses.
        groups: Groups it is in.
        hardware: Names of the targets that it can run: ``("rpi5", "cpu-arm64")``.
        state_dir: Directory of its own on storage that survives a restart; models are in ``models/``.
        image_root: File with the first root of the image repository.
        director_root: The same of the director.
        sources: Where the repository is: base URLs, directories; the best first.
        authority: File with certificates that may vouch for sources over https, beside the system's.
        broker: None for a device without one.
        updates: When and how models are updated.
        applications: How programs on the device reach the agent.
        telemetry: The most that may leave; a fleet can ask for less.
        outbox_bytes: Room for what the fleet has not acknowledged.
    """

    device: str
    hardware: tuple[str, ...]
    state_dir: Path
    image_root: Path
    director_root: Path
    tenant: str = "default"
    groups: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    authority: Path | None = None
    broker: BrokerSettings | None = None
    updates: UpdateSettings = field(default_factory=UpdateSettings)
    applications: ApplicationSettings = field(default_factory=ApplicationSettings)
    telemetry: TelemetryPolicy = field(default_factory=TelemetryPolicy)
    outbox_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Refuse what cannot work, all of it at once.

        Raises:
            AgentError: With every problem.
        """
        problems = _problems(self)
        if problems:
            raise AgentError(f"the agent's settings are wrong: {'; '.join(problems)}")

    @property
    def socket(self) -> Path:
        """Path at which ``edgec agent run`` listens for applications."""
        return self.applications.socket or self.state_dir / "agent.sock"

    @property
    def models_dir(self) -> Path:
        """Directory of all models: applications read below it."""
        return self.state_dir / "models"


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a file as they are in it; paths are relative to its directory.

    Raises:
        AgentError: It cannot be read, or is no TOML.
    """
    from edgec.artifact._toml import parse_toml

    try:
        return parse_toml(path, _MAX_BYTES)
    except PipelineError as e:
        raise AgentError(
            f"the settings in {path} cannot be used: {e}; name their file with --config, or have them made: "
            "edgec agent enrol URL  where the fleet has a server, else  edgec agent provision"
        ) from e


_TABLES: tuple[tuple[str, Any], ...] = (
    ("broker", BrokerSettings),
    ("updates", UpdateSettings),
    ("applications", ApplicationSettings),
)


def make_config(values: Mapping[str, Any], *, base: Path = Path()) -> AgentConfig:
    """Return settings out of what a file, the environment and options say.

    Args:
        values: As TOML has it: ``{"device": "camera-7", "broker": {"host": ...}}``.
        base: What paths are relative to.

    Raises:
        AgentError: With every problem: what is unknown, missing, or of another type.
    """
    problems: list[str] = []
    plain = dict(values)
    tables: dict[str, Any] = {}
    for name, cls in _TABLES:
        if name in plain:
            tables[name] = _made(cls, plain.pop(name), f"{name}.", base, problems)
    if "telemetry" in plain:
        try:
            tables["telemetry"] = TelemetryPolicy.from_dict(_table(plain.pop("telemetry")))
        except AgentError as e:
            problems.append(str(e))
    found = _fields(AgentConfig, plain, "", base, problems, skip=(*dict(_TABLES), "telemetry"))
    if not problems:
        return AgentConfig(**found, **tables)
    raise AgentError(f"the agent's settings are wrong: {'; '.join(problems)}")


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AgentError("telemetry must be a table")
    return value


def _made(cls: Any, value: object, where: str, base: Path, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{where[:-1]} must be a table")
        return None
    before = len(problems)
    found = _fields(cls, value, where, base, problems)
    return cls(**found) if len(problems) == before else None


def _fields(
    cls: Any,
    values: Mapping[str, Any],
    where: str,
    base: Path,
    problems: list[str],
    skip: tuple[str, ...] = (),
) -> dict[str, Any]:
    hints = get_type_hints(cls)
    known = [f for f in fields(cls) if f.name not in skip]
    names = {f.name for f in known}
    problems += [f"{where}{name} is unknown" for name in values if name not in names]
    found = {}
    for f in known:
        if f.name in values:
            try:
                found[f.name] = _value(hints[f.name], values[f.name], base)
            except ValueError as e:
                problems.append(f"{where}{f.name} must be {e}, not {values[f.name]!r:.60}")
        elif f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"{where}{f.name} is missing")
    return found


def _value(hint: Any, value: Any, base: Path) -> Any:
    """Return a value of TOML as its field has it; ValueError says what was expected."""
    kind = next((a for a in get_args(hint) if a not in (type(None), ...)), hint)
    if hint == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError("a list of texts")
        return tuple(value)
    if kind is Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("a path")
        return base / Path(value)
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise ValueError({str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind])
    return value


def _problems(config: AgentConfig) -> list[str]:
    found = []
    for name in _IDS:
        value = getattr(config, name)
        bad = [v for v in ((value,) if isinstance(value, str) else value) if not _ID.fullmatch(v)]
        found += [f"{name} must be 1 to 64 letters, digits, '_', '.', '-', not {v!r:.80}" for v in bad]
    if not config.hardware:
        found.append("hardware must name at least one target: see  edgec targets")
    found += [
        f"sources must be https://, http:// or an absolute path, not {source!r:.80}"
        for source in config.sources
        if not source.startswith(("https://", "http://", "/"))
    ]
    if config.outbox_bytes < 256 * 1024:
        found.append(f"outbox_bytes must be at least 262144, not {config.outbox_bytes}")
    return found + _broker_problems(config.broker) + _update_problems(config.updates)


def _broker_problems(broker: BrokerSettings | None) -> list[str]:
    if broker is None:
        return []
    found = []
    if not broker.host:
        found.append("broker.host must be a name or an address")
    if not 0 < broker.port < 65536:
        found.append(f"broker.port must be from 1 to 65535, not {broker.port}")
    if broker.version not in ("auto", "5", "3.1.1"):
        found.append(f"broker.version must be auto, 5 or 3.1.1, not {broker.version!r:.20}")
    if not 1 <= broker.keepalive_s <= 65535:
        found.append(f"broker.keepalive_s must be from 1 to 65535, not {broker.keepalive_s}")
    if (broker.certificate is None) != (broker.key is None):
        found.append("broker.certificate and broker.key go together")
    return found


def _update_problems(updates: UpdateSettings) -> list[str]:
    found = []
    if updates.window is not None and not _WINDOW.fullmatch(updates.window):
        found.append(f"updates.window must be like 22:00-05:30, not {updates.window!r:.40}")
    if not 0 <= updates.min_battery_percent <= 100:
        found.append(f"updates.min_battery_percent must be from 0 to 100, not {updates.min_battery_percent}")
    found += [
        f"updates.{name} must be from 0 to 1000000000, not {getattr(updates, name)}"
        for name in _NOT_NEGATIVE
        if not 0 <= getattr(updates, name) <= 10**9
    ]
    if not 1 <= updates.health_timeout_s <= 800:
        found.append(f"updates.health_timeout_s must be from 1 to 800, not {updates.health_timeout_s}")
    if 0 < updates.max_bytes_per_s < 512:
        found.append(f"updates.max_bytes_per_s must be 0 or at least 512, not {updates.max_bytes_per_s}")
    return found
