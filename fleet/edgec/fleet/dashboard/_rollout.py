"""One rollout: its stages, what the gate saw and said, every decision, and the orders that people give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import Told, log_of, place_devices
from edgec.fleet.dashboard._requests import posted, route_class, signed_in, text_of
from edgec.fleet.dashboard._stages import (
    MOST_DOTS,
    PHASE_WORDS,
    counted,
    newest_look,
    view_stages,
)
from edgec.fleet.dashboard._words import ago, reasons
from edgec.fleet.rollouts import (
    ORDERS,
    Begin,
    Finish,
    Hold,
    Look,
    OpenIncident,
    Order,
    Quarantine,
    Rollout,
    Soak,
    Stop,
    Undone,
    refusal,
)
from edgec.fleet.store import LoggedDecision

# What an order needs, and what it is called where it is given.
ROLE_OF = {
    "start": "releaser", "pause": "operator", "resume": "operator", "abort": "operator", "undo": "operator",
    "retry": "operator",
}  # fmt: skip
TITLES = {
    "start": ("Start", "Devices of the first stage are told to install the release."),
    "pause": ("Pause", "No further device is told; what was told goes on."),
    "resume": ("Resume", "The rollout goes on where it was."),
    "retry": ("Retry", "Devices on which it failed are told once more."),
    "abort": ("Abort", "The rollout ends; devices keep what they have installed."),
    "undo": ("Undo", "Every device that was told goes back to what it had."),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the timeline: `tone` is ``good``, ``bad``, ``warn``, ``busy`` or ``quiet``."""

    at: float
    tone: str
    title: str
    detail: str = ""


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/rollouts/ID`` and its orders."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/rollouts/{rollout}")
    def show(request: Request, rollout: str) -> Response:
        session = signed_in(dash, request)
        values = dash.recent.get(("rollout", rollout), 1, lambda: _values(dash, rollout))
        return dash.render(request, session, "rollout.html", **values)

    @router.post("/rollouts/{rollout}/{word}")
    async def order(request: Request, rollout: str, word: str) -> Response:
        if word not in ORDERS:
            raise HTTPException(404, "There is no such order.")
        async with posted(dash, request, ROLE_OF[word]) as (session, form):
            reason, rollouts = text_of(form, "reason", 500), dash.fleet.store.rollouts
            await run_in_threadpool(
                lambda: rollouts.order(rollout, word, now=dash.now, actor=session.name, reason=reason)
            )
            return dash.done(request, f"/rollouts/{quote(rollout, safe='')}", f"{TITLES[word][0]}: done.")

    return router


def _values(dash: Dashboard, name: str) -> dict[str, Any]:
    store = dash.fleet.store
    rollout = store.rollouts.get(name)
    log, told = log_of(store.database, name)
    stopped = end_of(rollout, log)
    placed = place_devices(store.database, rollout, stopped.at if stopped else None)
    stages = view_stages(rollout, placed, log)
    failed = [d for d in placed if d.phase == "failed"]
    return {
        "rollout": rollout,
        "plan": rollout.plan,
        "stages": stages,
        "look": newest_look(stages),
        "counts": counted(placed),
        "devices": len(placed),
        "failed": failed[:50],
        "failed_reasons": _reasons(d.reason for d in failed),
        "lines": timeline(log, told),
        "orders": [(word, *TITLES[word], ROLE_OF[word]) for word in ORDERS if refusal(rollout, word) is None],
        "situation": situation(rollout, log, dash.now),
        "stop": stop_words(stopped, dash.now) if stopped else "",
        "incidents": [i for i in store.rollouts.incidents(limit=200) if i.rollout == name],
        "phase_words": {**PHASE_WORDS, "none": "never got it"} if stopped else PHASE_WORDS,
        "most_dots": MOST_DOTS,
        "here": f"/rollouts/{quote(name, safe='')}",
    }


def end_of(rollout: Rollout, log: Sequence[LoggedDecision]) -> LoggedDecision | None:
    """Return by what a rollout was undone or aborted; None where it was not."""
    if rollout.state not in ("undoing", "undone", "aborted"):
        return None
    return next((entry for entry in reversed(log) if _ends(entry.decision)), None)


def _ends(said: Any) -> bool:
    return isinstance(said, Stop) or (isinstance(said, Order) and said.word in ("undo", "abort"))


