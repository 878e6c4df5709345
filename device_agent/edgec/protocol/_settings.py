"""Values of a link to a broker: how to connect, what goes out, what comes in, what the broker offers."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgec.errors import LinkError

VERSIONS = ("auto", "5", "3.1.1")


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """A filter to subscribe to.

    Attributes:
        filter: Of topics. No two of a client may overlap: Mosquitto then delivers twice.
        qos: 0 or 1.
        share: Name of a group of clients of which only one gets each message, where the broker can do that.
    """

    filter: str
    qos: int = 1
    share: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A message to publish. What only MQTT 5 has is left out where the broker speaks 3.1.1.

    Attributes:
        topic: Where to.
        payload: At most 128 KiB by edgec's protocol.
        qos: 0 or 1.
        retain: Whether the broker is to keep it for who subscribes later.
        expiry_s: After which the broker need not deliver it any more.
        content_type: ``application/json`` or ``application/cbor``.
        response_topic: Where an answer goes.
        correlation: What the answer repeats.
        user: More properties, by name.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    user: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What a client says when it comes and when it goes.

    Attributes:
        birth: Published once subscriptions are granted.
        will: Published by the broker when the connection is lost, and by `MqttLink.close`.
    """

    birth: Outgoing
    will: Outgoing


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How to reach a broker, and as whom.

    Attributes:
        host: Name or address of the broker.
        port: Its port.
        client_id: Of the session that the broker keeps: the device's id. NATS takes no dots, so that they are
            sent as ``=``, which no id of edgec has.
        tls: With the authority to trust, and with a certificate for mutual TLS; None for no encryption, which
            only a broker on this machine should be given.
        username: For brokers that ask for one, or for the name that goes with a token.
        password: A password, or a token.
        subscriptions: To make on every connection.
        version: ``auto`` tries MQTT 5 and falls back to 3.1.1.
        keepalive_s: A silent connection is given up after twice that time; less, if the broker says so.
        session_expiry_s: How long the broker keeps messages for this client while it is away; 0 for a client
            that comes once, and leaves nothing behind.
        will_delay_s: How long the broker waits with the will, so that short outages go unnoticed.
        connect_timeout_s: For a connection to be made, and again for the broker's answer.
        ack_timeout_s: A message unacknowledged for so long makes the link connect anew.
        first_retry_s: The first wait before connecting again is random between 0 and this.
        last_retry_s: So the last; in between it doubles.
        inbound_messages: That wait for `MqttLink.get`. Where one more comes, the link connects anew, and the
            broker sends what was not acknowledged again.
        outbound_messages: That wait for the broker's acknowledgement; one more is refused.
    """

    host: str
    port: int = 8883
    client_id: str
    tls: ssl.SSLContext | None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    subscriptions: tuple[Subscription, ...] = ()
    version: str = "auto"
    keepalive_s: int = 60
    session_expiry_s: int = 14 * 86_400
    will_delay_s: int = 30
    connect_timeout_s: float = 10.0
    ack_timeout_s: float = 60.0
    first_retry_s: float = 2.0
    last_retry_s: float = 300.0
    inbound_messages: int = 1024
    outbound_messages: int = 256

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: A value is out of range.
        """
        if self.version not in VERSIONS:
            raise ValueError(f"expected a version of MQTT out of {', '.join(VERSIONS)}, got {self.version!r}")
        if not 1 <= self.keepalive_s <= 65_535:
            raise ValueError(f"expected a keep-alive of 1 to 65535 seconds, got {self.keepalive_s}")
        if self.inbound_messages < 1 or self.outbound_messages < 1:
            raise ValueError("expected room for at least one message each way")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What the broker said it can do, in its CONNACK; for MQTT 3.1.1, what that version has.

    Attributes:
        mqtt5: Whether the connection speaks MQTT 5.
        maximum_packet_bytes: Of a packet that it takes; None where it sets no limit.
        receive_maximum: Messages that it takes unacknowledged at a time.
        maximum_qos: 0, 1 or 2.
        retain: Whether it keeps retained messages.
        shared_subscriptions: Whether it knows ``$share``.
        wildcards: Whether it knows ``+`` and ``#``.
        topic_alias_maximum: Aliases that it takes; the link uses none.
        keepalive_s: The one that counts.
        session_expiry_s: How long it really keeps the session; None where it does not say.
        session_present: Whether it had a session for this client.
    """

    mqtt5: bool
    maximum_packet_bytes: int | None = None
    # MQTT 3.1.1 has no flow control; this is what brokers commonly allow.
    receive_maximum: int = 20
    maximum_qos: int = 2
    retain: bool = True
    shared_subscriptions: bool = False
    wildcards: bool = True
    topic_alias_maximum: int = 0
    keepalive_s: int = 60
    session_expiry_s: int | None = None
    session_present: bool = False

    def check(self, message: Outgoing) -> None:
        """Refuse what the broker would answer by ending the connection.

        Raises:
            LinkError: The message is too large, or to be retained where nothing is.
        """
        size = packet_bytes(message)
        if self.maximum_packet_bytes is not None and size > self.maximum_packet_bytes:
            raise LinkError(
                f"a message of {size} bytes to {message.topic} is too large for the broker, which takes "
                f"{self.maximum_packet_bytes}: raise its max_packet_size to at least 135168"
            )
        if message.retain and not self.retain:
            raise LinkError(
                "the broker keeps no retained messages, which edgec's protocol needs: turn retain on"
            )


def packet_bytes(message: Outgoing) -> int:
    """Return the most bytes that a PUBLISH packet of the message has."""
    texts = [message.topic, message.content_type or "", message.response_topic or ""]
    texts += [text for pair in message.user.items() for text in pair]
    # Headers, lengths and identifiers of properties take a few bytes each.
    return (
        len(message.payload) + len(message.correlation or b"") + sum(len(t.encode()) + 5 for t in texts) + 24
    )


@dataclass(frozen=True, kw_only=True)
class Inbound:
    """A message that came in.

    Attributes:
        topic: Where it was published.
        payload: Bytes from outside: parse them with `Message.from_bytes`.
        qos: 0, 1 or 2.
        retained: Whether the broker sent it because it keeps it.
        duplicate: Whether the broker has sent it before, as far as it knows.
        content_type: By MQTT 5; None otherwise.
        response_topic: By MQTT 5.
        correlation: By MQTT 5.
        user: By MQTT 5.
        at: When it came, in seconds since 1970; it may wait to be taken.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retained: bool = False
    duplicate: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    user: Mapping[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.time, compare=False)
    _ack: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def ack(self) -> None:
        """Tell the broker that the message is dealt with; otherwise it comes again on the next connection."""
        self._ack()


