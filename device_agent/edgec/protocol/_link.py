"""A link to a broker that connects anew for as long as it takes, and never blocks who uses it."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from edgec.errors import LinkError
from edgec.protocol._connection import Connection, VersionRefusedError, import_paho
from edgec.protocol._settings import (
    Announcement,
    Inbound,
    LinkOptions,
    LinkStatus,
    Outgoing,
    Publication,
)

_log = logging.getLogger(__name__)
# A connection that lasted so long makes the next wait short again.
_STABLE_S = 60.0
_LONGEST_TURN_S = 5.0
_CLOSED = LinkError("the link was closed")


class MqttLink:
    """A connection to an MQTT broker, 5 or 3.1.1, made again whenever it is lost.

    One thread talks to the broker; every method may be called from any thread, and none holds a lock while it
    waits. Nothing is kept for the broker while there is no connection: what must not be lost is kept by the
    caller, and sent again.

        with MqttLink(LinkOptions(host="broker", client_id="dev1", tls=context, subscriptions=(...))) as link:
            link.wait_connected(10)
            link.publish(Outgoing(topic=topics.event("dev1"), payload=event.to_bytes())).wait(10)
            inbound = link.get(timeout_s=60)
    """

    def __init__(
        self,
        options: LinkOptions,
        *,
        announce: Callable[[int], Announcement] | None = None,
        came: Callable[[], None] = lambda: None,
        randomness: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a link; `start` starts it.

        Args:
            options: Where to, and as whom.
            announce: Returns birth and will of a connection, given its number from 1 on, which counts
                attempts too. Called by the link's thread before each of them.
            came: Called when `get` returns at once, for who does not wait in it: after a message came in, or
                after `nudge`. From any thread; it must be quick.
            randomness: For the waits between attempts.
            clock: Tells, in seconds, how long a connection lasted: after a stable one the wait is short.

        Raises:
            MissingExtraError: The extra ``agent``, which brings paho-mqtt, is not installed.
        """
        import_paho()
        self._options, self._announce, self._came, self._clock = options, announce, came, clock
        # Many devices made from one image must not share a seed: it is the system's.
        self._random = randomness or random.Random()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inbound: deque[tuple[Inbound, int]] = deque()
        self._outbound: deque[tuple[Outgoing, Publication]] = deque()
        self._acks: deque[tuple[int, int]] = deque()
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        # Which thread is the link's: one that finds another number here ends.
        self._generation = 0
        self._turned_at = 0.0
        self._mqtt5 = options.version != "3.1.1"
        self._version_known = False
        # Why the connection is to be given up, if it is.
        self._renew: LinkError | None = None
        self._nudged = False
        self._closing = False
        self._status = LinkStatus(
            connected=False,
            capabilities=None,
            connections=0,
            last_heard_s=None,
            error=None,
            dropped=0,
            taken_over=0,
            revived=0,
        )
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)

    def start(self) -> None:
        """Start to connect; returns at once.

        Raises:
            LinkError: The link was closed.
        """
        with self._lock:
            if self._closing:
                raise LinkError("this link was closed: make another one")
            if self._thread is None:
                self._start_thread()

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until messages can be published.

        Raises:
            LinkError: The time is over; the message is that of the last failure.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._status.connected:
                self._revive()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._not_connected() from self._status.error
                self._changed.wait(min(left, 1.0))

    def publish(self, message: Outgoing) -> Publication:
        """Send a message; returns at once, with what tells when the broker has acknowledged it.

        Raises:
            LinkError: There is no connection, the broker does not take such a message, or too many are under
                way. It was not sent, and will not be.
        """
        publication = Publication()
        with self._lock:
            self._revive()
            capabilities = self._status.capabilities
            if not self._status.connected or capabilities is None or self._closing:
                raise self._not_connected()
            capabilities.check(message)
            if len(self._outbound) >= self._options.outbound_messages:
                raise LinkError(f"{len(self._outbound)} messages wait for the broker: wait for some of them")
            self._outbound.append((message, publication))
        self._wake()
        return publication

    def get(self, timeout_s: float | None = None) -> Inbound | None:
        """Return the next message that came in; None after `timeout_s` or `nudge`, or when it was closed.

        It is to be acknowledged (`Inbound.ack`) when it was dealt with.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._inbound:
                if self._closing or self._nudged:
                    self._nudged = False
                    return None
                self._revive()
                left = _LONGEST_TURN_S if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, _LONGEST_TURN_S))
            return self._inbound.popleft()[0]

    def nudge(self) -> None:
        """Let `get` return without a message, now or the next time: there is something else to do."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()
        self._came()

    @property
    def status(self) -> LinkStatus:
        """How the link is doing."""
        with self._lock:
            self._revive()
            heard = self._connection.heard_at if self._connection else None
            since = None if heard is None else time.monotonic() - heard
            return replace(self._status, last_heard_s=since)

    def reconnect(self) -> None:
        """Give the connection up and make a new one, without waiting."""
        self._renew = LinkError("a new connection was asked for")
        self._wake()

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what was given to `publish`, say good-bye and end; the session stays with the broker.

        What the broker has not acknowledged within `timeout_s` fails.
        """
        with self._changed:
            if self._closing:
                return
            self._closing, self._deadline = True, time.monotonic() + timeout_s
            self._changed.notify_all()
            thread = self._thread
        self._wake()
        if thread is not None:
            thread.join(timeout_s + 2 * self._options.connect_timeout_s)
        with self._lock:
            self._generation += 1
            self._fail_outbound(_CLOSED)
        self._wake_read.close()
        self._wake_write.close()

    def __enter__(self) -> MqttLink:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The thread.

    def _start_thread(self) -> None:
        self._generation += 1
        self._turned_at = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(self._generation,), name=f"mqtt-{self._options.client_id}", daemon=True
        )
        self._thread.start()

    def _revive(self) -> None:
        """Replace the thread when it died, or hangs where no time-out holds; the lock is held."""
        if self._thread is None or self._closing:
            return
        # Resolving a name has no time-out, and connecting has two.
        limit = 60.0 + 3 * self._options.connect_timeout_s
        if time.monotonic() - self._turned_at < (limit if self._thread.is_alive() else 1.0):
            return
        _log.error("the thread of the link to %s is dead or hangs: it is replaced", self._options.host)
        error = LinkError("the link's thread had died or hung: a new connection is made")
        if self._connection is not None:
            self._connection.abandon(error)
        self._lose(error)
        self._status = replace(self._status, revived=self._status.revived + 1)
        self._start_thread()

    def _run(self, generation: int) -> None:
        attempt = 0
        while self._mine(generation) and not self._closing:
            began = self._clock()
            error = self._connect_and_serve(generation)
            if not self._mine(generation) or self._closing:
                return
            if self._falls_back(error):
                self._mqtt5 = False
                continue
            if not self._version_known:
                # A failure of another kind says nothing about versions: MQTT 5 is tried first again.
                self._mqtt5 = self._options.version != "3.1.1"
            attempt = 0 if self._clock() - began > _STABLE_S else attempt
            wait = self._wait_before(attempt)
            attempt += 1
            _log.info("%s; the next attempt is in %.1f s", error, wait)
            self._pause(generation, wait)

    def _wait_before(self, attempt: int) -> float:
        """Return the wait before another attempt, in seconds: full jitter, so that a fleet does not march.

        Brooker, "Exponential Backoff and Jitter", 2015.
        """
        longest = min(self._options.last_retry_s, self._options.first_retry_s * 2.0 ** min(attempt, 30))
        return self._random.uniform(0.0, longest)

    def _falls_back(self, error: LinkError) -> bool:
        """Whether MQTT 3.1.1 is to be tried at once."""
        untried = self._options.version == "auto" and self._mqtt5 and not self._version_known
        return untried and isinstance(error, VersionRefusedError)

    def _connect_and_serve(self, generation: int) -> LinkError:
        """Make one connection and serve it to its end; return what ended it."""
        with self._lock:
            number = self._status.connections + 1
            self._status = replace(self._status, connections=number)
        connection: Connection | None = None
        try:
            connection = Connection(
                self._options,
                mqtt5=self._mqtt5,
                announcement=self._announce(number) if self._announce else None,
                deliver=lambda inbound, mid: self._deliver(generation, number, inbound, mid),
            )
            connection.open()
            with self._lock:
                if not self._mine(generation):
                    return LinkError("replaced")
                self._connection = connection
            self._serve(generation, number, connection)
            error = _CLOSED
        except LinkError as e:
            error = e
        finally:
            if connection is not None:
                connection.close(LinkError("the connection was lost before the broker acknowledged"))
        with self._lock:
            if self._mine(generation):
                taken = self._status.taken_over + (connection is not None and connection.taken_over)
                self._status = replace(self._status, taken_over=taken)
                # That a broker has no MQTT 5 is no failure, where 3.1.1 will do.
                self._lose(error if not self._falls_back(error) else self._status.error)
                if isinstance(error, VersionRefusedError):
                    # The broker was another one when it took MQTT 5.
                    self._version_known = self._version_known and not self._mqtt5
                elif connection is not None and connection.answered:
                    self._version_known = True
        return error

    def _serve(self, generation: int, number: int, connection: Connection) -> None:
        """Read and write until the connection ends, or the link is closed."""
        longest = min(_LONGEST_TURN_S, self._options.keepalive_s / 4, self._options.connect_timeout_s / 4)
        while self._mine(generation):
            self._turned_at = time.monotonic()
            connection.turn(self._wake_read.fileno(), longest if not self._closing else 0.05)
            with suppress(BlockingIOError):
                self._wake_read.recv(4096)
            if not connection.ready:
                if self._closing:
                    connection.close(_CLOSED, farewell=True)
                    return
                continue
            if not self._status.connected:
                self._begin(number, connection)
            self._send(number, connection)
            renew, self._renew = self._renew, None
            if renew is not None:
                raise renew
            if self._closing and self._drained(connection):
                self._say_goodbye(number, connection)
                return

    def _begin(self, number: int, connection: Connection) -> None:
        capabilities = connection.capabilities
        with self._changed:
            if capabilities is not None and capabilities.session_present:
                # The broker sends again what was not acknowledged on an earlier connection.
                kept = [(m, n) for m, n in self._inbound if n == number or m.qos == 0]
                self._inbound = deque(kept)
            self._status = replace(self._status, connected=True, capabilities=capabilities, error=None)
            self._changed.notify_all()

    def _send(self, number: int, connection: Connection) -> None:
        while self._acks:
            connected_as, mid = self._acks.popleft()
            # A number belongs to its connection: on a later one it may be another message's.
            if connected_as == number:
                connection.ack(mid)
        while self._outbound and connection.room:
            connection.publish(*self._outbound.popleft())

    def _drained(self, connection: Connection) -> bool:
        nothing_left = not self._outbound and not connection.under_way
        return nothing_left or time.monotonic() > self._deadline

    def _say_goodbye(self, number: int, connection: Connection) -> None:
        if self._announce is not None:
            farewell = Publication()
            connection.publish(self._announce(number).will, farewell)
            while not farewell.done and time.monotonic() < self._deadline:
                connection.turn(self._wake_read.fileno(), 0.05)
                with suppress(BlockingIOError):
                    self._wake_read.recv(4096)
        connection.close(_CLOSED, farewell=True)

    def _deliver(self, generation: int, number: int, inbound: Inbound, mid: int | None) -> None:
        """Take what came in. Called within paho: it only notes."""
        with self._changed:
            if not self._mine(generation):
                return
            if len(self._inbound) >= self._options.inbound_messages:
                if mid is None:
                    self._status = replace(self._status, dropped=self._status.dropped + 1)
                else:
                    # Not acknowledged: the broker sends it again, on the next connection.
                    self._renew = LinkError("more came in than was dealt with: a new connection is made")
                return
            if mid is not None:
                inbound = replace(inbound, _ack=lambda: self._acknowledge(number, mid))
            self._inbound.append((inbound, number))
            self._changed.notify_all()
        self._came()

    def _acknowledge(self, number: int, mid: int) -> None:
        self._acks.append((number, mid))
        self._wake()

    def _lose(self, error: LinkError | None) -> None:
        """Take note that there is no connection; the lock is held."""
        self._connection = None
        self._status = replace(self._status, connected=False, capabilities=None, error=error)
        self._fail_outbound(error or _CLOSED)
        self._changed.notify_all()

    def _fail_outbound(self, error: LinkError) -> None:
        while self._outbound:
            self._outbound.popleft()[1].settle(error)

    def _pause(self, generation: int, seconds: float) -> None:
        """Wait; closing ends it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._mine(generation) and not self._closing:
                self._turned_at = time.monotonic()
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, 30.0))

    def _mine(self, generation: int) -> bool:
        return self._generation == generation

    def _not_connected(self) -> LinkError:
        cause = f": {self._status.error}" if self._status.error else ""
        where = f"{self._options.host}:{self._options.port}"
        return LinkError(f"there is no connection to {where}{cause}")

    def _wake(self) -> None:
        # Full of earlier wakes, or closed: either way nobody has to be woken.
        with suppress(OSError):
            self._wake_write.send(b"w")
