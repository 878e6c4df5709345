"""Telling devices what they are to have, and following what becomes of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from edgec.errors import LinkError, ProtocolError
from edgec.protocol._answers import Answer, Told
from edgec.protocol._control import Desired, DesiredModel, DeviceEvent, Metadata, Presence, Reported
from edgec.protocol._link import MqttLink
from edgec.protocol._settings import Inbound, Outgoing, Subscription
from edgec.protocol._topics import EVENT, REPORTED, STATE, Topics

_log = logging.getLogger(__name__)
# A broker that is slow, or away for a moment, is asked again.
_PUBLISH_S = 20.0
_KINDS: Mapping[str, type[Presence | Reported | DeviceEvent]] = {
    STATE: Presence,
    REPORTED: Reported,
    EVENT: DeviceEvent,
}
# Devices that are subscribed to one by one.
_FEW = 64


class SignedTarget(Protocol):
    """An artifact of a signed assignment, as `edgec.trust` has it."""

    @property
    def path(self) -> str:
        """In the image repository."""
        ...

    @property
    def length(self) -> int:
        """In bytes."""
        ...

    @property
    def sha256(self) -> str:
        """In hex."""
        ...


class SignedAssignment(Protocol):
    """What a director has signed for one device: ``edgec.trust.DeviceBundle``."""

    @property
    def epoch(self) -> int:
        """Greater each time something else is wanted."""
        ...

    @property
    def targets(self) -> Mapping[str, SignedTarget]:
        """By the name of the model."""
        ...

    def texts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the metadata of director and image repository by bare file name."""
        ...


def desired_of(
    assignment: SignedAssignment, *, revision: int = 0, sources: Sequence[str] = (), metadata: bool = True
) -> Desired:
    """Return the document that tells a device of its signed assignment.

    Args:
        assignment: ``edgec.trust.DirectorRepository.assign(...)`` or ``bundle(...)``.
        revision: Greater where the same epoch is told again with newer metadata or other sources.
        sources: Base URLs of the repository, the best first; none where files come over the broker.
        metadata: Whether all that proves it goes along, so that a device needs no other request to decide.
    """
    director, image = assignment.texts()
    return Desired(
        epoch=assignment.epoch,
        revision=revision,
        models={
            model: DesiredModel(path=target.path, length=target.length, sha256=target.sha256)
            for model, target in assignment.targets.items()
        },
        metadata=Metadata(director=director, image=image) if metadata else None,
        sources=tuple(sources),
    )


class Announcer:
    """Tells devices what they are to have over a link, and follows their answers.

    The link must subscribe to `Announcer.subscriptions`. What is told is retained: a device that is away
    hears of it when it comes back, whether anybody still waits for its answer or not.
    """

    def __init__(self, link: MqttLink, topics: Topics, *, clock: Callable[[], float] = time.time) -> None:
        """Announce over a link.

        Args:
            link: Started; of an identity that may write to devices and read what they say.
            topics: Of the tenant.
            clock: Seconds since 1970.
        """
        self._link, self._topics, self._clock = link, topics, clock
        self._told: dict[str, Told] = {}

    @staticmethod
    def subscriptions(topics: Topics, devices: Iterable[str]) -> tuple[Subscription, ...]:
        """Return what the link must subscribe to: what devices say of themselves and of their models.

        Of a few devices it is only theirs: a fleet's retained presence is as many messages as it has devices.
        """
        few = list(devices)
        if len(few) <= _FEW:
            filters = [f(device) for device in few for f in (topics.state, topics.reported, topics.event)]
        else:
            filters = [f for f in topics.for_fleet() if f.endswith(tuple(f"/up/{kind}" for kind in _KINDS))]
        return tuple(Subscription(filter=f) for f in filters)

    def announce(self, device: str, desired: Desired, models: Iterable[str] | None = None) -> None:
        """Tell a device what it is to have; returns when the broker keeps it.

        Args:
            device: Its id.
            desired: All that it is to have.
            models: Which of its models are followed; all if None.

        Raises:
            LinkError: The broker did not take it.
            ProtocolError: The document is too large for a message.
        """
        message = Outgoing(
            topic=self._topics.desired(device),
            payload=desired.to_bytes(),
            retain=True,
            content_type="application/json",
        )
        followed = tuple(sorted(desired.models if models is None else models))
        self._told[device] = Told(device=device, desired=desired, models=followed)
        deadline = time.monotonic() + _PUBLISH_S
        while not self._published(message, deadline):
            # A connection that was lost in the middle is made again; the same message twice is one.
            time.sleep(0.2)

    def _published(self, message: Outgoing, deadline: float) -> bool:
        left = max(0.1, deadline - time.monotonic())
        try:
            self._link.wait_connected(left)
            self._link.publish(message).wait(left)
        except LinkError:
            if time.monotonic() >= deadline:
                raise
            return False
        return True

    def take(self, inbound: Inbound) -> tuple[Answer, ...]:
        """Take a message in; return the answers that it changed. Malformed ones change nothing."""
        try:
            address = self._topics.parse(inbound.topic)
            if address is None or not address.up or address.kind not in _KINDS:
                return ()
            message = _KINDS[address.kind].from_bytes(inbound.payload)
        except ProtocolError as e:
            _log.warning("%s sends what is no message: %s", inbound.topic, e)
            return ()
        told = self._told.get(address.device)
        if told is None:
            return ()
        after = self._told[address.device] = told.after(message, self._clock())
        return tuple(a for a, b in zip(after.answers(), told.answers(), strict=True) if a != b)

    def wait(
        self,
        timeout_s: float,
        changed: Callable[[Answer], None] = lambda answer: None,
        other: Callable[[Inbound], object] | None = None,
    ) -> tuple[Answer, ...]:
        """Follow the answers until all are over, or for so long; return them as they are then.

        Args:
            timeout_s: At the longest.
            changed: Called with each answer that changed.
            other: Called with what the link receives besides: requests for chunks, say.
        """
        deadline = time.monotonic() + timeout_s
        while not all(answer.over for answer in self.answers()):
            inbound = self._link.get(timeout_s=max(0.0, deadline - time.monotonic()))
            if inbound is None:
                break
            for answer in self.take(inbound):
                changed(answer)
            if other is not None:
                other(inbound)
            inbound.ack()
        return self.answers()

    def answers(self) -> tuple[Answer, ...]:
        """Return how far each device is with each model that is followed."""
        return tuple(answer for told in self._told.values() for answer in told.answers())
