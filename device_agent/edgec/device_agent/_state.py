"""What an agent knows about the update of one model: a value, written to disk before anything is done.

Only `edgec.device_agent._update.step` makes new states out of old ones. Times that decide anything are
seconds of a monotonic clock and are set anew at every start, so that a wall clock at 1970 or 2100, or one
that jumps, changes no decision; wall-clock times are there for people.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgec.device_agent._plain import from_plain, to_plain
from edgec.errors import AgentError

STATE_VERSION = 2

# A phase is written before its work begins: in `switched`, the switch is decided and under way.
Phase = Literal[
    "idle",
    "notified",
    "deferred",
    "admitted",
    "downloading",
    "verified",
    "staged",
    "self_test",
    "shadow",
    "switched",
    "probation",
    "committed",
    "rolling_back",
    "failed",
    "removing",
    "cleaned",
]
Result = Literal[
    "committed",
    "unchanged",
    "removed",
    "refused",
    "failed",
    "rolled_back",
    "aborted",
    "superseded",
    "abort_accepted",
    "abort_refused",
    "prepared",
    "degraded",
    "recovered",
]
Slot = Literal["a", "b"]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A point in time, by both clocks.

    Attributes:
        mono_s: Seconds of a clock that only goes forward within one start of the agent.
        wall_s: Seconds since 1970 as far as the device knows; never decides anything here.
    """

    mono_s: float
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the fleet wants of one model.

    Attributes:
        epoch: Of the desired document that says so.
        digest: SHA-256 of the artifact in hex; empty where the model is to be removed.
        length: Of the artifact, in bytes.
        target: Its path in the image repository.
        retry: Epoch of the last order to try it although this device has found it bad; 0 for none. What was
            found before that epoch is forgiven.
        prepare: Fetch and verify it, and wait until it is wanted without this.
        shadow_s: How long it runs beside the active one before the switch; 0 for not at all.
        probation_s: How long it must hold after the switch.
        probation_calls: How many calls in probation prove it earlier; 0: only time does.
    """

    epoch: int
    digest: str = ""
    length: int = 0
    target: str = ""
    retry: int = 0
    prepare: bool = False
    shadow_s: float = 0.0
    probation_s: float = 600.0
    probation_calls: int = 0

    @property
    def removes(self) -> bool:
        """Whether no artifact of the model is wanted any more."""
        return not self.digest


@dataclass(frozen=True, kw_only=True)
class Installed:
    """An artifact that lies whole in a slot."""

    digest: str
    length: int
    slot: Slot
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A digest that this device found bad, and will not install again unasked.

    Attributes:
        epoch: In which it was found bad; only a later `Wanted.retry` lets it in again.
    """

    digest: str
    epoch: int
    reason: str
    at_s: float


