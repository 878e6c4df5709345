"""How the fleet's side of a broker behaves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """How messages are gathered, and how devices are told.

    Attributes:
        sources: Base URLs that devices fetch files from, the best first; none where the broker brings them.
        share: Name under which several servers share telemetry and events, where the broker can do that.
        batch_messages: At most so many messages are kept in one transaction.
        batch_s: A message waits for others at most so long; where the last batch took long, twice that time,
            but not longer than `slow_batch_s`: the busier the server, the fewer transactions.
        slow_batch_s: See `batch_s`.
        turn_s: Rollouts are looked at so often, and at once where something has changed.
        late_s: Rollouts that are over are looked at so often, for devices that join late.
        order_messages: So many orders are signed, sent and written down together.
        first_wait_s: A device that is connected and takes no notice is told again after that time at the
            most, then after twice as long.
        last_wait_s: So at last.
        renew_days: Signed metadata is renewed so long before it expires.
        files: Whether pieces of files are served over the broker.
    """

    sources: tuple[str, ...] = ()
    share: str | None = "ingest"
    batch_messages: int = 400
    batch_s: float = 0.03
    slow_batch_s: float = 0.3
    turn_s: float = 2.0
    late_s: float = 20.0
    order_messages: int = 1000
    first_wait_s: float = 60.0
    last_wait_s: float = 3600.0
    renew_days: float = 10.0
    files: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: A value is out of range.
        """
        if min(self.batch_messages, self.order_messages) < 1:
            raise ValueError("batches have at least one message")
        if min(self.batch_s, self.slow_batch_s, self.turn_s, self.late_s, self.first_wait_s) <= 0:
            raise ValueError("times must be above 0")
        if self.last_wait_s < self.first_wait_s:
            raise ValueError("the last wait cannot be shorter than the first")
