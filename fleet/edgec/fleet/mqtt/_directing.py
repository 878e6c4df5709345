"""What rollouts decide is signed and told; stopped at any moment, it goes on where the books say."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from edgec.errors import FleetError, LinkError, OutputError, ProtocolError, TrustError
from edgec.fleet.mqtt._counters import Counters
from edgec.fleet.mqtt._settings import MqttSettings
from edgec.fleet.mqtt._waiting import wait_for_all
from edgec.fleet.rollouts import Rollout
from edgec.fleet.service import Fleet
from edgec.fleet.store import DueOrder, ToldOrder
from edgec.protocol import MqttLink, Outgoing, Publication, Topics, desired_of
from edgec.trust import Issued, SignedWish, Terms, Wish, issue

_log = logging.getLogger(__name__)
_Made: TypeAlias = "SignedWish | TrustError"
_ACTIVE, _LATE = ("running", "undoing"), ("finished",)
# A broker that has acknowledged nothing for so long has what was sent, or not: it is sent again.
_QUIET_S = 20.0
# However long it takes to tell all, rollouts are looked at again after so long.
_LOOK_S = 60.0
# Between turns that devices' reports ask for there is so many times what the last one took, up to the most:
# others work, too.
_LEAST_PAUSE_S, _MOST_PAUSE_S, _REST = 0.05, 2.0, 9
_RETRY_S = 5.0


class Directing:
    """Looks at rollouts and tells devices. `run` is a thread's."""

    def __init__(
        self, fleet: Fleet, link: MqttLink, topics: Topics, counters: Counters, settings: MqttSettings
    ) -> None:
        """Direct a fleet over a link."""
        self._fleet, self._link, self._topics = fleet, link, topics
        self._counters, self._settings = counters, settings
        self._random = random.Random()
        self._changed = threading.Condition()
        self._poked = self._urgent = self._stopping = False
        self._connections = 0
        self._late_at = 0.0
        self._looked_at = time.monotonic()
        self._late_poked = True

    def poke(self, *, urgent: bool = True) -> None:
        """Let a turn begin soon; an urgent one at once, and rollouts that are over are looked at, too."""
        with self._changed:
            self._poked = True
            self._urgent |= urgent
            self._late_poked |= urgent
            self._changed.notify_all()

    def stop(self) -> None:
        """Let `run` return after the step in hand."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        """Take turns until `stop`."""
        while not self._stopping:
            began = time.monotonic()
            done = self.turn()
            spent = time.monotonic() - began
            self._counters.count("turns")
            self._counters.spend("turn_seconds", spent)
            self._pause(min(_REST * spent, _MOST_PAUSE_S) if done else _MOST_PAUSE_S)

    def turn(self) -> bool:
        """Let rollouts decide, and tell devices what they have not been told; return whether it worked."""
        return self._work(self._decide, self._tell)

    def _work(self, *steps: Callable[[], None]) -> bool:
        """Take steps, one after the other; return whether all of them worked."""
        try:
            for step in steps:
                step()
        except Exception:  # noqa: BLE001
            # Whatever it is, database, disk or a row: a thread that ends directs nobody until a restart.
            # Nothing is lost: the books say what is still to be done.
            self._counters.count("orders", "interrupted")
            _log.exception("devices cannot be directed now, and will be")
            return False
        return True

    def _pause(self, rest_s: float) -> None:
        """Wait until the next turn is due: at once where it is urgent, else after a rest."""
        began = time.monotonic()
        with self._changed:
            while not self._stopping:
                passed = time.monotonic() - began
                due = 0.0 if self._urgent else rest_s if self._poked else self._settings.turn_s
                left = max(due, _LEAST_PAUSE_S) - passed
                if left <= 0:
                    break
                self._changed.wait(left)
            self._poked = self._urgent = False

    def _decide(self) -> None:
        now = self._fleet.clock()
        for rollout in self._due_rollouts(now):
            if self._stopping:
                return
            try:
                self._fleet.store.rollouts.tick(rollout.plan.id, now)
            except FleetError as e:
                _log.error("rollout %s cannot go on: %s", rollout.plan.id, e)
            except Exception:  # noqa: BLE001
                # One rollout's trouble, whatever it is, must not stop the others, nor what is to be told.
                _log.exception("rollout %s cannot go on", rollout.plan.id)

        self._looked_at = time.monotonic()

    def _look_again(self) -> None:
        """Let rollouts decide while others are told: what a slow broker waits for may have to be undone."""
        if time.monotonic() - self._looked_at >= _LOOK_S:
            # Where that fails, it is not tried each second; and what was sent is still to be written down.
            self._looked_at = time.monotonic()
            self._work(self._decide)

    def _due_rollouts(self, now: float) -> list[Rollout]:
        """Return rollouts to look at, the oldest first: what a newer one says of a device counts."""
        store = self._fleet.store.rollouts
        due = store.find(states=_ACTIVE, limit=1000)
        late, self._late_poked = self._late_poked or now >= self._late_at, False
        if late:
            self._late_at = now + self._settings.late_s
            newest: dict[str, Rollout] = {}
            for rollout in store.find(states=_LATE, limit=1000):
                newest.setdefault(rollout.plan.model, rollout)
            due = [*due, *newest.values()]
        # A rollout that is over comes before one of the same model that is under way.
        return sorted(due, key=lambda r: r.state in _ACTIVE)

    def _tell(self) -> None:
        status = self._link.status
        if not status.connected:
            return
        if status.connections != self._connections:
            # What the broker kept may be gone with it.
            self._fleet.store.orders.again()
            self._connections = status.connections
        now = self._fleet.clock()
        renew_s = self._settings.renew_days * 86400
        while not self._stopping and self._link.status.connected:
            limit = self._settings.order_messages
            due = self._fleet.store.orders.due(now, renew_s=renew_s, limit=limit)
            if due:
                self._work_off(due, now)
                self._look_again()
            if len(due) < limit:
                return

    def _work_off(self, due: Sequence[DueOrder], now: float) -> None:
        """Sign orders, send all, keep their files, wait for all, and write down what became of each.

        They are sent when all are signed: who is told begins at once to ask and to tell, and the rest of
        this batch would have to wait for a server that answers. Files are for who asks, and can wait.
        """
        sent: list[tuple[DueOrder, SignedWish, Publication]] = []
        done: list[ToldOrder] = []
        unkept: Mapping[str, OutputError] | None = None
        try:
            issued, signed = self._signed(due)
            for order, made in signed:
                publication = self._send(order, made) if isinstance(made, SignedWish) else made
                if isinstance(made, SignedWish) and isinstance(publication, Publication):
                    sent.append((order, made, publication))
                else:
                    done.append(self._failed(order, made, publication, now))
            unkept = issued.keep()
        finally:
            # Where something ends it half-way, what has left is not sent again every turn.
            messages = [p for _, _, p in sent]
            wait_for_all(messages, _QUIET_S, stopping=lambda: self._stopping, meanwhile=self._look_again)
            ended = self._fleet.clock()
            done += [self._ended(*one, ended, unkept) for one in sent]
            if done:
                self._fleet.store.orders.told(done, now)

    def _signed(self, due: Sequence[DueOrder]) -> tuple[Issued, list[tuple[DueOrder, _Made]]]:
        """Return orders with what was signed, or why not; what the end leaves out is due next time."""
        wishes = [(order, _wish(order)) for order in due]
        reached = (wish for _, wish in wishes if isinstance(wish, Wish) and not self._stopping)
        issued = issue(self._fleet.director, reached)
        made = issued.made
        found = [(order, made.get(wish.device) if isinstance(wish, Wish) else wish) for order, wish in wishes]
        return issued, [(order, what) for order, what in found if what is not None]

    def _send(self, order: DueOrder, made: SignedWish) -> Publication | LinkError | ProtocolError:
        desired = desired_of(made.bundle, revision=order.revision, sources=self._settings.sources)
        try:
            message = Outgoing(
                topic=self._topics.desired(order.device),
                payload=desired.to_bytes(),
                retain=True,
                content_type="application/json",
            )
            return self._link.publish(message)
        except (LinkError, ProtocolError) as e:
            return e

    def _failed(self, order: DueOrder, made: _Made, error: object, now: float) -> ToldOrder:
        if isinstance(made, TrustError) or isinstance(error, ProtocolError):
            self._counters.count("orders", "impossible")
            _log.error("%s cannot be told epoch %d: %s", order.device, order.epoch, error)
            return ToldOrder(order=order, next_at=now + self._wait(order), problem=str(error))
        self._counters.count("orders", "unsent")
        return ToldOrder(order=order, version=made.version, expires_at=made.expires, next_at=now + _RETRY_S)

    def _ended(
        self,
        order: DueOrder,
        made: SignedWish,
        publication: Publication,
        now: float,
        unkept: Mapping[str, OutputError] | None,
    ) -> ToldOrder:
        """Return what became of one that was sent; its files may not be kept, or of none is known whether."""
        sent = publication.done and publication.error is None
        error = None if unkept is None else unkept.get(order.device)
        delivered = sent and unkept is not None and error is None
        self._counters.count("orders", "told" if delivered else "unsent")
        if error is not None:
            _log.error("epoch %d for %s is not kept, and told again: %s", order.epoch, order.device, error)
        return ToldOrder(
            order=order,
            version=made.version,
            expires_at=made.expires,
            delivered=delivered,
            next_at=now + (self._wait(order) if sent else _RETRY_S),
            problem="" if error is None else str(error),
        )

    def _wait(self, order: DueOrder) -> float:
        """Return how long a device is given to take notice, in seconds; longer each time, and random."""
        most = min(self._settings.first_wait_s * 2.0 ** min(order.tries, 30), self._settings.last_wait_s)
        return most * self._random.uniform(0.5, 1.0)


def _wish(order: DueOrder) -> Wish | TrustError:
    unknown = sorted(model for model, path in order.models.items() if path is None)
    if unknown:
        return TrustError(f"{', '.join(unknown)}: the artifact is in no release of this fleet", "not_found")
    return Wish(
        device=order.device,
        epoch=order.epoch,
        models={model: path for model, path in order.models.items() if path is not None},
        after=order.version,
        hardware=(order.hardware,),
        terms={model: Terms(retry=epoch) for model, epoch in order.retries.items()},
    )