@dataclass(frozen=True, kw_only=True)
class Tries:
    """How many updates to a digest have failed since one of them last succeeded.

    Attributes:
        epoch: Of the last of them.
    """

    digest: str
    count: int
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the fleet must learn; kept until it says that it has.

    Attributes:
        seq: Grows by one per report of this model.
        reason: For programs, a word; empty where all went well.
        detail: For people.
        at_s: Wall-clock time.
    """

    seq: int
    result: Result
    epoch: int
    digest: str
    reason: str
    detail: str
    at_s: float


@dataclass(frozen=True, kw_only=True)
class State:
    """The update of one model.

    Attributes:
        model: Its name.
        serial: Grows by one with every change; of two copies, the greater one is newer.
        phase: Where the update is.
        done: How many pieces of the phase's work are done.
        work: Number of the piece under way, 0 for none; results of other numbers are stale.
        work_seq: The last number given to a piece of work.
        epoch: Of the newest desired document taken note of.
        active: What serves.
        previous: What is whole in the other slot, and can serve again without a download.
        fallback: What a rollback from here leads to; None outside `switched` ... `rolling_back`, and for a
            first install.
        candidate: What is being installed.
        pending: What is wanted next, as soon as this is over.
        reuse: Whether the candidate already lies in the other slot.
        switched: Whether the candidate has taken over from `fallback`, and is now `active`.
        unsettled: Whether a rollback was given up, and is due again at the next opportunity.
        deadline_s: Monotonic time at which the phase has hung, or waited long enough.
        attempts: Passing failures of this update.
        retries: Failures of the piece of work under way, where it must succeed in the end.
        interruptions: How often the agent died in this phase.
        crashes: How often model, application or agent died in probation.
        calm_s: Monotonic time at which `crashes` is forgotten.
        verdict: How the last update ended, or the one will that is being rolled back or cleaned up after.
        reason: Why it is where it is, as a word: ``power``, ``digest``, ``timeout`` ...
        detail: The same for people.
        tries: Per digest, newest last.
        quarantine: Newest last.
        reports: Not yet acknowledged, oldest first.
        report_seq: Of the last report.
        reports_lost: Unacknowledged reports that made room for newer ones.
        since_s: Wall-clock time at which the phase was entered.
    """

    model: str
    serial: int = 0
    phase: Phase = "idle"
    done: int = 0
    work: int = 0
    work_seq: int = 0
    epoch: int = 0
    active: Installed | None = None
    previous: Installed | None = None
    fallback: Installed | None = None
    candidate: Wanted | None = None
    pending: Wanted | None = None
    reuse: bool = False
    switched: bool = False
    unsettled: bool = False
    deadline_s: float | None = None
    attempts: int = 0
    retries: int = 0
    interruptions: int = 0
    crashes: int = 0
    calm_s: float | None = None
    verdict: Result | None = None
    reason: str = ""
    detail: str = ""
    tries: tuple[Tries, ...] = field(default=())
    quarantine: tuple[Quarantined, ...] = field(default=())
    reports: tuple[Report, ...] = field(default=())
    report_seq: int = 0
    reports_lost: int = 0
    since_s: float = 0.0

    @property
    def candidate_slot(self) -> Slot:
        """Where the candidate is or goes: not where the active one is, until it has become that."""
        if self.switched and self.active is not None:
            return self.active.slot
        return "b" if self.active is not None and self.active.slot == "a" else "a"

    def quarantined(self, digest: str) -> Quarantined | None:
        """Return the entry of a digest that was found bad here."""
        return next((q for q in reversed(self.quarantine) if q.digest == digest), None)

    def changed(self, **changes: Any) -> State:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def to_plain(self) -> dict[str, Any]:
        """Return the state as JSON can hold it, with its version."""
        return {"v": STATE_VERSION, **to_plain(self)}

    @classmethod
    def from_plain(cls, value: object) -> State:
        """Read what `to_plain` made, of this version or an older one.

        Raises:
            AgentError: It is no state, or one of a newer agent.
        """
        if not isinstance(value, dict) or type(value.get("v")) is not int:
            raise AgentError("an update's state must be an object with its version in 'v'")
        plain = dict(value)
        version = plain.pop("v")
        if version > STATE_VERSION:
            raise AgentError(
                f"the update's state has version {version}, and this agent reads up to {STATE_VERSION}: "
                "run the newer agent again"
            )
        for migrate in _MIGRATIONS[version:]:
            plain = migrate(plain)
        return from_plain(cls, plain, "state")


def _from_0(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 0 had no numbers of work: the phase's work is done again from its first piece."""
    return {**plain, "done": 0, "work": 0, "work_seq": 0}


def _from_1(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had no number in an order to retry, only whether there was one, of that epoch."""
    wishes = {name: plain[name] for name in ("candidate", "pending") if isinstance(plain.get(name), dict)}
    numbered = {
        name: {**wish, "retry": wish.get("epoch", 0) if wish.get("retry") is True else 0}
        for name, wish in wishes.items()
    }
    return {**plain, **numbered}


# The entry at n turns a state of version n into one of version n + 1.
_MIGRATIONS = (_from_0, _from_1)
