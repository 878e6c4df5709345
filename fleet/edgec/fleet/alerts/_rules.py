"""Rules: each reads a few rows and returns what holds now. What raises an alert and what keeps it differ."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence

from sqlalchemy import ColumnElement, func, or_, select

from edgec.fleet.alerts._settings import AlertSettings
from edgec.fleet.service import Fleet
from edgec.fleet.store import Condition
from edgec.fleet.store._drift import DAY_H, INPUT
from edgec.fleet.store._schema import credentials, devices, fleet_hours, incidents, orders, rollouts
from edgec.trust import role_statuses

_DAY_S = 86_400.0
_HOUR_S = 3600.0
# Of what is named in an alert's figures.
_NAMED = 20
# Of orders: a device that was revoked is told nothing, and what it was told may expire.
_IN_FLEET = orders.c.device.in_(select(devices.c.id).where(devices.c.revoked_at.is_(None)))


Rule = Callable[[Fleet, AlertSettings, float], Iterable[Condition]]


def conditions(fleet: Fleet, settings: AlertSettings, now: float) -> list[Condition]:
    """Return all that holds now, of all rules."""
    return [condition for rule in RULES.values() for condition in rule(fleet, settings, now)]


def _offline(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    away = devices.c.online.is_(False)
    for firm in (True, False):
        since = devices.c.seen_at < now - settings.offline_s
        found = _devices(fleet, away & (since if firm else ~since) & (devices.c.seen_at > 0), settings.many)
        what = f"for more than {settings.offline_s / 60:.0f} minutes"
        if firm or len(found[1]) <= settings.many:
            yield from _of_devices(
                "offline", "warning", found, settings.many, f"is not connected {what}", firm=firm
            )


def _silent(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    quiet = devices.c.online.is_(True) & (devices.c.seen_at < now - settings.silent_s)
    what = f"is said to be connected, and was not heard of for {settings.silent_s / 3600:.0f} hours"
    yield from _of_devices("silent", "warning", _devices(fleet, quiet, settings.many), settings.many, what)


def _cloned(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    found = _devices(fleet, devices.c.fenced.is_(True), settings.many)
    what = "is several machines with one identity: pick one"
    yield from _of_devices("cloned", "critical", found, settings.many, what)


def _regressed(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    total, names = _devices(fleet, devices.c.acknowledged > devices.c.epoch, _NAMED)
    if total:
        what = (
            f"{total} devices follow orders that this fleet has not given: it was restored from a backup, or "
            "another server directs them"
        )
        yield Condition(
            rule="regressed", subject="fleet", severity="critical", summary=what,
            figures={"devices": total, "some": names},
        )  # fmt: skip


def _told_by_devices(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    query = (
        select(devices.c.alerts, func.count().label("n"), func.min(devices.c.id).label("one"))
        .where(devices.c.alerts != "", devices.c.revoked_at.is_(None))
        .group_by(devices.c.alerts)
    )
    with fleet.store.database.read() as connection:
        rows = connection.execute(query).all()
    found: dict[str, tuple[int, str]] = {}
    for row in rows:
        for word in row.alerts.split():
            count, one = found.get(word, (0, row.one))
            found[word] = (count + row.n, one)
    for word, (count, one) in sorted(found.items()):
        yield Condition(
            rule="device", subject=word, severity="warning",
            summary=f"{count} devices report {word}, {one} among them",
            figures={"devices": count, "one": one},
        )  # fmt: skip


def _untold(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    # Nothing was signed; or it went to the broker, and files of the fleet's that say the same did not follow.
    query = select(func.count(), func.min(orders.c.problem)).where(orders.c.problem != "", _IN_FLEET)
    with fleet.store.database.read() as connection:
        count, problem = connection.execute(query).one()
    if count:
        yield Condition(
            rule="untold", subject="fleet", severity="critical", figures={"devices": count},
            summary=f"{count} devices are not told, or not in full, what they are to have: {problem}",
        )  # fmt: skip


def _errors(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    total, failed = func.sum(fleet_hours.c.calls), func.sum(fleet_hours.c.errors)
    key = (fleet_hours.c.model, fleet_hours.c.digest, fleet_hours.c.hardware)
    query = select(*key, total.label("calls"), failed.label("errors")).group_by(*key)
    query = query.where(fleet_hours.c.hour >= int(now // _HOUR_S) - 1)
    with fleet.store.database.read() as connection:
        rows = connection.execute(query).all()
    raised, kept = settings.error_rate
    for row in rows:
        rate = int(row.errors) / max(int(row.calls), 1)
        if row.calls >= settings.least_calls and rate > kept:
            yield Condition(
                rule="errors", subject=f"{row.model}/{row.digest}/{row.hardware}", severity="critical",
                summary=f"{100 * rate:.1f} % of {row.calls} calls of {row.model} {row.digest} on "
                f"{row.hardware} failed",
                figures={"calls": int(row.calls), "errors": int(row.errors)}, firm=rate >= raised,
            )  # fmt: skip


def _drifted(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    for row in fleet.store.drift.newest(now - 3 * _HOUR_S):
        if row.kind == INPUT and row.hours < DAY_H:
            continue
        if row.psi > settings.drift_psi[1] and row.ks > settings.drift_ks[1]:
            firm = row.psi >= settings.drift_psi[0] and row.ks >= settings.drift_ks[0]
            subject, what = f"{row.model}/{row.digest}/{row.hardware}/{row.output}", row.output
            if row.kind == INPUT:
                subject, what = f"{subject} (input)", f"input {row.output}"
            yield Condition(
                rule="drift", subject=subject[:256], severity="warning", firm=firm,
                summary=f"{what} of {row.model} {row.digest} on {row.hardware} has moved from its "
                f"calibration data: stability index {row.psi:.2f}, distance {row.ks:.2f}, {row.n} values",
                figures={"psi": row.psi, "ks": row.ks, "n": row.n},
            )  # fmt: skip


def _rollouts(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    for rollout in fleet.store.rollouts.find(states=("running", "undoing"), limit=1000):
        late = now - rollout.since > settings.hold_s
        held = rollout.held not in ("", "soaking") and late
        if rollout.state == "undoing" or held:
            what = f"is being taken back: {rollout.reason}" if rollout.state == "undoing" else (
                f"holds in stage {rollout.stage + 1}: {rollout.held}"
            )  # fmt: skip
            yield Condition(
                rule="rollout", subject=rollout.plan.id,
                severity="critical" if rollout.state == "undoing" else "warning",
                summary=f"rollout {rollout.plan.name} of {rollout.plan.model} {rollout.plan.version} {what}",
                figures={"state": rollout.state, "stage": rollout.stage, "held": rollout.held},
            )  # fmt: skip


def _incidents(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    query = (
        select(incidents.c.id, incidents.c.reason, incidents.c.detail, rollouts.c.name, incidents.c.device)
        .outerjoin(rollouts, rollouts.c.id == incidents.c.rollout)
        .where(incidents.c.closed_at.is_(None))
        .order_by(incidents.c.id.desc())
        .limit(200)
    )
    with fleet.store.database.read() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        of = f"rollout {row.name}" if row.name else row.device or "the fleet"
        yield Condition(
            rule="incident", subject=str(row.id), severity="critical",
            summary=f"incident {row.id}, {of}: {row.reason}: {row.detail}"[:1000],
            figures={"reason": row.reason},
        )  # fmt: skip


def _expiring(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    ends = [(f"{r.repository}/{r.role}", r.expires) for r in role_statuses(fleet.image, fleet.director)]
    live = or_(orders.c.expires_at > 0, orders.c.told_at > 0)
    query = select(func.min(orders.c.expires_at)).where(live, orders.c.problem == "", _IN_FLEET)
    with fleet.store.database.read() as connection:
        first = connection.execute(query).scalar()
    ends += [("director/devices", first)] if first else []
    ends += _certificates(fleet)
    raised, kept = (days * _DAY_S for days in settings.expiry_days)
    for what, at in ends:
        if at < now + kept:
            said = f"expires in {(at - now) / _DAY_S:.1f} days" if at > now else "has expired"
            yield Condition(
                rule="expiry", subject=what, severity="critical" if at <= now else "warning",
                summary=f"{what} {said}",
                figures={"expires_at": at}, firm=at < now + raised,
            )  # fmt: skip


def _certified(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    raised, kept = settings.certificate_days
    # One that was made for a month would else be said to end from its first day on.
    last_third = credentials.c.expires_at - now < (credentials.c.expires_at - credentials.c.issued_at) / 3.0
    for firm in (True, False):
        soon = credentials.c.expires_at < now + raised * _DAY_S
        later = ~soon & (credentials.c.expires_at < now + kept * _DAY_S)
        ends = select(credentials.c.device).where(
            credentials.c.replaced_at.is_(None), last_third, soon if firm else later
        )
        found = _devices(fleet, devices.c.id.in_(ends), settings.many)
        if firm or len(found[1]) <= settings.many:
            what = (
                f"has a certificate that ends within {raised:.0f} days and is in the last third of its time, "
                "or has ended: let it enrol anew"
            )
            yield from _of_devices("certificate", "warning", found, settings.many, what, firm=firm)


def _disk(fleet: Fleet, settings: AlertSettings, now: float) -> Iterator[Condition]:
    usage = shutil.disk_usage(fleet.data_dir)
    free = usage.free / usage.total
    if free < settings.disk_free[1]:
        yield Condition(
            rule="disk", subject=str(fleet.data_dir), severity="critical",
            summary=f"{100 * free:.1f} % of the fleet's disk is free: {usage.free >> 20} MiB",
            figures={"free_bytes": usage.free, "total_bytes": usage.total},
            firm=free < settings.disk_free[0],
        )  # fmt: skip


def _certificates(fleet: Fleet) -> list[tuple[str, float]]:
    from cryptography import x509

    found = []
    for path in sorted((fleet.data_dir / "tls").glob("*.crt")):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found.append((f"tls/{path.name}", certificate.not_valid_after_utc.timestamp()))
    return found


def _devices(fleet: Fleet, condition: ColumnElement[bool], most: int) -> tuple[int, list[str]]:
    """Return how many devices there are of a kind, and the ids of the first of them."""
    live = condition & devices.c.revoked_at.is_(None)
    with fleet.store.database.read() as connection:
        total = connection.execute(select(func.count()).select_from(devices).where(live)).scalar_one()
        query = select(devices.c.id).where(live).order_by(devices.c.id).limit(max(most, _NAMED) + 1)
        return total, list(connection.execute(query).scalars())


def _of_devices(
    rule: str, severity: str, found: tuple[int, Sequence[str]], many: int, what: str, *, firm: bool = True
) -> Iterator[Condition]:
    """Say it of each device, or of all at once where there are many: a broker that is away is one thing."""
    total, names = found
    if total > many:
        yield Condition(
            rule=rule, subject="fleet", severity="critical", firm=firm,
            summary=f"{total} devices: each {what}",
            figures={"devices": total, "some": list(names[:_NAMED])},
        )  # fmt: skip
        return
    for name in names[:many]:
        yield Condition(rule=rule, subject=name, severity=severity, summary=f"{name} {what}", firm=firm)


RULES: dict[str, Rule] = {
    "offline": _offline,
    "silent": _silent,
    "cloned": _cloned,
    "regressed": _regressed,
    "device": _told_by_devices,
    "untold": _untold,
    "errors": _errors,
    "drift": _drifted,
    "rollout": _rollouts,
    "incident": _incidents,
    "expiry": _expiring,
    "certificate": _certified,
    "disk": _disk,
}
