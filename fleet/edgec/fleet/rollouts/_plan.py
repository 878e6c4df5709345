"""The planner: what is to be done now, from what is known. Pure: the same facts give the same decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgec.fleet.rollouts._decisions import (
    Assign,
    Begin,
    Decision,
    Finish,
    Hold,
    Look,
    OpenIncident,
    Quarantine,
    Soak,
    Stop,
    Undo,
    Undone,
)
from edgec.fleet.rollouts._rings import PLACES, cutoff, place
from edgec.fleet.rollouts._values import DeviceFacts, Facts, Rollout
from edgec.fleet.verdicts import FAIL, Evidence, Verdict, judge

# An undo does not end before, whoever is away: devices that start anew are, for a moment.
_AWAY_S = 120.0


def plan(rollout: Rollout, facts: Facts, now: float) -> list[Decision]:
    """Return what is to be done now; nothing where nothing has changed.

    The caller writes the decisions down, makes them `advance` the rollout, and then carries them out; carried
    out twice they do the same. The next call, with what they made of rollout and devices, returns what comes
    then.

    Args:
        rollout: As it is.
        facts: Of this moment; `Facts.evidence` where `look_due`.
        now: Seconds by the fleet's clock.
    """
    if rollout.state == "running":
        return list(_run(rollout, facts, now))
    if rollout.state == "undoing":
        return list(_undo(rollout, facts, now))
    if rollout.state == "finished":
        # Who joins late, or comes back after weeks, gets what everybody has.
        return list(_assign(rollout, facts, now))
    if rollout.state == "undone":
        return list(_take_back(facts))
    return []


def advance(rollout: Rollout, decisions: list[Decision], now: float) -> Rollout:
    """Return the rollout after decisions."""
    for decision in decisions:
        rollout = decision.apply(rollout, now)
    return rollout


def look_due(rollout: Rollout, now: float) -> bool:
    """Whether the gate is to be looked at, so that evidence is worth being gathered.

    After `first_look_s` of the soak, then each time that it has gone on for twice as long, at its end, and
    while the stage holds beyond it.
    """
    if rollout.state != "running" or rollout.soaking_since is None:
        return False
    soaked, first = now - rollout.soaking_since, rollout.plan.first_look_s
    soak = rollout.plan.stages[rollout.stage].soak_s
    if rollout.looked_at is None:
        return soaked >= min(first, soak)
    last = rollout.looked_at - rollout.soaking_since
    return soaked >= max(2 * last, first) or last < soak <= soaked


def members(rollout: Rollout, facts: Facts) -> list[DeviceFacts]:
    """Return the devices of the stage and all before it: by their place, or assigned already."""
    plan_ = rollout.plan
    return [
        d
        for d in facts.devices
        if d.hardware in plan_.artifacts and (d.assigned or place(plan_.id, d.id) < rollout.cutoff)
    ]


def timed_out(device: DeviceFacts, rollout: Rollout, now: float) -> bool:
    """Whether a device took notice of its assignment and never ended the update."""
    late = now - device.assigned_at > rollout.plan.install_s
    return bool(device.assigned) and device.noticed and device.phase in ("assigned", "working") and late


def _run(rollout: Rollout, facts: Facts, now: float) -> Iterator[Decision]:
    bad = sorted(set(rollout.plan.artifacts.values()) & facts.quarantined)
    if bad:
        yield Stop(reason="quarantined", detail=f"{bad[0][:12]} was quarantined")
        return
    if rollout.cutoff == 0:
        begin = _begin(rollout, facts, 0)
        if begin is None:
            yield from _hold(rollout, now, "no_devices", "no device is eligible: see query and hardware", {})
            return
        yield begin
        rollout = begin.apply(rollout, now)
    new = list(_assign(rollout, facts, now))
    yield from new
    told = [d for d in members(rollout, facts) if d.assigned and not d.undone]
    ended = [d for d in told if d.phase in ("installed", "failed") or timed_out(d, rollout, now)]
    failed = [d for d in ended if d.phase != "installed"]
    # Devices that nothing was heard of since they were told say nothing for or against the release.
    reached = [d for d in told if d.seen_at >= d.assigned_at or d.noticed or d in ended]
    # Those of the stages before have ended long ago: the soak waits for the ones that this stage has told.
    fresh = {d.id for d in told if d.assigned_at >= rollout.since} or {d.id for d in told}
    verdict = _installs(rollout, len(ended), len(failed))
    if verdict is not None:
        yield _look(rollout, verdict, verdict.outcome, rollout.looks + 1)
        yield from _stop(rollout, "installs", verdict.detail, verdict.to_dict(), facts)
        return
    figures = {"devices": len(told), "reached": len(reached), "ended": len(ended), "failed": len(failed)}
    if new and not told:
        return
    if rollout.soaking_since is None:
        parts = {"devices": told, "reached": reached, "ended": ended, "failed": failed}
        own = {name: sum(d.id in fresh for d in part) for name, part in parts.items()}
        yield from _gather(rollout, now, own)
        return
    yield from _gate(rollout, facts, now, figures)


def _installs(rollout: Rollout, ended: int, failed: int) -> Verdict | None:
    """Return the verdict where installations fail too often."""
    # One is never enough, and nearly all calls are about none.
    if failed < 2:
        return None
    verdict = judge(Evidence(attempts=ended, failures=failed), limits=rollout.plan.limits)
    if verdict.outcome != FAIL:
        return None
    return replace(verdict, findings=tuple(f for f in verdict.findings if f.outcome == FAIL))


def _begin(rollout: Rollout, facts: Facts, stage: int) -> Begin | None:
    wanted = rollout.plan
    eligible = [d.id for d in facts.devices if d.hardware in wanted.artifacts and (d.available or d.assigned)]
    if not eligible:
        return None
    percent = wanted.stages[stage].percent
    below = max(cutoff(wanted.id, eligible, percent, wanted.least_devices), rollout.cutoff)
    inside = sum(place(wanted.id, device) < below for device in eligible)
    return Begin(stage=stage, percent=percent, cutoff=below, devices=inside, eligible=len(eligible))


def _assign(rollout: Rollout, facts: Facts, now: float) -> Iterator[Assign]:
    wanted = rollout.plan
    for device in members(rollout, facts):
        digest = wanted.artifacts[device.hardware]
        if not device.available or device.undone or digest in facts.quarantined:
            continue
        if device.assigned is None:
            if device.wanted != digest:
                yield Assign(device=device.id, digest=digest, previous=device.wanted, attempt=1)
        elif _again(device, rollout, now):
            yield Assign(
                device=device.id, digest=digest, previous=device.previous, attempt=device.attempts + 1
            )


def _again(device: DeviceFacts, rollout: Rollout, now: float) -> bool:
    if device.phase != "failed" and not timed_out(device, rollout, now):
        return False
    return device.attempts < rollout.plan.attempts or device.assigned_at < rollout.retried_at


def _gather(rollout: Rollout, now: float, figures: dict[str, int]) -> Iterator[Decision]:
    """Wait for the quorum of the devices that a stage has told."""
    numbers = {name: float(value) for name, value in figures.items()}
    ended, reached, devices = figures["ended"], figures["reached"], figures["devices"]
    if not devices:
        # All that are in it have the release already.
        yield Soak(ended=0, devices=0)
    elif not reached:
        yield from _hold(rollout, now, "unreached", f"none of {devices} devices was heard of since", numbers)
    elif ended < rollout.plan.quorum * reached:
        detail = f"{ended} of {reached} devices that were heard of have ended their update"
        detail += _failures(figures["failed"], ended)
        yield from _hold(rollout, now, "installing", detail, numbers)
    else:
        yield Soak(ended=ended, devices=devices, failed=figures["failed"])


def _gate(rollout: Rollout, facts: Facts, now: float, figures: dict[str, int]) -> Iterator[Decision]:
    assert rollout.soaking_since is not None
    soak = rollout.plan.stages[rollout.stage].soak_s
    left = rollout.soaking_since + soak - now
    numbers = {name: float(value) for name, value in figures.items()}
    if facts.evidence is not None and look_due(rollout, now):
        evidence = replace(facts.evidence, attempts=figures["ended"], failures=figures["failed"])
        stages, look = len(rollout.plan.stages), rollout.looks + 1
        verdict = judge(evidence, limits=rollout.plan.limits, look=look, stages=stages)
        # Devices that had the release before the rollout leave nothing to install and nothing to judge.
        outcome = verdict.outcome if figures["devices"] else "pass"
        said = _look(rollout, verdict, outcome, look)
        yield said
        rollout = said.apply(rollout, now)
        if outcome == FAIL:
            yield from _stop(rollout, verdict.reason, verdict.detail, verdict.to_dict(), facts)
            return
        if left <= 0 and not rollout.passed:
            yield from _hold(rollout, now, "inconclusive", verdict.detail, numbers)
            return
    if left > 0:
        detail = f"{soak:.0f} s of soak have begun{_failures(figures['failed'], figures['ended'])}"
        yield from _hold(rollout, now, "soaking", detail, numbers)
    elif rollout.passed:
        yield from _next(rollout, facts, now, figures)
    elif rollout.held:
        yield from _impatience(rollout, now, rollout.held, "the gate has not passed")


def _look(rollout: Rollout, verdict: Verdict, outcome: str, look: int) -> Look:
    return Look(
        stage=rollout.stage, look=look, outcome=outcome, reason=verdict.reason, verdict=verdict.to_dict()
    )


def _failures(failed: int, ended: int) -> str:
    """Return what is added to a text where updates have failed."""
    return f"; {failed} of {ended} installations failed or never ended" if failed else ""


def _next(rollout: Rollout, facts: Facts, now: float, figures: dict[str, int]) -> Iterator[Decision]:
    last = len(rollout.plan.stages) - 1
    done = Finish(installed=figures["ended"] - figures["failed"], devices=figures["devices"])
    if rollout.cutoff == PLACES or rollout.stage == last:
        yield done
        return
    begin, inside = _begin(rollout, facts, rollout.stage + 1), len(members(rollout, facts))
    # A stage that is no larger than the one before, as in small fleets, has nothing to tell.
    while begin is not None and begin.stage < last and begin.devices <= inside:
        begin = _begin(rollout, facts, begin.stage + 1)
    if begin is not None and begin.devices <= inside:
        yield done
        return
    if begin is None:
        yield from _hold(rollout, now, "no_devices", "no device is eligible any more", {})
        return
    yield begin
    yield from _assign(begin.apply(rollout, now), facts, now)


def _hold(
    rollout: Rollout, now: float, reason: str, detail: str, figures: dict[str, float]
) -> Iterator[Decision]:
    # Failures that come in later are told, too; a list of figures without them looks as if all were well.
    if rollout.held != reason or rollout.held_failed != int(figures.get("failed", 0)):
        yield Hold(reason=reason, detail=detail, figures=figures)
    yield from _impatience(rollout, now, reason, detail)


def _impatience(rollout: Rollout, now: float, reason: str, detail: str) -> Iterator[Decision]:
    """Tell a person, once, of a stage that holds for longer than anybody should have to wait."""
    soak = rollout.plan.stages[rollout.stage].soak_s
    if not rollout.told_long and now - rollout.since > rollout.plan.patience_s + soak:
        yield OpenIncident(
            reason="held", detail=f"{reason}: {detail}; resume it with more devices or data, abort or undo it"
        )


def _stop(
    rollout: Rollout, reason: str, detail: str, evidence: dict[str, object], facts: Facts
) -> Iterator[Decision]:
    yield Stop(reason=reason, detail=detail)
    for digest in sorted(set(rollout.plan.artifacts.values()) - facts.quarantined):
        yield Quarantine(digest=digest, reason=reason)
    yield OpenIncident(reason=reason, detail=detail, evidence=evidence)
    yield from _take_back(facts)


def _take_back(facts: Facts) -> Iterator[Undo]:
    for device in facts.devices:
        if device.assigned and not device.undone:
            yield Undo(device=device.id, digest=device.previous)


def _undo(rollout: Rollout, facts: Facts, now: float) -> Iterator[Decision]:
    yield from _take_back(facts)
    told = [d for d in facts.devices if d.assigned]
    waiting = [d for d in told if not d.confirmed]
    # Who is away gets the order when it is back, as does who is connected and silent for so long.
    silent = now - rollout.since >= rollout.plan.install_s
    here = [d for d in waiting if d.reachable and (d.seen_at >= rollout.since or not silent)]
    patient = now - rollout.since <= rollout.plan.patience_s
    # A device that starts anew is away for a moment, too, as are all where the broker does.
    if patient and (here or (waiting and now - rollout.since < _AWAY_S)):
        if rollout.held != "undoing":
            detail = (
                "it waits until all devices that are connected have gone back; others do when they return"
            )
            figures = {"waiting": float(len(here)), "away": float(len(waiting) - len(here))}
            yield Hold(reason="undoing", detail=detail, figures=figures)
        return
    if here:
        detail = f"{len(here)} devices were heard of and have not confirmed that they went back"
        yield OpenIncident(reason="not_undone", detail=detail, evidence={"devices": [d.id for d in here]})
    yield Undone(confirmed=len(told) - len(waiting), waiting=len(waiting))
