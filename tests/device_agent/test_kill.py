"""Agents that are killed in the middle of updates; `make kill-test` kills a thousand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_row_01_and_02_kills_at_every_step_leave_the_old_or_the_new_and_are_reported() -> None:
    # A process of its own: it forks, which one with threads must not.
    command = [sys.executable, "-m", "tests.device_agent.kill_driver", "--kills", "104"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    killed = {label: int(count) for count, label in re.findall(r"(\d+) killed (\w+ \w+)\n", result.stdout)}
    points = {"before write", "after write", "after rename", "after fsync", "before commit", "after commit"}
    assert points <= killed.keys()
    assert sum(killed.values()) >= 100


@pytest.mark.slow
def test_row_01_power_cuts_that_lose_what_was_not_synced_leave_the_old_or_the_new() -> None:
    # A process of its own: it replaces functions of `os`.
    command = [sys.executable, "-m", "tests.device_agent.power_cut", "--replays", "120"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    tried, there = map(int, re.findall(r"(\d+) of (\d+) disks", result.stdout)[0])
    assert tried == 120
    assert there > 800
