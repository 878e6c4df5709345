"""Commands for devices, which are sent at most once under an idempotency key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from edgec.errors import FleetError, TrustError
from edgec.fleet.api._access import FleetOf, LimitsOf, Operator
from edgec.fleet.api._once import Once, OnceOf, as_reply, to_response
from edgec.fleet.api._params import DeviceId
from edgec.fleet.views import CommandAnswer, CommandWanted
from edgec.protocol import CommandReply

router = APIRouter(tags=["devices"])


class CommandSender(Protocol):
    """Sends signed commands to devices."""

    def send_command(
        self,
        device: str,
        name: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        actor: str = "fleet",
    ) -> CommandReply:
        """Send a command and wait for its last reply.

        Raises:
            FleetError: There is no such device, it may not be told anything, or did not answer (``reason``
                ``timeout``).
            TrustError: The command cannot be signed.
        """
        ...


@router.post("/devices/{device}/commands", response_model=CommandAnswer)
async def send_command(
    request: Request,
    who: Operator,
    fleet: FleetOf,
    limits: LimitsOf,
    device: DeviceId,
    body: CommandWanted,
    once: OnceOf,
) -> Response:
    """Send a device a command, signed by the fleet, and wait for what it answers.

    Under an idempotency key it is sent at most once: where it is not known how the first request ended, the
    same one again is refused.
    """
    sender: CommandSender | None = request.app.state.commands
    if sender is None:
        raise FleetError("this server has no broker to send commands over", "offline")
    return await anyio.to_thread.run_sync(
        lambda: _send(sender, once, device, body, min(body.timeout_s, limits.command_s), who.name),
        limiter=request.app.state.waiting,
    )


def _send(
    sender: CommandSender, once: Once, device: str, body: CommandWanted, timeout_s: float, actor: str
) -> Response:
    kept = once.begun(again=False)
    if kept is not None:
        return to_response(kept)
    try:
        answer = sender.send_command(device, body.name, body.args, timeout_s=timeout_s, actor=actor)
    except (FleetError, TrustError) as e:
        if e.reason != "timeout":
            once.forget()
        raise
    reply = as_reply(_answer(answer), 200)
    once.ended(reply)
    return to_response(reply)


def _answer(reply: CommandReply) -> CommandAnswer:
    try:
        result = json.loads(reply.result) if reply.result else None
    except (ValueError, RecursionError):
        # A device says what it likes.
        result = reply.result
    return CommandAnswer(
        id=reply.id,
        name=reply.name,
        state=reply.state,
        reason=reply.reason,
        detail=reply.detail,
        result=result,
    )
