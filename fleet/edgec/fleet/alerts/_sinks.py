"""Who is told of alerts: webhooks, signed, and a topic of the broker; from an outbox that survives a kill."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from edgec.errors import FleetError, LinkError
from edgec.fleet.store import Alerts, Delivery
from edgec.protocol import Outgoing, Publication, client_context

_log = logging.getLogger(__name__)
_FIRST_WAIT_S, _LAST_WAIT_S = 5.0, 3600.0
# With such waits, more than half a day.
_MOST_TRIES = 20
_LEASE_S = 60.0
_REPLY_BYTES = 4096


class SinkError(FleetError):
    """A sink did not take an alert; it is tried again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "sink")


class Sink(Protocol):
    """Takes what is to be told."""

    @property
    def name(self) -> str:
        """Under which deliveries wait for it; the same after a restart."""
        ...

    def send(self, delivery: Delivery, now: float) -> None:
        """Tell it.

        Raises:
            SinkError: It did not take it, or may not have.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An HTTP endpoint. It gets the JSON by POST, and answers with a status from 200 to 299.

    ``X-Edgec-Delivery`` is the same number whenever one is tried again; ``X-Edgec-Signature`` is
    ``t=SECONDS,v1=HEX``, an HMAC with SHA-256 of ``SECONDS.BODY``: see `verify_signature`. Redirects are not
    followed.

    Attributes:
        name: Under which deliveries wait for it.
        url: ``https://...``; ``http://`` is for this machine and networks that are trusted.
        secret: That it shares with the fleet.
        timeout_s: For the connection, and again for each part of the reply.
        tls: Whom to trust; the system's authorities if None.
    """

    name: str
    url: str
    secret: str = field(repr=False)
    timeout_s: float = 10.0
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        """Refuse what is no address.

        Raises:
            ValueError: It is not, or there is no secret.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(self.url):
            raise ValueError(f"expected https://host/path for the webhook {self.name}, got {self.url!r}")
        if not self.secret:
            raise ValueError(f"the webhook {self.name} needs a secret to sign with")

    def send(self, delivery: Delivery, now: float) -> None:
        """Post it."""
        parts = urlsplit(self.url)
        body = delivery.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "edgec",
            "X-Edgec-Delivery": str(delivery.id),
            "X-Edgec-Signature": sign(self.secret, int(now), body),
        }
        host, target = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme == "https":
            context = self.tls or client_context()
            link: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=self.timeout_s, context=context
            )
        else:
            link = http.client.HTTPConnection(host, parts.port, timeout=self.timeout_s)
        try:
            link.request("POST", target, body=body, headers=headers)
            reply = link.getresponse()
            reply.read(_REPLY_BYTES)
        except (OSError, http.client.HTTPException) as e:
            raise SinkError(f"{self.name} cannot be reached: {e}") from e
        finally:
            link.close()
        if not 200 <= reply.status < 300:
            raise SinkError(f"{self.name} answered {reply.status} {reply.reason}")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """The tenant's topic for alerts, ``Topics.alerts``, over the fleet's own connection.

    Attributes:
        topic: Where to.
        publish: Publishes a message: `MqttSide.publish`.
        name: Under which deliveries wait for it.
    """

    topic: str
    publish: Callable[[Outgoing], Publication]
    name: str = "mqtt"

    def send(self, delivery: Delivery, now: float) -> None:
        """Publish it, and wait for the broker."""
        message = Outgoing(
            topic=self.topic,
            payload=delivery.body.encode(),
            content_type="application/json",
            correlation=str(delivery.id).encode(),
        )
        try:
            self.publish(message).wait(10.0)
        except LinkError as e:
            raise SinkError(f"{self.name}: {e}") from e


def _has_port(url: str) -> bool:
    """Whether the port of an address is none, or one that can be."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def sign(secret: str, at: int, body: bytes) -> str:
    """Return the value of ``X-Edgec-Signature``."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def verify_signature(secret: str, header: str, body: bytes, *, now: float, within_s: float = 300.0) -> bool:
    """Whether a request to a webhook is the fleet's, and not an old one that somebody sends again."""
    fields: Mapping[str, str] = dict(part.split("=", 1) for part in header.split(",") if part.count("=") == 1)
    at = fields.get("t", "")
    if not (at.isascii() and at.isdigit() and len(at) < 16) or abs(now - int(at)) > within_s:
        return False
    return hmac.compare_digest(sign(secret, int(at), body).encode(), header.encode())


class Courier:
    """Delivers what waits in the outbox; what a sink does not take waits, longer each time.

    Attributes:
        problem: Why nothing could be delivered when it was tried last; None where it could.
    """

    def __init__(
        self,
        alerts: Alerts,
        sinks: Sequence[Sink],
        *,
        clock: Callable[[], float] = time.time,
        first_wait_s: float = _FIRST_WAIT_S,
        randomness: random.Random | None = None,
    ) -> None:
        """Deliver to sinks, whose names differ."""
        self._alerts, self._sinks = alerts, {sink.name: sink for sink in sinks}
        self._clock, self._first_wait_s = clock, first_wait_s
        self._random = randomness or random.Random()
        self._poked = threading.Event()
        self._stopping = False
        self.problem: str | None = None

    def poke(self) -> None:
        """There is something to deliver."""
        self._poked.set()

    def stop(self) -> None:
        """Let `run` return after the delivery in hand."""
        self._stopping = True
        self._poked.set()

    def run(self) -> None:
        """Deliver until `stop`."""
        while not self._stopping:
            busy = 0
            self._poked.clear()
            try:
                busy = self.deliver()
                self.problem = None
            except Exception as e:  # noqa: BLE001
                # Whatever it is: a thread that ends tells nobody of anything until a restart.
                self.problem = f"alerts wait to be told: {e}"
                _log.exception("alerts wait")
            if not (busy or self._stopping):
                self._poked.wait(1.0)

    def deliver(self) -> int:
        """Deliver what is due; return how many were tried."""
        due = self._alerts.take_due(self._clock(), lease_s=_LEASE_S)
        for delivery in due:
            if not self._stopping:
                self._try(delivery)
        return len(due)

    def _try(self, delivery: Delivery) -> None:
        sink = self._sinks.get(delivery.sink)
        now = self._clock()
        if sink is None:
            self._alerts.failed(delivery, "there is no such sink any more", next_at=None, now=now)
            return
        try:
            sink.send(delivery, now)
        except Exception as e:  # noqa: BLE001
            # A sink may raise anything; what is to be told by the others does not wait for it.
            if not isinstance(e, SinkError):
                _log.exception("the sink %s failed", delivery.sink)
            over = delivery.tries + 1 >= _MOST_TRIES
            most = min(self._first_wait_s * 2.0 ** min(delivery.tries, 30), _LAST_WAIT_S)
            next_at = None if over else now + most * self._random.uniform(0.5, 1.0)
            _log.warning("an alert is not delivered%s: %s", ", and given up" if over else "", e)
            self._alerts.failed(delivery, str(e), next_at=next_at, now=now)
        else:
            self._alerts.delivered(delivery, now)
