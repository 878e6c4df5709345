"""What an agent is made of, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from edgec.device_agent._alerts import Alerts
from edgec.device_agent._audit import AuditLog
from edgec.device_agent._durable import make_directory, read_json
from edgec.device_agent._inbox import Inbox
from edgec.device_agent._models import Models
from edgec.device_agent._orders import Orders
from edgec.device_agent._outbox import Outbox
from edgec.device_agent._own_orders import offer_own
from edgec.device_agent._policy import TelemetryPolicy
from edgec.device_agent._reports import Reports
from edgec.device_agent._supply import ChunkRequests, source_context, sources_of
from edgec.device_agent._telemetry import Telemetry, system_state
from edgec.device_agent._uplink import Uplink, new_boot_id
from edgec.device_agent._wishes import Wishes
from edgec.device_agent._work import AgentActions
from edgec.errors import AgentError
from edgec.protocol import Topics

if TYPE_CHECKING:
    import ssl

    from edgec.device_agent._agent import Agent
    from edgec.device_agent._config import AgentConfig
    from edgec.device_agent._seams import Applications, Clock, Operations, Trial
    from edgec.device_agent._store import Store
    from edgec.device_agent._turn import Limits
    from edgec.trust import DeviceTrust

POLICY = "telemetry.json"
Spawn = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of an agent that runs."""

    outbox: Outbox
    uplink: Uplink
    wishes: Wishes
    orders: Orders
    models: Models
    reports: Reports
    alerts: Alerts
    telemetry: Telemetry
    inbox: Inbox


def make_parts(
    config: AgentConfig,
    store: Store,
    clock: Clock,
    *,
    applications: Sequence[Applications],
    limits: Limits,
    spawn: Spawn,
    spawn_check: Spawn,
    trial: Trial | None,
) -> Parts:
    """Make all parts; nothing of them runs yet.

    Raises:
        AgentError: A root or the state directory cannot be used.
        TrustError: The roots are not to be used.
    """
    state_dir, alone = config.state_dir, config.broker is None
    trust = _open_trust(config, clock)
    boot_id = new_boot_id()
    outbox = Outbox(state_dir / "outbox.db", boot_id=boot_id, max_bytes=config.outbox_bytes, clock=clock.wall)
    topics = Topics(config.tenant)
    uplink = Uplink(
        device=config.device,
        topics=topics,
        agent=software(),
        hardware=config.hardware[0],
        boot_epoch=store.boot,
        boot_id=boot_id,
        outbox=outbox,
        clock=clock,
    )
    chunks = None if alone else ChunkRequests(uplink.ask)
    context = source_context(config.authority)
    wishes = _make_wishes(config, trust, clock, spawn_check, context)
    models = Models(config, store, clock, limits=limits, spawn=spawn, applications=applications)
    audits = AuditLog(state_dir / "audit.jsonl")
    reports = Reports(uplink, store, audits, models, clock, limits=limits, alone=alone)
    orders = Orders(
        trust=trust,
        boot_id=boot_id,
        path=state_dir / "replies.json",
        clock=clock,
        spawn=spawn,
        reply=uplink.reply,
        audit=reports.audit,
    )
    actions = AgentActions(
        config.models_dir,
        settings=config.updates,
        clock=clock,
        trust=trust,
        target=lambda model: wishes.targets.get(model),
        files=lambda place: sources_of(
            place, wishes.bases(), allow_http=config.updates.allow_http, context=context
        ),
        chunks=None if chunks is None else chunks.source,
        metadata=wishes.metadata,
        applications=applications,
        tap=models.tap,
        report=reports.report,
        shadowed=reports.shadowed,
        cache_dir=state_dir / "engines",
        trial=trial,
    )
    telemetry = Telemetry(
        outbox,
        _policy(config),
        monotonic=clock.monotonic,
        system=lambda: system_state(state_dir),
    )
    models.use(actions, telemetry)
    inbox = Inbox(
        config.device, topics, wishes=wishes, orders=orders, uplink=uplink, reports=reports, chunks=chunks
    )
    return Parts(
        outbox=outbox,
        uplink=uplink,
        wishes=wishes,
        orders=orders,
        models=models,
        reports=reports,
        alerts=Alerts(trust, wishes, store, clock),
        telemetry=telemetry,
        inbox=inbox,
    )


def begin(
    parts: Parts, agent: Agent, applications: Sequence[Applications], operations: Sequence[Operations]
) -> None:
    """Let all parts of an agent go on where they were."""
    for application in applications:
        application.start(agent)
    parts.reports.restarted()
    parts.models.begin()
    known = parts.wishes.recall()
    if known is not None:
        parts.models.want(known)
    offer_own(parts.orders, parts.models, parts.wishes)
    for offered in operations:
        for name in offered.names:
            parts.orders.offer(name, partial(offered.carry_out, agent=agent))
    parts.orders.start()


@cache
def software() -> str:
    """Return name and version of this software, which is looked up on the disk once."""
    return f"edgec {version('edgec')}"


def _make_wishes(
    config: AgentConfig, trust: DeviceTrust, clock: Clock, spawn: Spawn, context: ssl.SSLContext | None
) -> Wishes:
    return Wishes(
        trust=trust,
        device=config.device,
        sources=config.sources,
        allow_http=config.updates.allow_http,
        refresh_s=config.updates.refresh_s,
        path=config.state_dir / "desired.json",
        clock=clock,
        spawn=spawn,
        context=context,
    )


def _policy(config: AgentConfig) -> TelemetryPolicy:
    """Return what may leave: what the fleet asked for last, as far as the owner permits it."""
    plain = read_json(config.state_dir / POLICY)
    try:
        return TelemetryPolicy.from_dict(plain).within(config.telemetry) if plain else config.telemetry
    except AgentError:  # damaged, or of a newer agent
        return TelemetryPolicy().within(config.telemetry)


def _open_trust(config: AgentConfig, clock: Clock) -> DeviceTrust:
    from edgec.trust import DeviceTrust

    try:
        roots = [path.read_bytes() for path in (config.image_root, config.director_root)]
    except OSError as e:
        raise AgentError(
            f"the root {e.filename} cannot be read: {e.strerror}; get it from the publisher's repository"
        ) from e
    make_directory(config.state_dir / "trust")
    return DeviceTrust(
        config.state_dir / "trust",
        device_id=config.device,
        hardware=config.hardware,
        image_root=roots[0],
        director_root=roots[1],
        groups=config.groups,
        clock=clock.wall,
        monotonic=clock.monotonic,
    )
