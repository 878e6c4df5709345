"""Commands that every agent has: stop an update, look for news."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from edgec.device_agent._events import Abort
from edgec.device_agent._seams import OrderRefusedError

if TYPE_CHECKING:
    from edgec.device_agent._models import Models
    from edgec.device_agent._orders import Orders
    from edgec.device_agent._wishes import Wishes
    from edgec.trust import SignedCommand


def abort(command: SignedCommand, models: Models) -> Mapping[str, Any]:
    """Stop the update of a model, or of all; answered with accepted or refused, and why.

    Raises:
        OrderRefusedError: There is no such model, or the epoch is no number.
    """
    model, epoch = command.args.get("model"), command.args.get("epoch")
    known = model is None or (isinstance(model, str) and model in models.runners)
    if not known or not isinstance(epoch, int | None):
        raise OrderRefusedError("args", f"expected a model of {', '.join(models.names)} and an epoch")
    answers = {}
    for name in models.names if model is None else (str(model),):
        runner = models.runners[name]
        before = runner.state.report_seq
        runner.post(Abort(now=models.moment(), epoch=epoch))
        runner.poll()
        told = [r for r in runner.state.reports if r.seq > before and r.result.startswith("abort_")]
        result = told[0].result.removeprefix("abort_") if told else "refused"
        answers[name] = {"answer": result, "reason": told[0].reason if told else "degraded"}
    return {"models": answers}


def refresh(command: SignedCommand, wishes: Wishes) -> Mapping[str, Any]:
    """Look for what is wanted now."""
    wishes.look()
    return {}


def offer_own(orders: Orders, models: Models, wishes: Wishes) -> None:
    """Let these commands be given."""
    orders.offer("abort", partial(abort, models=models), at_once=True)
    orders.offer("refresh", partial(refresh, wishes=wishes), at_once=True)
