"""MQTT in and out: messages of a topic as samples, results as messages. Extra ``agent``.

One thread per link runs the network and connects again by itself, after random times that grow. Callbacks of
the client hold its locks, so here they do nothing but append to a queue and set a flag.
"""

from __future__ import annotations

import json
import ssl
import time
from collections import deque
from collections.abc import Callable
from random import random
from threading import Condition, Event, Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from edgec.errors import DataError, OutputError, SourceError
from edgec.errors.extras import needs_extra
from edgec.runtime.streams._results import StreamResult
from edgec.runtime.streams._source import Captured

SCHEMES = ("mqtt", "mqtts")
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_KEEPALIVE_S = 30
_FIRST_S, _MOST_S = 0.5, 30.0
_OPEN_S = 10.0
_WAIT_S = 0.1


class Address(NamedTuple):
    """Where a broker is, and a topic there."""

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None
    topic: str

    @property
    def shown(self) -> str:
        """It without user and password."""
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}/{self.topic}"


def read_address(url: str) -> Address:
    """Read ``mqtt://user:password@host:1883/a/topic``; a topic may be percent-encoded: ``cam%2B/%23``.

    Raises:
        ValueError: It is none, or has no topic.
    """
    parts = urlsplit(url)
    topic = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in SCHEMES or not parts.hostname or not topic or parts.query or parts.fragment:
        raise ValueError("expected mqtt://host/topic or mqtts://host:port/topic, with # as %23 and ? as %3F")
    return Address(
        host=parts.hostname,
        port=parts.port or _PORTS[parts.scheme],
        tls=parts.scheme == "mqtts",
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        topic=topic,
    )


def _trusting() -> ssl.SSLContext:
    """Return the system's authorities; a server is what its alternative names say, not its common name."""
    context = ssl.create_default_context()
    context.hostname_checks_common_name = False
    return context


