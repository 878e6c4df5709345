"""Exactly once out of at least once: records that are counted once, commands that are done once.

Pure values, like the views; where they are kept, they are kept in one transaction with what they are about.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edgec.protocol._control import Command, CommandReply
from edgec.protocol._telemetry import SeqRange, Telemetry, TelemetryAck

_FIRST_RETRY_S, _LAST_RETRY_S = 2.0, 300.0
_MOST_RANGES = 256
# A server that was away asks for a reply this long after the command has expired.
_KEPT_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Received:
    """Records of one boot of a device that a server keeps.

    Attributes:
        boot_id: Of the start that made the records.
        up_to: Every record up to this number is kept, or will not come any more; -1 for none.
        ranges: What is kept beyond it: (first, last), in order, with gaps in between; 256 at most.
    """

    boot_id: str
    up_to: int = -1
    ranges: tuple[tuple[int, int], ...] = ()

    def take(self, seqs: Iterable[int], *, floor: int = 0) -> tuple[Received, tuple[int, ...]]:
        """Return the ledger after records have come, and the numbers of those that are new.

        What would be one range too many is not taken: it is not acknowledged, and comes again after what is
        before it. Since no number below `floor` comes any more, the first record that does is always taken.

        Args:
            seqs: Numbers of the records.
            floor: No record below it will be sent again.
        """
        spans = [(-1, max(self.up_to, floor - 1)), *self.ranges]
        merged: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        new = tuple(seq for seq in sorted(set(seqs)) if _add(merged, seq))
        return replace(self, up_to=merged[0][1], ranges=tuple(merged[1:])), new

    def take_telemetry(self, telemetry: Telemetry) -> tuple[Received, tuple[int, ...]]:
        """Return the ledger after a message, and the numbers of its records that are new."""
        return self.take((seq for seq, _ in telemetry.numbered()), floor=telemetry.floor)

    def ack(self) -> TelemetryAck:
        """Return what tells the device what is kept; of very many ranges, the first ones."""
        ranges = tuple(SeqRange(first=a, last=b) for a, b in self.ranges[:_MOST_RANGES])
        return TelemetryAck(boot_id=self.boot_id, seq=self.up_to if self.up_to >= 0 else None, ranges=ranges)


def _add(spans: list[tuple[int, int]], seq: int) -> bool:
    """Add a number to spans, the first of which begins below it; whether it is new and there is room."""
    place = bisect_right(spans, seq, key=_first)
    first, last = spans[place - 1]
    if seq <= last:
        return False
    joins = last + 1 == seq
    meets = place < len(spans) and spans[place][0] == seq + 1
    if not joins and not meets and len(spans) > _MOST_RANGES:
        return False
    span = (first if joins else seq, spans[place][1] if meets else seq)
    spans[place - joins : place + meets] = [span]
    return True


def _first(span: tuple[int, int]) -> int:
    return span[0]


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A command that a server has issued: sent again until the device replies or it expires.

    Attributes:
        command: What is sent.
        sent: Times that it was sent.
        next_at: When it is to be sent again, seconds by the server's clock.
        reply: The device's last; None before the first.
    """

    command: Command
    sent: int = 0
    next_at: float = 0.0
    reply: CommandReply | None = None

    def due(self, now: float) -> bool:
        """Whether it is to be sent now. Once it is accepted, it is asked after at the longest interval."""
        return not self.over(now) and now >= self.next_at

    def over(self, now: float) -> bool:
        """Whether nothing is to be sent any more: it has its last reply, or expired unheard."""
        if self.reply is not None:
            return self.reply.final
        return now >= self.command.expires_at

    def after_sending(self, now: float) -> Issued:
        """Return it after it was handed to the broker."""
        wait = min(_FIRST_RETRY_S * 2.0 ** min(self.sent, 16), _LAST_RETRY_S)
        return replace(
            self, sent=self.sent + 1, next_at=now + (wait if self.reply is None else _LAST_RETRY_S)
        )

    def after_reply(self, reply: CommandReply) -> Issued:
        """Return it after a reply; what says less than is known, or is about another, changes nothing."""
        if reply.id != self.command.id or (self.reply is not None and (self.reply.final or not reply.final)):
            return self
        return replace(self, reply=reply)


@dataclass(frozen=True, kw_only=True)
class Handled:
    """Commands that a device has heard of, so that none is done twice.

    Attributes:
        replies: The last reply by id, with the time the command expires, by the device's clock.
    """

    replies: dict[str, tuple[float, CommandReply]] = field(default_factory=dict)

    def reply_to(self, command: Command) -> CommandReply | None:
        """Return what was replied to a command before; None where it is new."""
        found = self.replies.get(command.id)
        return found[1] if found else None

    def record(self, command: Command, reply: CommandReply, *, now: float, most: int = 1024) -> Handled:
        """Return the ledger with a reply.

        Commands that expired a day ago are forgotten, and the oldest of more than `most`.
        """
        kept = {k: v for k, v in self.replies.items() if v[0] + _KEPT_S > now and k != command.id}
        kept[command.id] = (command.expires_at, reply)
        return Handled(replies=dict(list(kept.items())[-most:]))
