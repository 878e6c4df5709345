"""One object that a server starts and closes: ingest, orders, commands and files over a broker."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgec.fleet.mqtt._commands import Commands
from edgec.fleet.mqtt._counters import Counters
from edgec.fleet.mqtt._directing import Directing
from edgec.fleet.mqtt._ingest import Ingest
from edgec.fleet.mqtt._settings import MqttSettings
from edgec.fleet.service import Fleet
from edgec.protocol import (
    ChunkServer,
    CommandReply,
    LinkOptions,
    LinkStatus,
    MqttLink,
    Outgoing,
    Publication,
    Subscription,
    Topics,
)

# Of what a device sends, these may go to any of several servers; of the rest, each server needs all.
_SHARED = ("tele", "event")
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 5.0
_OUTBOUND = 4096
_CLOSE_S = 10.0


class MqttSide:
    """The fleet's side of a broker.

        options = LinkOptions(host="broker", client_id="fleet", tls=tls)
        with Fleet(folder) as fleet, MqttSide(fleet, options) as side:
            reply = side.send_command("cam-1", "status", timeout_s=10)

    Four threads: one that keeps what devices say, one that looks at rollouts and tells devices, and two that
    talk to the broker; and two more where files are served. Every one may be stopped at any moment.

    Attributes:
        counters: What was done since the start.
        settings: That it runs with.
    """

    def __init__(
        self, fleet: Fleet, link_options: LinkOptions, *, settings: MqttSettings | None = None
    ) -> None:
        """Prepare; `start` starts.

        Args:
            fleet: Open for as long.
            link_options: Where to, and as whom: an identity that may read and write all topics of the tenant.
                Subscriptions and sizes of queues are replaced, and waits before a new connection shortened.
            settings: Of batches and orders.

        Raises:
            MissingExtraError: The extra ``agent``, which ``fleet`` brings, is not installed.
        """
        self._fleet = fleet
        self.settings = settings or MqttSettings()
        self.counters = Counters()
        self._topics = Topics(fleet.tenant)
        self._link = MqttLink(self._options(link_options, files=False))
        self._files_link = MqttLink(self._options(link_options, files=True)) if self.settings.files else None
        self._directing = Directing(fleet, self._link, self._topics, self.counters, self.settings)
        self._commands = Commands(fleet, self._link, self._topics, self.counters)
        self._ingest = Ingest(
            self._link, self._topics, fleet.store, self.counters, self.settings,
            clock=fleet.clock, heard=lambda: self._directing.poke(urgent=False), reply=self._commands.take,
        )  # fmt: skip
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._forget = fleet.on_wake(self._directing.poke)

    def start(self) -> None:
        """Start; returns at once. Where the broker is away, it is tried until it is there."""
        self._link.start()
        self._thread("ingest", self._ingest.run)
        self._thread("directing", self._directing.run)
        if self._files_link is not None:
            self._files_link.start()
            self._thread("files", self._serve_files)

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until the broker has granted all subscriptions.

        Raises:
            LinkError: The time is over; the message is that of the last failure.
        """
        self._link.wait_connected(timeout_s)
        if self._files_link is not None:
            self._files_link.wait_connected(timeout_s)

    def close(self) -> None:
        """Stop: what is in hand is ended, what is not is left to the broker and the books."""
        self._forget()
        self._stopping.set()
        self._commands.close()
        self._directing.stop()
        self._ingest.stop()
        if self._files_link is not None:
            self._files_link.nudge()
        for thread in self._threads:
            thread.join(_CLOSE_S)
        self._link.close()
        if self._files_link is not None:
            self._files_link.close()

    def __enter__(self) -> MqttSide:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> LinkStatus:
        """How the connection to the broker is doing."""
        return self._link.status

    def problems(self) -> list[str]:
        """Return what does not work now, for people and health checks; nothing where all does."""
        found = [
            f"the thread {t.name} has died: restart the server" for t in self._threads if not t.is_alive()
        ]
        status = self._link.status
        if not status.connected:
            found.append(f"there is no connection to the broker: {status.error or 'not yet'}")
        return found

    def wake(self) -> None:
        """Look at rollouts and orders at once."""
        self._directing.poke()

    def send_command(
        self,
        device: str,
        name: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        actor: str = "fleet",
    ) -> CommandReply:
        """Send a signed command to a device and wait for its last reply; from any thread.

        Args:
            device: Its id.
            name: Of the command: ``logs``.
            args: As JSON can hold them.
            timeout_s: How long to wait.
            actor: Who sends it, for the audit log.

        Returns:
            The last reply; one of state ``accepted`` where the device has begun and is not done in time.

        Raises:
            FleetError: There is no such device (``reason`` ``not_found``), it was revoked (``revoked``), is
                fenced (``refused``), or did not answer in time (``timeout``).
            TrustError: The command cannot be signed, or its name is none.
        """
        return self._commands.send(device, name, args, timeout_s=timeout_s, actor=actor)

    def publish(self, message: Outgoing) -> Publication:
        """Publish something else, as the fleet.

        Raises:
            LinkError: There is no connection.
        """
        return self._link.publish(message)

    def _options(self, given: LinkOptions, *, files: bool) -> LinkOptions:
        filters = [
            Subscription(filter=f, share=self.settings.share if f.endswith(_SHARED) else None)
            for f in self._topics.for_fleet()
        ]
        requests = [s for s in filters if s in ChunkServer.subscriptions(self._topics)]
        chosen = requests if files else [s for s in filters if s not in requests]
        return replace(
            given,
            client_id=f"{given.client_id}-files" if files else given.client_id,
            subscriptions=tuple(chosen),
            inbound_messages=64 if files else max(2 * self.settings.batch_messages, 1024),
            outbound_messages=_OUTBOUND,
            # Requests for pieces of files are asked again; nothing of them is worth being kept.
            session_expiry_s=0 if files else given.session_expiry_s,
            first_retry_s=min(given.first_retry_s, _FIRST_RETRY_S),
            last_retry_s=min(given.last_retry_s, _LAST_RETRY_S),
        )

    def _serve_files(self) -> None:
        assert self._files_link is not None
        server = ChunkServer(self._files_link, self._topics, self._fleet.image.directory)
        while not self._stopping.is_set():
            inbound = self._files_link.get(timeout_s=1.0)
            if inbound is not None:
                server.take(inbound)
                inbound.ack()

    def _thread(self, name: str, target: Any) -> None:
        thread = threading.Thread(target=target, name=f"fleet-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()