class _Link:
    """A connection to a broker that comes back by itself."""

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        on_connected: Callable[[Any], None],
        on_message: Any = None,
    ) -> None:
        with needs_extra("MQTT", "agent"):
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        self._address = address
        self._stop = Event()
        self._changed = Condition()
        self._connected = False
        self._refused = ""
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"edgec-{uuid4().hex[:12]}", reconnect_on_failure=False
        )
        self.client.suppress_exceptions = True  # one in a callback would end the network thread unseen
        if address.user is not None:
            self.client.username_pw_set(address.user, address.password)
        if address.tls or tls is not None:
            self.client.tls_set_context(tls or _trusting())
        self._on_connected = on_connected
        self.client.on_connect = self._connect
        self.client.on_disconnect = self._disconnect
        if on_message is not None:
            self.client.on_message = on_message
        self._thread = Thread(target=self._run, name="edgec-mqtt", daemon=True)

    def open(self) -> str:
        """Connect; return why not, or nothing."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._refused, _OPEN_S)
            return "" if self._connected else self._refused or f"no answer within {_OPEN_S:g} s"

    @property
    def connected(self) -> bool:
        return self._connected

    def close(self) -> None:
        self._stop.set()
        self.client.disconnect()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            try:
                self.client.connect(self._address.host, self._address.port, _KEEPALIVE_S)
                self.client.loop_forever()
            except OSError as e:  # refused, unreachable, no such host; ssl.SSLError is one too
                self._note(False, e.strerror or str(e))
            if self._connected:
                attempt = 0
            self._note(False)
            self._stop.wait(random() * min(_MOST_S, _FIRST_S * 2.0 ** min(attempt, 10)))
            attempt += 1

    def _connect(self, client: Any, _: object, __: object, reason: Any, ___: object) -> None:
        if reason.is_failure:
            self._note(False, str(reason))
            return
        self._on_connected(client)
        self._note(True)

    def _disconnect(self, *_: object) -> None:
        self._note(False)

    def _note(self, connected: bool, refused: str = "") -> None:
        with self._changed:
            self._connected = connected
            self._refused = refused or self._refused
            self._changed.notify_all()


class MqttSource:
    """Messages of a topic as samples.

    Attributes:
        name: For messages.
        live: True.
        lost: Messages that came while `queue` waited, or that were too large.
    """

    def __init__(
        self,
        url: str,
        decode: Callable[[bytes], Any] | None = None,
        *,
        qos: int = 0,
        queue: int = 64,
        max_bytes: int = 8 * 2**20,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a source; nothing is connected yet.

        Args:
            url: ``mqtt://user:password@host:1883/topic``; ``mqtts://`` for TLS; the topic may have wildcards.
            decode: Makes a sample of a message; it may raise `DataError`. None for the bytes themselves, as
                models of images take them.
            qos: 0 or 1. With 1, messages may come twice.
            queue: Messages that may wait; then the oldest gives way.
            max_bytes: Largest message.
            tls: For certificates of your own; None for those that the system trusts, with ``mqtts://``.
            clock: Monotonic, in seconds; that of the stream.

        Raises:
            ValueError: It is no such address, or `qos` is neither.
        """
        if qos not in (0, 1):
            raise ValueError(f"expected a qos of 0 or 1, got {qos}")
        self._address = read_address(url)
        self._decode = decode
        self._qos = qos
        self._max_bytes = max_bytes
        self._tls = tls
        self._clock = clock
        self._messages: deque[tuple[str, bytes, float]] = deque(maxlen=queue)
        self._came = Event()
        self._link: _Link | None = None
        self.name = self._address.shown
        self.live = True
        self.lost = 0

    def open(self) -> None:
        """Connect and subscribe.

        Raises:
            MissingExtraError: paho-mqtt is not installed.
            SourceError: The broker cannot be reached, or refuses.
        """
        self._link = _Link(
            self._address,
            self._tls,
            lambda client: client.subscribe(self._address.topic, self._qos),
            self._arrived,
        )
        problem = self._link.open()
        if problem:
            raise SourceError(f"{self.name}: {problem}", transient=True)

    def read(self, stop: Event) -> Captured | None:
        """Wait for the next message.

        Raises:
            DataError: The message cannot be decoded.
            SourceError: The connection is lost.
        """
        while not stop.is_set():
            self._came.clear()
            if not self._messages:
                if self._link is None or not self._link.connected:
                    raise SourceError(f"{self.name}: the connection is lost", transient=True)
                self._came.wait(_WAIT_S)
                continue
            topic, payload, captured_s = self._messages.popleft()
            sample = payload if self._decode is None else self._decode(payload)
            return Captured(sample=sample, name=topic, captured_s=captured_s)
        return None

    def close(self) -> None:
        """Disconnect."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _arrived(self, _: object, __: object, message: Any) -> None:
        """Called in the thread of the network."""
        if len(message.payload) > self._max_bytes or len(self._messages) == self._messages.maxlen:
            self.lost += 1
        if len(message.payload) <= self._max_bytes:
            self._messages.append((message.topic, message.payload, self._clock()))
            self._came.set()


class MqttSink:
    """Results as messages, each a JSON object; see `StreamResult.to_dict`.

    While the broker is away results are dropped, not kept: they would be old when it is back.

    Attributes:
        sent: Messages that were handed to the network.
        dropped: Results for which there was no connection.
    """

    def __init__(
        self, url: str, *, qos: int = 0, retain: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect.

        Args:
            url: ``mqtt://host/topic``; see `MqttSource`.
            qos: 0 or 1.
            retain: Whether the broker keeps the last one for those who come later.
            tls: For certificates of your own.

        Raises:
            ValueError: It is no such address, `qos` is neither, or the topic has wildcards.
            MissingExtraError: paho-mqtt is not installed.
            OutputError: The broker cannot be reached, or refuses.
        """
        address = read_address(url)
        if qos not in (0, 1) or set("+#") & set(address.topic):
            raise ValueError("expected a qos of 0 or 1, and a topic without + and #")
        self._topic, self._qos, self._retain = address.topic, qos, retain
        self.sent = self.dropped = 0
        self._last: Any = None
        self._link = _Link(address, tls, lambda client: None)
        problem = self._link.open()
        if problem:
            self._link.close()
            raise OutputError(f"{address.shown}: {problem}")

    def __call__(self, result: StreamResult) -> None:
        """Send one."""
        if not self._link.connected:
            self.dropped += 1
            return
        data = json.dumps(result.to_dict(), allow_nan=False).encode()
        self._last = self._link.client.publish(self._topic, data, self._qos, self._retain)
        self.sent += 1

    def close(self) -> None:
        """Disconnect, after the last message is out, or 2 seconds."""
        if self._last is not None and self._link.connected and self._last.rc == 0:
            try:
                self._last.wait_for_publish(2)
            except RuntimeError:  # the connection went away meanwhile
                self.dropped += 1
        self._link.close()


def decode_json(dtypes: dict[str, str]) -> Callable[[bytes], Any]:
    """Return what makes a sample of a JSON message: an array, or an object of arrays by name of the input.

    Args:
        dtypes: Of each input of the model, by name.
    """
    import numpy as np

    def array(value: Any, name: str) -> Any:
        try:
            return np.asarray(value, dtypes[name])
        except (ValueError, TypeError, OverflowError) as e:
            raise DataError(f"the message: expected an array of {dtypes[name]} for {name!r}: {e}") from e

    def decode(payload: bytes) -> Any:
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError) as e:
            raise DataError(f"the message is no JSON: {e}") from e
        if not isinstance(document, dict):
            return array(document, next(iter(dtypes)))
        unknown = [str(name)[:60] for name in document if name not in dtypes]
        if unknown:
            raise DataError(f"the message has unknown inputs {unknown}, the model takes {', '.join(dtypes)}")
        return {name: array(value, name) for name, value in document.items()}

    return decode
