"""``edgec agent status`` of what was left behind in a directory, whatever it says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("tuf", reason="the agent needs the extra 'agent'")

from edgec.cli.agent import command
from edgec.device_agent._device_status import STATUS, AgentStatus, write_status


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        (1e300, "since 1e+300 s since 1970"),
        (-1e18, "since -1e+18 s since 1970"),
        (10**400, "does not run"),  # no number that a clock gives: nothing that is written is believed
        (float("nan"), "does not run"),
        ("soon", "does not run"),
    ],
)
def test_a_start_that_no_calendar_has_is_shown(started: object, shown: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_status(tmp_path, AgentStatus(device="dev1", models=(), running=True, pid=os.getpid(), started=1.0))
    written = json.loads((tmp_path / STATUS).read_text())
    (tmp_path / STATUS).write_text(json.dumps({**written, "started": started}))
    done = CliRunner().invoke(command, ["status", "--state-dir", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert shown in done.output
