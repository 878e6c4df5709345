"""What ``edgec fleet rollout`` says beside its tables."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pydantic", reason="views need the extra 'fleet'")

from edgec.cli._fleet_rollouts import _HEAD, _warn
from edgec.cli._fleet_text import rollout_row
from edgec.fleet.views import RolloutView


def a_rollout(**more: Any) -> RolloutView:
    values: dict[str, Any] = {
        "id": "r2", "name": "again", "model": "kws", "version": "2", "query": "", "state": "draft",
        "stage": 0, "of_stages": 1, "held": "", "reason": "", "created_at": 1.0, "plan": {}, "devices": {},
        "stages": [], "orders": ["start"], **more,
    }  # fmt: skip
    return RolloutView(**values)


def test_a_list_of_rollouts_has_their_names() -> None:
    row = dict(zip(_HEAD, rollout_row(a_rollout(name="for the lab")), strict=True))
    assert (row["rollout"], row["name"], row["state"]) == ("r2", "for the lab", "draft")


def test_warnings_are_told_on_stderr_and_cannot_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _warn(a_rollout(warnings=["rollout r1 of this release was undone by ann: \x1b[2Jbad"]))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("warning: rollout r1 of this release was undone by ann: ")
    assert "\x1b" not in told.err
