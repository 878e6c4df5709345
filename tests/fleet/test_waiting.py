"""How long the fleet waits for a broker: as long as it takes one message after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("sqlalchemy", reason="the fleet needs the extra 'fleet'")

from edgec.errors import LinkError
from edgec.fleet.mqtt._waiting import wait_for_all
from edgec.protocol import Publication


class Broker:
    """Acknowledges one message at each of some times, in seconds; time passes while somebody waits."""

    def __init__(self, times: Sequence[float]) -> None:
        self.now = 0.0
        self.sent: list[Publication] = [_Sent(self) for _ in times]
        self._times = times

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for at, publication in zip(self._times, self.sent, strict=True):
            if at <= self.now:
                publication.settle()

    def done(self) -> list[bool]:
        return [publication.done for publication in self.sent]


class _Sent(Publication):
    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self._broker = broker

    def wait(self, timeout_s: float) -> None:
        self._broker.pass_by(timeout_s)
        super().wait(0)


NEVER = 1e9


@pytest.mark.parametrize(
    ("times", "done", "until"),
    [
        # Each takes fifteen seconds: four times that is longer than any of it is quiet.
        ([15, 30, 45, 60], [True] * 4, 60),
        # One is lost on its way, and the others are not given up for it.
        ([NEVER, 15, 30, 45], [False, True, True, True], 65),
        ([5, NEVER, NEVER, 26], [True, False, False, False], 25),
        ([NEVER] * 2, [False] * 2, 20),
        ([], [], 0),
    ],
)
def test_a_broker_that_goes_on_is_waited_for(times: list[float], done: list[bool], until: float) -> None:
    broker = Broker(times)
    wait_for_all(broker.sent, 20, monotonic=lambda: broker.now)
    assert broker.done() == done
    assert broker.now == pytest.approx(until, abs=1.0)


def test_what_must_not_wait_so_long_is_done_meanwhile() -> None:
    broker, looks = Broker([15, 30, 45, 60]), list[float]()
    wait_for_all(broker.sent, 20, meanwhile=lambda: looks.append(broker.now), monotonic=lambda: broker.now)
    assert broker.done() == [True] * 4
    assert looks == sorted(looks)
    assert len(looks) >= 50


def test_an_end_waits_no_longer_than_for_one_that_is_silent() -> None:
    broker = Broker([15, 30, 45])
    wait_for_all(broker.sent, 20, stopping=lambda: True, monotonic=lambda: broker.now)
    assert broker.done() == [True, False, False]
    with pytest.raises(LinkError, match="acknowledge"):
        broker.sent[-1].wait(0)
