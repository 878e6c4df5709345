"""One connection to a broker, from CONNECT to its end, all in one thread.

What paho-mqtt 2 does to a robust client, measured, and what is done about it here:

1. ``on_publish`` runs while a lock is held that ``publish`` takes too, so that a callback that takes a lock
   of its own can hang both threads for ever. Here one thread makes every call to paho, and callbacks only
   note what happened.
2. ``clean_start`` is by default true for the first connection, which wipes the session after each restart of
   the process, and a session of MQTT 5 expires at once by default: both are given.
3. ``publish`` without a connection says that it failed, and sends the message later all the same. Here
   nothing is given to paho before the broker has answered, and each connection has a client of its own.
4. paho's queue is in memory only. It is never used: what is to survive is in the agent's outbox, and what was
   under way when a connection ends fails.
5. paho connects again after 1, 2, 4 ... seconds, all clients at the same moments. The link does that itself.
6. An exception in a callback ends paho's thread, and ``is_connected()`` stays true. The thread is the link's,
   exceptions end the connection, and the link watches its thread.
7. A message over the broker's maximum packet size makes it end the connection, and paho sends it again on
   each new one; paho heeds neither that maximum nor the receive maximum. Both are kept here.
8. Callbacks come in two versions, and messages are acknowledged before they are dealt with, unless asked for.
9. Topic aliases with QoS 1 can make an endless loop of reconnections: none are used.
10. Nagle's algorithm stays on, so that a small message waits until the one before is acknowledged, which may
    take 40 ms each: it is turned off here, and by the brokers that are started here.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgec.errors import LinkError
from edgec.errors.extras import needs_extra
from edgec.protocol._failures import (
    NO_MATCHING_SUBSCRIBERS,
    TAKEN_OVER,
    UNSUPPORTED_VERSION,
    lost,
    refused,
    unreachable,
)
from edgec.protocol._message import MAX_MESSAGE_BYTES
from edgec.protocol._settings import Announcement, Capabilities, Inbound, LinkOptions, Outgoing, Publication

# What paho raises, besides its own MQTTException, on packets of a strange broker; none of it is documented.
_STRANGE = (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError, RuntimeError, OSError)
_PACKET_BYTES = MAX_MESSAGE_BYTES + 4096


class VersionRefusedError(LinkError):
    """The broker does not speak MQTT 5, or gives no answer to it."""


class Connection:
    """One connection. Every method is called by the link's thread.

    Attributes:
        capabilities: Of the broker, once it has answered.
        answered: Whether the broker has answered in the version that it was spoken to in.
        ready: Whether subscriptions are granted, so that messages can be published.
        heard_at: When the broker was last heard, by the monotonic clock.
        taken_over: Whether the broker ended it since another client came with the same id.
    """

    def __init__(
        self,
        options: LinkOptions,
        *,
        mqtt5: bool,
        announcement: Announcement | None,
        deliver: Callable[[Inbound, int | None], None],
    ) -> None:
        """Prepare a connection; nothing happens before `open`.

        Args:
            options: Where to, and as whom.
            mqtt5: Whether to speak MQTT 5.
            announcement: Birth and will.
            deliver: Takes what comes in, and the number to acknowledge it by.
        """
        self._options, self._mqtt5, self._announcement, self._deliver = options, mqtt5, announcement, deliver
        self._where = f"{options.host}:{options.port}"
        self._mqtt = import_paho()
        self.capabilities: Capabilities | None = None
        self.ready = self.answered = False
        self.heard_at: float | None = None
        self.taken_over = False
        self._under_way: dict[int, tuple[Publication, float]] = {}
        self._failure: LinkError | None = None
        self._subscribing: int | None = None
        self._said: deque[str] = deque(maxlen=4)
        self._tls: _Tls | None = None
        self._client = self._make_client()

    def open(self) -> None:
        """Connect and send CONNECT; the answer comes with `turn`.

        Raises:
            LinkError: The broker cannot be reached, or TLS fails.
        """
        options, client = self._options, self._client
        extra: dict[str, Any] = {}
        if self._mqtt5:
            properties = self._properties("CONNECT")
            properties.SessionExpiryInterval = options.session_expiry_s
            properties.ReceiveMaximum = min(options.inbound_messages, 65_535)
            properties.MaximumPacketSize = _PACKET_BYTES
            extra = {"clean_start": False, "properties": properties}
        try:
            client.connect(options.host, options.port, options.keepalive_s, **extra)
        # A certificate for another name is a ValueError too.
        except (OSError, ValueError) as e:
            if self._tls is not None:
                self._tls.close()
            raise unreachable(self._where, e, options.connect_timeout_s) from e
        sock = client.socket()
        if sock is not None:
            with suppress(OSError):  # it is over already: `turn` will tell
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opened_at = time.monotonic()

    def turn(self, wake: int, timeout_s: float) -> None:
        """Wait for the socket or for `wake`, a file descriptor; then read and write what is there.

        Raises:
            LinkError: The connection is over, with its cause.
        """
        client = self._client
        sock = client.socket()
        if sock is None:
            raise self._over()
        # select() cannot watch descriptors from 1024 on, which a process with many agents has.
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        poller.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        # TLS may have read more than it gave out: no event on the socket will tell.
        waiting = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        events = dict(poller.poll(0 if waiting else max(timeout_s, 0.0) * 1000))
        happened = events.get(sock.fileno(), 0)
        try:
            if waiting or happened & ~select.POLLOUT:
                self.heard_at = time.monotonic()
                client.loop_read()
            if happened & select.POLLOUT:
                client.loop_write()
            # Keep-alive: sends a ping, and gives up when the last was not answered.
            client.loop_misc()
        except (self._mqtt.MQTTException, *_STRANGE) as e:
            raise LinkError(f"{self._where} sends what is no MQTT ({e}): is it a broker?") from e
        if self._failure is not None or client.socket() is None:
            raise self._over()
        self._watch()

    def publish(self, message: Outgoing, publication: Publication) -> None:
        """Hand a message to the broker; `publication` tells how that went."""
        assert self.capabilities is not None
        try:
            self.capabilities.check(message)
        except LinkError as e:
            publication.settle(e)
            return
        qos = min(message.qos, self.capabilities.maximum_qos, 1)
        info = self._client.publish(
            message.topic, message.payload, qos, message.retain, self._message_properties(message)
        )
        if qos == 0 and info.is_published():
            publication.settle()
        else:
            self._under_way[info.mid] = (publication, time.monotonic())

    @property
    def room(self) -> bool:
        """Whether the broker takes another message unacknowledged."""
        limit = self.capabilities.receive_maximum if self.capabilities else 0
        return len(self._under_way) < limit

    @property
    def under_way(self) -> int:
        """Messages that the broker has not acknowledged."""
        return len(self._under_way)

    def ack(self, number: int) -> None:
        """Acknowledge what came in."""
        self._client.ack(number, 1)

    def close(self, error: LinkError, *, farewell: bool = False) -> None:
        """End it. What is under way fails with `error`; with `farewell` the broker does not send the will."""
        if farewell and self._client.socket() is not None:
            self._client.disconnect()
        # Without a DISCONNECT the broker takes the connection for lost, and sends the will.
        sock = self._client.socket()
        if sock is not None:
            sock.close()
        self.abandon(error)

    def abandon(self, error: LinkError) -> None:
        """Let what is under way fail. The one method that is safe from another thread, if this one hangs."""
        for publication, _ in list(self._under_way.values()):
            publication.settle(error)
        self._under_way.clear()

    def _make_client(self) -> Any:
        mqtt, options = self._mqtt, self._options
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=options.client_id.replace(".", "="),
            protocol=mqtt.MQTTv5 if self._mqtt5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
            **({} if self._mqtt5 else {"clean_session": options.session_expiry_s == 0}),
        )
        # Its own limit is 0, none: `room` keeps the broker's.
        client.max_inflight_messages_set(0)
        client.connect_timeout = options.connect_timeout_s
        client.enable_logger(_listener(self._said))
        if options.tls is not None:
            self._tls = _Tls(options.tls)
            client.tls_set_context(self._tls)
        if options.username is not None or options.password is not None:
            client.username_pw_set(options.username or "", options.password)
        if self._announcement is not None:
            will = self._announcement.will
            properties = self._message_properties(will, "WILLMESSAGE")
            if properties is not None and options.will_delay_s:
                properties.WillDelayInterval = options.will_delay_s
            client.will_set(will.topic, will.payload, min(will.qos, 1), will.retain, properties)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _watch(self) -> None:
        """Give up on a broker that answers pings at most."""
        now = time.monotonic()
        if not self.ready:
            if now - self._opened_at > self._options.connect_timeout_s:
                self.heard_at = None
                raise self._silent()
            return
        oldest = next(iter(self._under_way.values()), None)
        if oldest is not None and now - oldest[1] > self._options.ack_timeout_s:
            raise LinkError(
                f"{self._where} has not acknowledged a message for {self._options.ack_timeout_s:g} s: "
                "a new connection is made"
            )

    def _silent(self) -> LinkError:
        text = f"{self._where} does not answer as a broker does: check address and port"
        return VersionRefusedError(text) if self._mqtt5 and self.capabilities is None else LinkError(text)

    def _over(self) -> LinkError:
        if self._failure is not None:
            return self._failure
        error = lost(self._where, " ".join(self._said), connected=self.capabilities is not None)
        # Some brokers of 3.1.1 answer MQTT 5 by hanging up.
        return VersionRefusedError(str(error)) if self._mqtt5 and self.capabilities is None else error

    def _on_connect(self, client: Any, _: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            error = refused("the connection", reason.value, str(reason))
            wrong_version = self._mqtt5 and reason.value == UNSUPPORTED_VERSION
            self._failure = VersionRefusedError(str(error)) if wrong_version else error
            self.answered = not wrong_version
            return
        self.answered = True
        self.capabilities = self._read_capabilities(flags, properties)
        filters = [(self._filter(s.filter, s.share), min(s.qos, 1)) for s in self._options.subscriptions]
        if filters:
            self._subscribing = client.subscribe(filters)[1]
        else:
            self._begin()

    def _on_subscribe(self, _: Any, __: Any, mid: int, reasons: Any, ___: Any) -> None:
        if mid != self._subscribing:
            return
        # Mosquitto grants what its access list forbids, and delivers nothing then.
        failed = [reason for reason in reasons if reason.is_failure]
        if failed:
            self._failure = refused("a subscription", failed[0].value, str(failed[0]))
        else:
            self._begin()

    def _begin(self) -> None:
        if self._announcement is not None and self.capabilities is not None:
            try:
                self.capabilities.check(self._announcement.birth)
            except LinkError as e:
                self._failure = e
                return
            self.publish(self._announcement.birth, Publication())
        self.ready = True

    def _on_publish(self, _: Any, __: Any, mid: int, reason: Any, ___: Any) -> None:
        publication, _at = self._under_way.pop(mid, (None, 0.0))
        if publication is None:
            return
        if reason.is_failure:
            publication.settle(refused("a message", reason.value, str(reason)))
        else:
            publication.settle(unheard=reason.value == NO_MATCHING_SUBSCRIBERS)

    def _on_message(self, _: Any, __: Any, message: Any) -> None:
        try:
            topic = str(message.topic)
        except UnicodeDecodeError:
            # Forbidden by MQTT: nothing that edgec subscribes to has such a topic.
            return
        properties = message.properties
        inbound = Inbound(
            topic=topic,
            payload=bytes(message.payload),
            qos=message.qos,
            retained=bool(message.retain),
            duplicate=bool(message.dup),
            content_type=getattr(properties, "ContentType", None),
            response_topic=getattr(properties, "ResponseTopic", None),
            correlation=getattr(properties, "CorrelationData", None),
            user=dict(getattr(properties, "UserProperty", ())),
        )
        self._deliver(inbound, message.mid if message.qos else None)

    def _on_disconnect(self, _: Any, __: Any, flags: Any, reason: Any, ___: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self.taken_over = reason.value == TAKEN_OVER
            self._failure = refused("to go on", reason.value, str(reason))

    def _read_capabilities(self, flags: Any, properties: Any) -> Capabilities:
        session = bool(flags.session_present)
        if not self._mqtt5:
            return Capabilities(mqtt5=False, keepalive_s=self._options.keepalive_s, session_present=session)

        # What is absent has the value that MQTT 5 gives it.
        def offered(name: str, default: Any) -> Any:
            return getattr(properties, name, default)

        return Capabilities(
            mqtt5=True,
            maximum_packet_bytes=offered("MaximumPacketSize", None),
            receive_maximum=offered("ReceiveMaximum", 65_535),
            maximum_qos=offered("MaximumQoS", 2),
            retain=bool(offered("RetainAvailable", 1)),
            shared_subscriptions=bool(offered("SharedSubscriptionAvailable", 1)),
            wildcards=bool(offered("WildcardSubscriptionAvailable", 1)),
            topic_alias_maximum=offered("TopicAliasMaximum", 0),
            keepalive_s=offered("ServerKeepAlive", self._options.keepalive_s),
            session_expiry_s=offered("SessionExpiryInterval", self._options.session_expiry_s),
            session_present=session,
        )

    def _filter(self, topics: str, share: str | None) -> str:
        able = self.capabilities is not None and self.capabilities.shared_subscriptions
        return f"$share/{share}/{topics}" if share is not None and able else topics

    def _message_properties(self, message: Outgoing, packet: str = "PUBLISH") -> Any:
        if not self._mqtt5:
            return None
        properties = self._properties(packet)
        if message.expiry_s is not None:
            properties.MessageExpiryInterval = message.expiry_s
        if message.content_type is not None:
            properties.ContentType = message.content_type
        if message.response_topic is not None:
            properties.ResponseTopic = message.response_topic
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        if message.user:
            properties.UserProperty = list(message.user.items())
        return properties

    def _properties(self, packet: str) -> Any:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        return Properties(getattr(PacketTypes, packet))


class _Tls:
    """TLS settings that remember their socket: paho leaves it open when the handshake fails."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.check_hostname = context.check_hostname
        self._socket: ssl.SSLSocket | None = None

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        self._socket = self._context.wrap_socket(sock, **options)
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def import_paho() -> Any:
    """Return paho's module.

    Raises:
        MissingExtraError: The extra ``agent`` is not installed.
    """
    with needs_extra("the link to a broker", "agent"):
        from paho.mqtt import client
    return client


def _listener(said: deque[str]) -> logging.Logger:
    """Return a logger that notes errors: paho tells the cause of a lost connection nowhere else."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage().removeprefix("failed to receive on socket: "))

    # Not one of the tree, which applications configure.
    logger = logging.Logger("paho", logging.ERROR)
    logger.addHandler(Listener())
    return logger
