"""What happens to an update, and what is to be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgec.device_agent._state import Installed, Moment, Report, Slot, Wanted

WorkName = Literal[
    "admit",
    "reserve",
    "fetch",
    "verify",
    "stage",
    "confirm",
    "self_test",
    "shadow",
    "switch",
    "watch",
    "commit",
    "clean",
    "roll_back",
    "remove",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of what `step` takes.

    Attributes:
        now: When it happened.
    """

    now: Moment


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The agent has started; work that was under way is none any more.

    Attributes:
        clean: Whether it was stopped in order before.
    """

    clean: bool = False


@dataclass(frozen=True, kw_only=True)
class Desired(Event):
    """The fleet wants this; signatures, device and hardware were checked."""

    wanted: Wanted


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """A piece of work has succeeded."""

    work: int


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """A piece of work has failed.

    Attributes:
        passing: Whether it may succeed later as it is: a network that is down, a disk that is full.
    """

    work: int
    reason: str
    detail: str
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class Postponed(Event):
    """Now is not the time: no power, metered link, outside the window. Does not count as a failure."""

    work: int
    reason: str
    detail: str
    retry_s: float = 900.0


@dataclass(frozen=True, kw_only=True)
class Crashed(Event):
    """The application, or the process that runs the model, has died."""

    reason: str = "crashed"
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Abort(Event):
    """An authorised order to stop.

    Attributes:
        epoch: Of the update to stop; None for whichever is under way.
    """

    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Acknowledged(Event):
    """The fleet has reports of this model up to this one, for good."""

    seq: int


@dataclass(frozen=True, kw_only=True)
class Linked(Event):
    """The fleet can be reached again: what it does not know yet is reported once more."""


@dataclass(frozen=True, kw_only=True)
class Tick(Event):
    """Time has passed."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Effect: do this piece of work, and answer with `Done`, `Failed` or `Postponed` of its number.

    Attributes:
        number: Which one this is.
        name: What is to be done.
        model: For which model.
        wanted: What is being installed.
        slot: Where it goes.
        reuse: Whether it lies there already.
        active: What serves now.
        fallback: Where a rollback leads; None for nothing at all.
        keep: Digests that must not be touched.
    """

    number: int
    name: WorkName
    model: str
    wanted: Wanted | None
    slot: Slot
    reuse: bool = False
    active: Installed | None = None
    fallback: Installed | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """Effect: stop this piece of work; its result is not wanted any more."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Tell:
    """Effect: send this report; the same one may be sent again until it is acknowledged."""

    report: Report


Effect: TypeAlias = Work | Cancel | Tell
