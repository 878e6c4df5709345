"""What an outbox has lost: records, bytes and incidents, by what it was and why."""

from __future__ import annotations

from edgec.protocol._losses import LossCount

# Kind, priority, reason.
Loss = tuple[str, int, str]
# Records, bytes and incidents.
Tally = dict[Loss, tuple[int, int, int]]


def add_loss(tally: Tally, loss: Loss, records: int, size: int) -> None:
    """Add records that were lost, to a tally in place."""
    if records:
        before = tally.get(loss, (0, 0, 0))
        tally[loss] = (before[0] + records, before[1] + size, before[2])


def merged(one: Tally, other: Tally) -> Tally:
    """Return the sum of two tallies."""
    found = dict(one)
    for loss, numbers in other.items():
        before = found.get(loss, (0, 0, 0))
        found[loss] = (before[0] + numbers[0], before[1] + numbers[1], before[2] + numbers[2])
    return found


def counted(tally: Tally) -> tuple[LossCount, ...]:
    """Return a tally as the fleet is told of it."""
    return tuple(
        LossCount(kind=kind, priority=priority, reason=reason, records=n, bytes=size, incidents=times)
        for (kind, priority, reason), (n, size, times) in sorted(tally.items())
    )
