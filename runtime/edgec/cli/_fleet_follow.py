"""A rollout followed until it is over, also while its server is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._text import printable
from edgec.errors import FleetError

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient
    from edgec.fleet.views import RolloutView

_OVER = ("finished", "undone", "aborted")
# All but those about single devices.
_KINDS = ("begin", "soak", "look", "hold", "stop", "quarantine", "incident", "undone", "finish", "order")
# A server that is started again answers with these, or not at all; what it does goes on afterwards.
_PASSING = ("unreachable", "database")
_PATIENCE_S = 120.0


def follow(
    client: FleetClient,
    rollout_id: str,
    every_s: float,
    *,
    as_json: bool = False,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RolloutView:
    """Tell decisions on stderr until a rollout is over; return it as it is then.

    A server that has answered once and then does not is asked again for two minutes, which is said once.

    Args:
        client: Of its fleet.
        rollout_id: Which.
        every_s: Between two looks.
        as_json: Whether decisions are left out.
        monotonic: Seconds that only grow.
        sleep: Waits for seconds.

    Raises:
        FleetError: The server refuses, or did not answer for two minutes.
    """
    after = 0
    known = False
    # Since when it does not answer.
    since: float | None = None
    while True:
        try:
            whole = client.rollout(rollout_id)
            known = True
            for decision in client.decisions(rollout_id, kinds=_KINDS, after=after):
                after = decision.id
                if not as_json:
                    click.echo(printable(_told(decision.at, decision.kind, decision.body)), err=True)
            since = None
            if whole.state in _OVER:
                return whole
        except FleetError as e:
            late = since is not None and monotonic() - since >= _PATIENCE_S
            if not known or late or e.reason not in _PASSING:
                raise
            if since is None:
                since = monotonic()
                click.echo(printable(f"{e}; asked again for {_PATIENCE_S:g} s"), err=True)
        sleep(every_s)


def _told(at: float, kind: str, body: dict[str, Any]) -> str:
    words = {key: value for key, value in body.items() if not isinstance(value, (dict, list)) and value != ""}
    if "stage" in words:
        # People count stages from 1, as below.
        words["stage"] += 1
    stamp = time.strftime("%H:%M:%S", time.localtime(at))
    return f"{stamp}  {kind:<10}  " + ", ".join(f"{k} {v}" for k, v in words.items())
