"""The tables of docs/updates.md, made by asking the state machine itself.

Run this file in the root of the repository, as ``python -m tests.docs.update_tables``, to write them into
the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tests.device_agent.updates import NOW, QUICK, V1, V2, V3, advance, at, follow, want

from edgec.device_agent._events import Abort, Desired, Done, Event, Failed, Postponed, Started, Tell, Tick
from edgec.device_agent._state import Phase, State
from edgec.device_agent._turn import WORK
from edgec.device_agent._update import step

PAGE = Path(__file__).parents[2] / "docs" / "updates.md"
_BEGIN, _END = "<!-- {}: from the code -->", "<!-- end of {} -->"
_ORDER: tuple[Phase, ...] = get_args(Phase)


def phases() -> dict[Phase, State]:
    """Return an update in every phase: from a first version to a second one, which has a shadow period."""
    first = advance(follow(State(model="m"), Desired(now=NOW, wanted=want(1, V1)))[0], "cleaned")
    idle = first.changed(phase="idle", reports=())
    begun = follow(idle, Desired(now=NOW, wanted=want(2, V2, shadow_s=5.0)))[0]
    found: dict[Phase, State] = {"idle": idle, "cleaned": first, "notified": begun}
    for phase in _ORDER:
        if phase not in (*found, "deferred", "rolling_back", "failed", "removing"):
            found[phase] = advance(begun, phase)
    found["deferred"] = follow(begun, Postponed(now=NOW, work=begun.work, reason="power", detail=""))[0]
    found["rolling_back"] = fail(found["probation"])
    found["failed"] = fail(found["self_test"])
    found["removing"] = follow(idle, Desired(now=NOW, wanted=want(2, "")))[0]
    return {phase: found[phase] for phase in _ORDER}


def fail(state: State) -> State:
    """Return what follows when work fails for good."""
    return follow(state, Failed(now=NOW, work=state.work, reason="broken", detail=""))[0]


def work_table() -> str:
    """Return what is done in each phase, and where each outcome leads."""
    rows = []
    for phase, state in phases().items():
        if phase not in WORK:
            continue
        for number, name in enumerate(WORK[state.phase]):
            here = state
            for _ in range(number):
                here = follow(here, Done(now=NOW, work=here.work))[0]
            outcomes: list[Event] = [
                Done(now=NOW, work=here.work),
                Failed(now=NOW, work=here.work, reason="away", detail="", passing=True),
                Failed(now=NOW, work=here.work, reason="broken", detail=""),
                Tick(now=at(1e9)),
                Started(now=NOW),
            ]
            cells = [leads(here, outcome) for outcome in outcomes]
            rows.append(f"| `{phase}` | {name} | " + " | ".join(cells) + " |")
    head = (
        "| phase | work | done | fails for now | fails for good | hangs | agent dies |\n" + "|---" * 7 + "|\n"
    )
    return head + "\n".join(rows)


def leads(state: State, event: Event) -> str:
    """Return the next phase in words."""
    after = step(state, event, QUICK)[0]
    if after.phase == state.phase and after.done == state.done:
        waits = after.work == 0 and after.deadline_s is not None
        return "again, later" if waits else "again"
    if after.phase == state.phase:
        return "next piece"
    condemned = " and quarantined" if len(after.quarantine) > len(state.quarantine) else ""
    return f"`{after.phase}`{condemned}"


def abort_table() -> str:
    """Return the answer to an order to stop in each phase."""
    rows = []
    for phase, state in phases().items():
        after, effects = step(state, Abort(now=NOW), QUICK)
        (answer,) = (
            e.report for e in effects if isinstance(e, Tell) and e.report.result.startswith("abort_")
        )
        word = answer.result.removeprefix("abort_")
        then = f"`{after.phase}`" if after.phase != state.phase else "goes on"
        rows.append(f"| `{phase}` | {word} | {f'`{answer.reason}`' if answer.reason else ''} | {then} |")
    return "| phase | answer | reason | then |\n|---|---|---|---|\n" + "\n".join(rows)


def newer_table() -> str:
    """Return what a newer desired document does in each phase."""
    rows = []
    for phase, state in phases().items():
        cells = []
        for wish in (V2, V1, V3, ""):
            wanted = want(state.epoch + 1, wish)
            after, effects = step(state, Desired(now=NOW, wanted=wanted), QUICK)
            told = [e.report.result for e in effects if isinstance(e, Tell)]
            cells.append(cell(state, after, told))
        rows.append(f"| `{phase}` | " + " | ".join(cells) + " |")
    head = "| phase | the candidate itself | what serves, or did before | a third one | removal |\n"
    return head + "|---" * 5 + "|\n" + "\n".join(rows)


def cell(state: State, after: State, told: Sequence[str]) -> str:
    """Return in words how a state takes a newer wish."""
    if after.pending is not None and after.phase == state.phase:
        return "waits"
    if after.pending is not None:
        return f"`{after.phase}`, then it"
    if after.phase == state.phase and not told:
        return "takes the new epoch"
    return told[-1] if told else f"`{after.phase}`"


def tables() -> dict[str, str]:
    """Return all tables by name."""
    return {"work": work_table(), "abort": abort_table(), "newer": newer_table()}


def with_tables(page: str) -> str:
    """Return a page with the tables between its marks as they should be."""
    for name, table in tables().items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
