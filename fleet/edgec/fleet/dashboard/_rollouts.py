"""All rollouts, and making a new one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from edgec.errors import FleetError
from edgec.fleet.dashboard._context import Dashboard
from edgec.fleet.dashboard._queries import count_hardware, place_devices
from edgec.fleet.dashboard._requests import posted, route_class, signed_in, text_of
from edgec.fleet.dashboard._sessions import Session
from edgec.fleet.dashboard._stages import stations, view_stages
from edgec.fleet.rollouts import Plan, Rollout, Stage

_MOST = 100
# What a form begins with; minutes where the planner has seconds.
DEFAULTS: Mapping[str, str] = {
    "name": "", "release": "", "query": "", "stages": "1, 5, 25, 100", "soak": "60", "least_devices": "50",
    "quorum": "50", "install": "60", "first_look": "1", "patience": "1440", "attempts": "1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Whom a plan would reach: devices of each stage that are new in it, by hardware; what is left out."""

    stages: list[tuple[float, int]]
    hardware: dict[str, int]
    left_out: dict[str, int]


def routes(dash: Dashboard) -> APIRouter:
    """Return ``/rollouts`` and ``/rollouts/new``."""
    router = APIRouter(route_class=route_class(dash), include_in_schema=False)

    @router.get("/rollouts")
    def show(request: Request) -> Response:
        session = signed_in(dash, request)
        found = dash.fleet.store.rollouts.find(limit=_MOST)
        views = [(rollout, stations(rollout)) for rollout in found]
        return dash.render(request, session, "rollouts.html", rollouts=views)

    @router.get("/rollouts/new")
    def new(request: Request) -> Response:
        session = signed_in(dash, request, "releaser")
        asked = {k: v for k, v in request.query_params.items() if k in DEFAULTS}
        return _form(dash, request, session, {**DEFAULTS, **asked}, "")

    @router.get("/rollouts/reach")
    def reach(request: Request) -> Response:
        session = signed_in(dash, request)
        values = {**DEFAULTS, **{k: v for k, v in request.query_params.items() if k in DEFAULTS}}
        found, problem = _reach_or_problem(dash, values)
        return dash.render(request, session, "reach.html", reach=found, problem=problem)

    @router.post("/rollouts/new")
    async def create(request: Request) -> Response:
        async with posted(dash, request, "releaser") as (session, form):
            values = {name: text_of(form, name) for name in DEFAULTS}
            return await run_in_threadpool(_create, dash, request, session, values, _starts(form))

    return router


def _starts(form: FormData) -> bool:
    return text_of(form, "start") == "yes"


def _form(
    dash: Dashboard, request: Request, session: Session, values: Mapping[str, str], problem: str
) -> Response:
    releases = dash.fleet.registry.releases()
    found, _ = _reach_or_problem(dash, values) if values["release"] else (None, "")
    return dash.render(
        request, session, "rollout_new.html", status=400 if problem else 200, values=values, problem=problem,
        releases=[f"{model} {version}" for model, version, _ in releases], reach=found,
        groups=dash.fleet.store.devices.groups(),
    )  # fmt: skip


def _create(
    dash: Dashboard, request: Request, session: Session, values: Mapping[str, str], start: bool
) -> Response:
    rollouts = dash.fleet.store.rollouts
    try:
        plan = plan_of(dash, values)
        rollouts.create(plan, now=dash.now, actor=session.name)
    except (FleetError, ValueError) as e:
        return _form(dash, request, session, values, str(e))
    where = f"/rollouts/{quote(plan.id)}"
    if not start:
        return dash.done(request, where, "The draft is kept: nothing happens until it is started.")
    try:
        rollouts.order(plan.id, "start", now=dash.now, actor=session.name)
    except FleetError as e:
        return dash.go(request, where, "bad", str(e))
    return dash.done(request, where, "The rollout has started.")


def plan_of(dash: Dashboard, values: Mapping[str, str]) -> Plan:
    """Return the plan that a form says.

    Raises:
        FleetError: There is no such release.
        ValueError: Fields are not what they should be; all of them are told.
    """
    model, _, version = values["release"].partition(" ")
    if not version:
        raise ValueError("Choose a release.")
    problems: list[str] = []

    def number(name: str, title: str, factor: float = 1.0) -> float:
        if not re.fullmatch(r"\d{1,7}(\.\d{1,4})?", values[name]):
            problems.append(f"{title}: expected a number, got {values[name]!r}")
            return 1.0
        return float(values[name]) * factor

    soak = number("soak", "Soak", 60)
    least, attempts = (
        int(number(*field)) for field in (("least_devices", "Least devices"), ("attempts", "Attempts"))
    )
    quorum = number("quorum", "Quorum", 0.01)
    install, first_look = number("install", "Time to install", 60), number("first_look", "First look", 60)
    patience = number("patience", "Patience", 60)
    stages = _stages(values["stages"], soak, problems)
    if problems:
        raise ValueError("; ".join(problems))
    name = values["name"] or f"{model} {version}"
    return Plan(
        id=_id(name), name=name[:128], model=model, version=version, query=values["query"],
        artifacts=dash.fleet.registry.by_hardware(model, version), stages=stages, least_devices=least,
        attempts=attempts, quorum=quorum, install_s=install, first_look_s=first_look, patience_s=patience,
    )  # fmt: skip


def reach_of(dash: Dashboard, plan: Plan) -> Reach:
    """Return whom a plan would reach now.

    Raises:
        FleetError: Its query is none.
    """
    placed = place_devices(dash.fleet.store.database, Rollout(plan=plan))
    views = view_stages(Rollout(plan=plan), placed, [])
    by_hardware = {name: sum(d.hardware == name for d in placed) for name in sorted(plan.artifacts)}
    others = {h.hardware: h.devices for h in count_hardware(dash.fleet.store.database)}
    left_out = {name: n for name, n in others.items() if name not in plan.artifacts}
    return Reach(stages=[(v.percent, len(v.devices)) for v in views], hardware=by_hardware, left_out=left_out)


def _reach_or_problem(dash: Dashboard, values: Mapping[str, str]) -> tuple[Reach | None, str]:
    try:
        return reach_of(dash, plan_of(dash, values)), ""
    except (FleetError, ValueError) as e:
        return None, str(e)


def _stages(words: str, soak_s: float, problems: list[str]) -> tuple[Stage, ...]:
    parts = [part.strip("% ") for part in re.split(r"[,\s]+", words.strip(" ,"))]
    wrong = [part for part in parts if not re.fullmatch(r"\d{1,3}(\.\d{1,4})?", part)]
    if wrong:
        problems.append(
            f"Stages: expected per cents such as 1, 5, 25, 100, got {', '.join(map(repr, wrong))}"
        )
    return tuple(Stage(percent=float(part), soak_s=soak_s) for part in parts if part not in wrong)


def _id(name: str) -> str:
    """Return an id that has not been there before, and says what it is of."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{words or 'rollout'}-{secrets.token_hex(3)}"
