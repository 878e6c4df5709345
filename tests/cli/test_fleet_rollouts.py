"""What ``edgec fleet rollout`` says beside its tables."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic", reason="views need the extra 'fleet'")

from edgec.cli._fleet_rollouts import _warn
from edgec.fleet.views import RolloutView


def test_warnings_are_told_on_stderr_and_cannot_write_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = RolloutView(
        id="r2", name="again", model="kws", version="2", query="", state="draft", stage=0, of_stages=1,
        held="", reason="", created_at=1.0, plan={}, devices={}, stages=[], orders=["start"],
        warnings=["rollout r1 of this release was undone by ann: \x1b[2Jbad"],
    )  # fmt: skip
    _warn(view)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("warning: rollout r1 of this release was undone by ann: ")
    assert "\x1b" not in told.err
