"""``edgec command``: give a device a signed order over a broker, and wait for its reply."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._broker import BrokerAccess, broker_access, broker_options
from edgec.cli._text import printable
from edgec.cli._trust import json_option, key_ring, keys_option, passphrase_option

if TYPE_CHECKING:
    from edgec.protocol import Command, CommandReply, MqttLink
    from edgec.trust import KeyRing

_LOOK_S = 0.5


@click.command()
@click.argument("device")
@click.argument("name", metavar="NAME")
@click.argument("arguments", nargs=-1, metavar="[WORD=VALUE]...")
@keys_option
@passphrase_option
@broker_options(required=True)
@click.option(
    "--valid",
    "valid_s",
    type=click.FloatRange(5, 7 * 86400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="The device does not begin it later than this.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(1, 7 * 86400),
    metavar="SECONDS",
    help="How long its reply is waited for; as long as it is valid, and two minutes more, by default.",
)
@json_option
def command(
    device: str,
    name: str,
    arguments: tuple[str, ...],
    key_folders: tuple[Path, ...],
    passphrase_file: Path | None,
    valid_s: float,
    wait_s: float | None,
    as_json: bool,
    **broker: Any,
) -> None:
    """Have DEVICE do something once, and say what it replies.

    NAME is status, refresh, abort, logs, verify, benchmark, telemetry, restart, or an operation of your
    own; VALUE is JSON, or text where it is none. It is signed with the director's key in --keys: the broker
    alone can order nothing. It is sent again until the device acknowledges it, and done once. Exit status 1
    means that it was not done: refused, failed, expired, or not answered.

    \b
    edgec command camera-7 status --keys keys --broker mqtts://broker.example --ca ca.crt
    edgec command camera-7 logs lines=50 --keys keys --broker mqtts://broker.example --ca ca.crt
    edgec command camera-7 abort model=digits --keys keys --broker mqtts://broker.example --json
    edgec command camera-7 telemetry 'policy={"metrics": false}' --keys keys --broker mqtts://broker.example
    """
    args = read_arguments(arguments)
    order = signed_order(key_ring(key_folders, passphrase_file), device, name, args, valid_s)
    reply = _given(broker_access(broker), device, order, valid_s + 120 if wait_s is None else wait_s)
    facts = _facts(device, order, reply)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_told(facts)))
    if facts["state"] != "done":
        sys.exit(1)


def read_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return ``WORD=VALUE`` as what it says: values are JSON, or text where they are none.

    Raises:
        click.BadParameter: A word has no value, or is there twice.
    """
    found: dict[str, Any] = {}
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            problems.append(f"{word!r:.80} is not WORD=VALUE")
        elif name in found:
            problems.append(f"{name} is there twice")
        else:
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
    if problems:
        raise click.BadParameter("; ".join(problems), param_hint="WORD=VALUE")
    return found


def signed_order(keys: KeyRing, device: str, name: str, args: Mapping[str, Any], valid_s: float) -> Command:
    """Return a command as it goes over the broker.

    Raises:
        TrustError: The director's private key is not among `keys`, or a name is none.
        ProtocolError: It does not fit into a message.
    """
    from edgec.protocol import Command
    from edgec.trust import sign_command

    now, number = time.time(), uuid.uuid4().hex
    envelope = sign_command(
        keys.signers([key.keyid for key in keys.of_role("director")]),
        name,
        args,
        device=device,
        issued_at=now,
        valid_s=valid_s,
        command_id=number,
    )
    return Command(
        id=number, name=name, issued_at=int(now), expires_at=int(now + valid_s), envelope=envelope.decode()
    )


def _given(access: BrokerAccess, device: str, order: Command, wait_s: float) -> CommandReply | None:
    """Send a command until the device replies; return its last reply, or None."""
    from edgec.protocol import Issued, MqttLink, Subscription, Topics

    topics = Topics(access.tenant)
    mine = Subscription(filter=topics.reply(device))
    end, issued = time.monotonic() + wait_s, Issued(command=order)
    with MqttLink(access.link_options("command", [mine])) as link:
        link.wait_connected(min(30.0, wait_s))
        while time.monotonic() < end and (issued.reply is None or not issued.reply.final):
            if issued.due(time.time()):
                _send(link, topics.command(device, order.name), order)
                issued = issued.after_sending(time.time())
            elif issued.over(time.time()):  # expired; its reply may still be on the way
                end = min(end, time.monotonic() + 2 * _LOOK_S)
            reply = _heard(link, order)
            issued = issued if reply is None else issued.after_reply(reply)
    return issued.reply


def _send(link: MqttLink, topic: str, order: Command) -> None:
    from edgec.errors import LinkError
    from edgec.protocol import Outgoing

    left_s = max(1, int(order.expires_at - time.time()))
    message = Outgoing(
        topic=topic, payload=order.to_bytes(), content_type=order.content_type, expiry_s=left_s
    )
    try:
        link.publish(message).wait(10)
    except LinkError as e:  # it is sent again when it is due
        click.echo(f"not sent yet: {e}", err=True)


def _heard(link: MqttLink, order: Command) -> CommandReply | None:
    """Return the next reply to a command; None where none comes in a moment."""
    from edgec.errors import ProtocolError
    from edgec.protocol import CommandReply

    inbound = link.get(timeout_s=_LOOK_S)
    if inbound is None:
        return None
    inbound.ack()
    try:
        reply = CommandReply.from_bytes(inbound.payload)
    except ProtocolError:  # whoever sent it, it is no reply
        return None
    return reply if reply.id == order.id else None


def _facts(device: str, order: Command, reply: CommandReply | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": device, "command": order.name, "id": order.id}
    if reply is None:
        expired = time.time() >= order.expires_at
        detail = "it has expired" if expired else "the device may still do it before it expires"
        return {**facts, "state": "no_answer", "reason": "", "detail": detail, "result": None}
    try:
        result = json.loads(reply.result) if reply.result else None
    except ValueError:
        result = reply.result
    return {
        **facts,
        "state": reply.state,
        "reason": reply.reason or "",
        "detail": reply.detail,
        "result": result,
    }


def _told(facts: Mapping[str, Any]) -> list[str]:
    why = ": ".join(part for part in (facts["reason"], facts["detail"]) if part)
    lines = [printable(f"{facts['device']}  {facts['command']}  {facts['state']}  {why}".rstrip())]
    result = facts["result"]
    if isinstance(result, dict) and isinstance(result.get("text"), str):
        # Of logs: the device has made what is no text into text.
        return [*lines, *(printable(line) for line in result["text"].splitlines())]
    if result:
        lines += [printable(line) for line in json.dumps(result, indent=2, ensure_ascii=False).splitlines()]
    return lines