def stop_words(stopped: LoggedDecision, now: float) -> str:
    """Return who ended a rollout, and when: ``undone by ann 2 h ago``."""
    said, since = stopped.decision, ago(stopped.at, now)
    if isinstance(said, Order):
        return f"{'undone' if said.word == 'undo' else 'aborted'} by {said.by} {since}"
    by = "" if isinstance(said, Stop) and said.reason == "quarantined" else " by the gate"
    return f"stopped{by} {since}"


def _why_stopped(said: Any) -> str:
    if isinstance(said, Stop):
        return said.detail if said.reason == "quarantined" else reasons(said.reason)
    return said.reason if isinstance(said, Order) else ""


def situation(rollout: Rollout, log: list[LoggedDecision], now: float) -> str:
    """Return in a sentence where a rollout is, and what it waits for."""
    plan, state = rollout.plan, rollout.state
    if state == "draft":
        return "A draft: nothing happens until it is started."
    if state == "finished":
        return "Finished: who joins late, or comes back, gets the release, too."
    stopped = end_of(rollout, log)
    if stopped is not None:
        going = {
            "undoing": "Devices go back to what they had", "undone": "Devices went back to what they had",
        }.get(state, "What was installed stays")  # fmt: skip
        why = _why_stopped(stopped.decision).rstrip(".")
        words = stop_words(stopped, now) + (f": {why}" if why else "")
        return f"{words[0].upper()}{words[1:]}. {going}."
    stage = f"Stage {rollout.stage + 1} of {len(plan.stages)}"
    if state == "paused":
        return f"{stage}, paused: no further device is told."
    held = next((e.decision for e in reversed(log) if isinstance(e.decision, Hold)), None)
    if rollout.soaking_since is not None:
        left = rollout.soaking_since + plan.stages[rollout.stage].soak_s - now
        if left > 0:
            return f"{stage}: the release runs, and is watched for {_minutes(left)} more."
    if rollout.held and held is not None:
        return f"{stage}: {held.detail}."
    return f"{stage} is under way."


def timeline(log: Sequence[LoggedDecision], told: Sequence[Told]) -> list[Line]:
    """Return decisions for people, newest first; what devices were told at once is one line."""
    lines = [(entry.id, _line(entry)) for entry in log]
    for group in told:
        title = f"{group.devices} device{'' if group.devices == 1 else 's'} told to "
        tone, words = ("quiet", "install it") if group.kind == "assign" else ("bad", "go back")
        lines.append((group.id, Line(at=group.at, tone=tone, title=title + words)))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def _line(entry: LoggedDecision) -> Line:
    tone, title, detail = _words(entry.decision)
    return Line(at=entry.at, tone=tone, title=title, detail=detail)


def _words(said: Any) -> tuple[str, str, str]:
    if isinstance(said, Begin):
        words = f"{said.devices} of {said.eligible} eligible devices are in it"
        return "busy", f"Stage {said.stage + 1} begins: {said.percent:g} %", words
    if isinstance(said, Soak):
        words = f"{said.ended} of {said.devices} devices have ended their update"
        return "quiet", "The soak begins", words + (f", and {said.failed} failed" if said.failed else "")
    if isinstance(said, Look):
        tone = {"pass": "good", "fail": "bad"}.get(said.outcome, "warn")
        return tone, f"Look {said.look} at the gate: {said.outcome}", reasons(said.reason)
    if isinstance(said, Hold):
        return "warn", f"Holds: {said.reason.replace('_', ' ')}", said.detail
    if isinstance(said, Stop):
        return "bad", f"Stopped: {reasons(said.reason)}", said.detail
    if isinstance(said, Quarantine):
        return "bad", f"{said.digest[:12]} is quarantined", reasons(said.reason)
    if isinstance(said, OpenIncident):
        return "bad", "An incident is opened", said.detail
    if isinstance(said, Undone):
        return "bad", "Undone", f"{said.confirmed} devices have confirmed, {said.waiting} are away"
    if isinstance(said, Finish):
        return "good", "Finished", f"{said.installed} of {said.devices} devices have it"
    assert isinstance(said, Order)
    return "busy", f"{TITLES[said.word][0]}, by {said.by}", said.reason


def _reasons(reasons: Any) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason or "did not end in time"] = counts.get(reason or "did not end in time", 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
