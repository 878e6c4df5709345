"""What each side believes of the other, whatever order messages come in, and however often.

Pure values: `apply` returns the next one. Where a message is lost, the next one of its kind makes it good.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from edgec.protocol._control import Desired, Presence, Reported

# A boot that is followed by another is silent; what it sent arrives within this time, or it is alive.
LATE_S = 600.0
_MOST_BOOTS = 64


@dataclass(frozen=True, kw_only=True)
class Boot:
    """One start of an agent, as far as a fleet has heard of it.

    Attributes:
        epoch: Its boot epoch.
        id: Its boot id.
        first_heard: When the fleet first heard of it, seconds by the fleet's clock.
        presence: The newest (connection, is over) that it told; (-1, False) for none.
        seq: Of its newest report; -1 for none.
    """

    epoch: int
    id: str
    first_heard: float
    presence: tuple[int, bool] = (-1, False)
    seq: int = -1


@dataclass(frozen=True, kw_only=True)
class DeviceView:
    """What a fleet believes of a device.

    Attributes:
        presence: Of the greatest (boot epoch, connection); a will of an older one changes nothing.
        reported: The newest, of the greatest (boot epoch, seq).
        boots: The newest starts of its agent, oldest first.
        alive_after: Ids of boots that spoke on long after they were followed by another; the first 64.
        put_out: Ids of boots that a person has said are not the device, oldest first: nothing that they say
            counts. The newest 64.
    """

    presence: Presence | None = None
    reported: Reported | None = None
    boots: tuple[Boot, ...] = ()
    alive_after: frozenset[str] = frozenset()
    put_out: tuple[str, ...] = ()

    def apply(self, message: Presence | Reported, now: float) -> DeviceView:
        """Return the view after a message.

        Args:
            message: From the device, or its will; maybe late, maybe again.
            now: Seconds by the fleet's clock.
        """
        if message.boot_id in self.put_out:
            return self
        known = next(
            (b for b in self.boots if (b.epoch, b.id) == (message.boot_epoch, message.boot_id)), None
        )
        boot = known or Boot(epoch=message.boot_epoch, id=message.boot_id, first_heard=now)
        if isinstance(message, Presence):
            said: Boot = replace(boot, presence=max(boot.presence, (message.connection, not message.online)))
        else:
            said = replace(boot, seq=max(boot.seq, message.seq))
        if said == known:
            return self
        alive = self.alive_after
        if len(alive) < _MOST_BOOTS and self._late(boot.epoch, message, now):
            alive |= {boot.id}
        boots = sorted(({*self.boots} - {known}) | {said}, key=lambda b: (b.epoch, b.id))
        view = replace(self, boots=tuple(boots[-_MOST_BOOTS:]), alive_after=alive)
        if isinstance(message, Presence):
            newer = self.presence is None or _presence_key(message) > _presence_key(self.presence)
            return replace(view, presence=message) if newer else view
        newer = self.reported is None or _report_key(message) > _report_key(self.reported)
        return replace(view, reported=message) if newer else view

    @property
    def online(self) -> bool:
        """Whether the device is connected, as far as is known."""
        if self.presence is None or (self.reported and self.reported.boot_epoch > self.presence.boot_epoch):
            # Its birth is on the way, or lost.
            return self.reported is not None
        return self.presence.online

    @property
    def clones(self) -> tuple[str, ...]:
        """Boot ids that cannot all be one device: several of one epoch, or one that lives beside a newer.

        The newest boot is among them: it is the device, or it is one of the others.

        Two machines have the same identity, or one was restored from a backup or lost its state. Neither may
        be given anything until a person has picked one: see `settled`.
        """
        ids = set(self.alive_after)
        for older, newer in pairwise(self.boots):
            if older.epoch == newer.epoch:
                ids |= {older.id, newer.id}
        if ids and self.boots:
            ids.add(self.boots[-1].id)
        return tuple(sorted(ids))

    @property
    def fenced(self) -> bool:
        """Whether the identity is used by more than one."""
        return bool(self.clones)

    def settled(self, boot_id: str) -> DeviceView:
        """Return the view after a person said which of the `clones` is the device.

        The others are put out: what they say does not count until their machine starts anew, which is another
        boot, and may be a clone again. One that was put out can be picked later: then what is believed of the
        one before is forgotten, and that one is put out.

        Raises:
            ValueError: No boot of this id is known, or it is none of the clones.
        """
        there = self.clones or tuple(b.id for b in self.boots)
        if boot_id not in {*there, *self.put_out}:
            known = ", ".join((*there, *self.put_out)) or "none"
            raise ValueError(f"{boot_id!r} is none of the boots to pick from; there are {known}")
        others = there if self.clones or boot_id in self.put_out else ()
        out = dict.fromkeys(i for i in (*self.put_out, *others) if i != boot_id)
        return DeviceView(
            presence=self.presence if self.presence and self.presence.boot_id == boot_id else None,
            reported=self.reported if self.reported and self.reported.boot_id == boot_id else None,
            boots=tuple(b for b in self.boots if b.id == boot_id),
            put_out=tuple(out)[-_MOST_BOOTS:],
        )

    def acknowledges(self, epoch: int) -> bool:
        """Whether the device has taken notice of the `Desired` of this epoch, or a later one."""
        return self.reported is not None and self.reported.epoch >= epoch

    def ahead_of(self, epoch: int) -> bool:
        """Whether the device has seen an epoch that this fleet, at `epoch`, has not issued.

        Then another server gives it orders, or this one was restored from a backup.
        """
        return self.reported is not None and self.reported.epoch > epoch

    def next_epoch(self, epoch: int) -> int:
        """Return the epoch of the next `Desired` of a fleet at `epoch`: greater than any the device knows."""
        return max(epoch, self.reported.epoch if self.reported else 0) + 1

    def _late(self, epoch: int, message: Presence | Reported, now: float) -> bool:
        # A will is sent by the broker, whenever it notices.
        if isinstance(message, Presence) and not message.online:
            return False
        return any(b.epoch > epoch and now - b.first_heard > LATE_S for b in self.boots)


def _presence_key(presence: Presence) -> tuple[int, int, bool, str]:
    # A connection ends once: of the same one, offline is the newer.
    return (presence.boot_epoch, presence.connection, not presence.online, presence.boot_id)


def _report_key(reported: Reported) -> tuple[int, int, str]:
    return (reported.boot_epoch, reported.seq, reported.boot_id)


@dataclass(frozen=True, kw_only=True)
class DesiredView:
    """What a device believes its fleet wants: the greatest epoch it has seen, kept over restarts.

    Attributes:
        desired: The newest, of the greatest (epoch, revision); None before the first.
        conflict: Whether its epoch was issued twice with different models: two servers believe they are the
            one. Nothing of it may be done; a greater epoch settles it.
        regressed_to: The epoch that the broker retains, where it is below the one held: a server was restored
            from a backup. The device stays where it is, and its report tells the server.
    """

    desired: Desired | None = None
    conflict: bool = False
    regressed_to: int | None = None

    @property
    def epoch(self) -> int:
        """The greatest epoch seen; 0 before the first."""
        return self.desired.epoch if self.desired else 0

    def apply(self, desired: Desired, *, retained: bool = False) -> DesiredView:
        """Return the view after a message.

        Args:
            desired: From the broker; maybe late, maybe again.
            retained: Whether the broker sent it because it keeps it, at a subscription.
        """
        held = self.desired
        if held is None or desired.epoch > held.epoch:
            return DesiredView(desired=desired)
        if desired.epoch < held.epoch:
            return replace(self, regressed_to=desired.epoch) if retained else self
        conflict = self.conflict or desired.models != held.models
        view = replace(self, conflict=conflict, regressed_to=None if retained else self.regressed_to)
        return replace(view, desired=desired) if _desired_key(desired) > _desired_key(held) else view


def _desired_key(desired: Desired) -> tuple[int, int, bytes]:
    # The bytes decide between two servers' revisions of the same number, everywhere alike.
    return (desired.epoch, desired.revision, desired.to_bytes())
