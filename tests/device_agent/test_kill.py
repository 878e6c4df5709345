"""Agents that are killed in the middle of updates; `make kill-test` kills a thousand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_row_01_and_02_power_loss_at_every_step_leaves_the_old_or_the_new_and_is_reported(
    tmp_path: Path,
) -> None:
    # A process of its own: it forks, which one with threads must not.
    command = [sys.executable, "-m", "tests.device_agent.kill_driver", "--kills", "104"]
    result = subprocess.run(
        [*command, "--directory", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    killed = {label: int(count) for count, label in re.findall(r"(\d+) killed (\w+ \w+)\n", result.stdout)}
    points = {"before write", "after write", "after rename", "after fsync", "before commit", "after commit"}
    assert points <= killed.keys()
    assert sum(killed.values()) >= 100