class Publication:
    """A message on its way to the broker.

    Attributes:
        error: Why it will not get there; None while it may, and once it did.
        unheard: Whether the broker took it though nobody was subscribed (MQTT 5): as good as lost, where it
            was not retained.
    """

    def __init__(self) -> None:
        """Make one that is on its way."""
        self.error: LinkError | None = None
        self.unheard = False
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it was acknowledged, or failed."""
        return self._done.is_set()

    def wait(self, timeout_s: float) -> None:
        """Wait until the broker has acknowledged it; with QoS 0, until it was written.

        Raises:
            LinkError: The connection was lost before, the broker refused it, or the time is over. It may have
                been delivered all the same.
        """
        if not self._done.wait(timeout_s):
            raise LinkError(f"the broker did not acknowledge within {timeout_s:g} s: send the message again")
        if self.error is not None:
            raise LinkError(str(self.error)) from self.error

    def settle(self, error: LinkError | None = None, *, unheard: bool = False) -> None:
        """Let those who wait go on; only the first time counts. Called by the link."""
        if not self._done.is_set():
            self.error, self.unheard = error, unheard
            self._done.set()


@dataclass(frozen=True, kw_only=True)
class LinkStatus:
    """How a link is doing.

    Attributes:
        connected: Whether messages can be published now.
        capabilities: Of the broker; None where there is no connection.
        connections: Connections and attempts so far.
        last_heard_s: Seconds since the broker was last heard; None where it never was.
        error: What ended the last connection or attempt; None where nothing did.
        dropped: Messages of QoS 0 that came in and found no room.
        taken_over: Times the broker ended a connection since another client came with the same id.
        revived: Times that the thread of the link had died or hung, and was replaced.
    """

    connected: bool
    capabilities: Capabilities | None
    connections: int
    last_heard_s: float | None
    error: LinkError | None
    dropped: int
    taken_over: int
    revived: int
