"""One round of an agent takes in what has come, all of it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from tests.device_agent.fleet_side import Publisher, config

from edgec.device_agent import Agent, BrokerSettings
from edgec.device_agent._seams import NoLink
from edgec.protocol import Inbound

pytestmark = pytest.mark.slow
_MESSAGES = 200


class _Full(NoLink):
    """A link over which much has come; counts nudges."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = list[int]()
        self.nudged = 0
        self._waiting = deque(
            Inbound(topic="elsewhere", payload=b"", qos=1, _ack=partial(self.taken.append, number))
            for number in range(_MESSAGES)
        )

    def get(self, timeout_s: float | None = None) -> Inbound | None:
        return self._waiting.popleft() if self._waiting else super().get(timeout_s)

    def nudge(self) -> None:
        self.nudged += 1
        super().nudge()


def test_more_than_one_round_takes_is_left_for_the_next_which_is_asked_for(tmp_path: Path) -> None:
    link = _Full()
    settings = config(tmp_path, Publisher(tmp_path / "shop"), None)
    agent = Agent(
        replace(settings, broker=BrokerSettings(host="localhost", tls=False)),
        link=lambda options, announce: link,
    )
    agent.start(thread=False)
    try:
        rounds = 0
        while len(link.taken) < _MESSAGES:
            before = link.nudged
            agent.turn(0.0)
            rounds += 1
            assert link.taken == list(range(len(link.taken)))
            assert len(link.taken) == _MESSAGES or link.nudged > before
            assert rounds <= _MESSAGES
        assert rounds > 1
    finally:
        agent.stop()
