"""What every byte of a transfer passes: budgets, the bandwidth limit, the watchdog, cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgec.errors import TransferError

_SLICE_S = 0.25  # between two looks at a cancellation


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one transfer may cost.

    Attributes:
        attempts: Attempts in a row that complete no chunk, over all sources.
        patience_s: Time in which no chunk is completed.
        requests: Requests in all; None for four per chunk, and no fewer than 256.
        excess: Bytes in all, as a multiple of those that are missing; 1 MiB more is always allowed.
        first_delay_s, largest_delay_s: Waits between attempts double from the first to the largest; each is
            drawn between 0 and that (full jitter).
        retry_after_s: Largest wait that a server may ask for.
        bytes_per_s: Largest rate; None for no limit.
        least_bytes_per_s: Smallest rate, over `watch_s`; below it the source is given up for now.
        watch_s: What the smallest rate is measured over.
        connect_s: For a connection, its TLS handshake included.
        sync_bytes: What is lost at most when power fails: bytes between two syncs to disk.
    """

    attempts: int = 60
    patience_s: float = 86400.0
    requests: int | None = None
    excess: float = 3.0
    first_delay_s: float = 1.0
    largest_delay_s: float = 900.0
    retry_after_s: float = 3600.0
    bytes_per_s: float | None = None
    least_bytes_per_s: float = 256.0
    watch_s: float = 30.0
    connect_s: float = 20.0
    sync_bytes: int = 2**20

    def __post_init__(self) -> None:
        if self.bytes_per_s is not None and self.bytes_per_s < 2 * self.least_bytes_per_s:
            raise ValueError(
                f"a limit of {self.bytes_per_s:g} bytes/s needs a least_bytes_per_s of at most half of it, "
                f"not {self.least_bytes_per_s:g}"
            )


@dataclass
class Spent:
    """What transfers have cost so far, those that failed included.

    Attributes:
        received: Bytes that came over the network or from a directory, headers of HTTP included.
        requests: How many were made.
    """

    received: int = 0
    requests: int = 0


class Cancel:
    """Tells a transfer in another thread to end; it ends within half a second, and what it has is kept."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """End the transfer."""
        self._event.set()

    def is_set(self) -> bool:
        """Return whether it is to end."""
        return self._event.is_set()


class Failure(Exception):
    """A source did not give what it was asked for.

    Attributes:
        kind: ``later`` (try again), ``lie`` (a second one, and the source is out) or ``gone`` (it is out).
        reason: As in `TransferError`.
        wait_s: What the source asked to wait.
    """

    def __init__(self, message: str, kind: str, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.wait_s = wait_s


class Line:
    """Accounts for one transfer; used by one thread.

    Attributes:
        limits: What it may cost.
        requests, received: What it has cost.
        spent: The same is added here.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        most_requests: int,
        most_bytes: int,
        spent: Spent,
        cancel: Cancel | None,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.limits, self.requests, self.received = limits, 0, 0
        self.spent = spent
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._cancel, self.clock, self._sleep = cancel, clock, sleep
        self._watched_since, self._watched_bytes = clock(), 0
        self._allowed_at = clock()

    def begin(self) -> None:
        """Begin an attempt: the watchdog looks from here on."""
        self._watched_since, self._watched_bytes = self.clock(), 0

    def request(self) -> None:
        """Count a request.

        Raises:
            TransferError: There were too many.
        """
        if self.requests >= self._most_requests:
            raise TransferError(
                f"the file was not complete after {self.requests} requests; try again later", "requests"
            )
        self.requests += 1
        self.spent.requests += 1

    def count(self, size: int) -> None:
        """Count bytes that came in, and wait where they came faster than allowed.

        Raises:
            TransferError: There were too many, or the transfer was cancelled.
        """
        self.received += size
        self.spent.received += size
        self._watched_bytes += size
        if self.received > self._most_bytes:
            raise TransferError(
                f"{self.received} bytes came, and at most {self._most_bytes} may; the sources do not keep "
                "what they promise",
                "bytes",
            )
        if self.limits.bytes_per_s is not None and size:
            # A token bucket that holds a second's worth.
            now = self.clock()
            self._allowed_at = max(self._allowed_at, now - 1.0) + size / self.limits.bytes_per_s
            if self._allowed_at > now:
                self.wait(self._allowed_at - now)
                self._watched_since += self._allowed_at - now

    def check(self) -> None:
        """Do nothing if the transfer may go on.

        Raises:
            TransferError: It was cancelled.
            Failure: The source is too slow.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise TransferError("the transfer was cancelled; what came is kept", "cancelled")
        seconds = self.clock() - self._watched_since
        if seconds < self.limits.watch_s:
            return
        rate = self._watched_bytes / seconds
        if rate < self.limits.least_bytes_per_s:
            raise Failure(
                f"{rate:.0f} bytes/s over {seconds:.0f} s, of {self.limits.least_bytes_per_s:g} needed",
                "later",
                "too_slow",
            )
        self.begin()

    def wait(self, seconds: float) -> None:
        """Wait, in slices.

        Raises:
            TransferError: The transfer was cancelled meanwhile.
        """
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            if self._cancel is not None and self._cancel.is_set():
                raise TransferError("the transfer was cancelled; what came is kept", "cancelled")
            self._sleep(left if self._cancel is None else min(left, _SLICE_S))
