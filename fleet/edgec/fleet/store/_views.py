"""What is believed of a device, as JSON; the rules are `edgec.protocol.DeviceView`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgec.fleet.rollouts import Phase
from edgec.protocol import Boot, DeviceView, ModelReport, Presence, Reported

_ENDED = ("idle", "committed", "cleaned")


def view_to_dict(view: DeviceView) -> dict[str, Any]:
    """Return a view as JSON has it: messages as the text that they came as."""
    return {
        "presence": view.presence.to_bytes().decode() if view.presence else None,
        "reported": view.reported.to_bytes().decode() if view.reported else None,
        "boots": [[b.epoch, b.id, b.first_heard, *b.presence, b.seq] for b in view.boots],
        "alive_after": sorted(view.alive_after),
        "put_out": list(view.put_out),
    }


def view_from_dict(document: Mapping[str, Any]) -> DeviceView:
    """Return what `view_to_dict` gave; an empty view of an empty document."""
    if not document:
        return DeviceView()
    presence, reported = document["presence"], document["reported"]
    return DeviceView(
        presence=Presence.from_bytes(presence.encode()) if presence else None,
        reported=Reported.from_bytes(reported.encode()) if reported else None,
        boots=tuple(
            Boot(epoch=epoch, id=name, first_heard=heard, presence=(connection, over), seq=seq)
            for epoch, name, heard, connection, over, seq in document["boots"]
        ),
        alive_after=frozenset(document["alive_after"]),
        # Databases of before know of none.
        put_out=tuple(document.get("put_out", ())),
    )


def active_in(document: Mapping[str, Any], model: str) -> str | None:
    """Return the artifact that serves a model, by the newest report in what `view_to_dict` gave.

    Reads nothing else of it: a planner asks for a whole fleet.
    """
    reported = document.get("reported") if document else None
    if not reported:
        return None
    active: str | None = json.loads(reported)["models"].get(model, {}).get("active")
    return active


def progress(report: ModelReport | None, digest: str) -> tuple[Phase, str]:
    """Return how far an update to `digest` is by a report that acknowledges it, and why it failed."""
    if report is None:
        return "working", ""
    if report.active == digest:
        # In probation it serves, and may yet go back.
        return ("installed" if report.state in _ENDED else "working"), ""
    ended = report.state in (*_ENDED, "failed") and report.reason is not None
    return ("failed", report.reason or "") if ended else ("working", "")
