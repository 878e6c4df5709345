"""Which hardware there is: targets of edgec's, and whatever artifacts were uploaded for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

from sqlalchemy import Connection, select

from edgec.errors import FleetError
from edgec.fleet.store._schema import devices, hardware
from edgec.targets import meanings


def check_hardware(
    connection: Connection,
    names: Sequence[str],
    targets: Collection[str],
    claimed: str | None,
    device: str | None,
) -> None:
    """Refuse a mistyped name before a claim is used up for a device that no artifact would reach.

    Args:
        connection: Of the transaction in which the claim is used.
        names: That a device says it is.
        targets: Of edgec's; nothing is refused where there are none.
        claimed: That the claim is for: whoever made it knows better.
        device: That the claim is for: what the fleet takes it for already, it may be again.

    Raises:
        FleetError: There is none of a name (``reason`` ``invalid``).
    """
    unknown = [name for name in names if name not in targets and name != claimed]
    if not unknown or not targets:
        return
    known = {*targets, *connection.execute(select(hardware.c.name).distinct()).scalars()}
    own = connection.execute(select(devices.c.hardware).where(devices.c.id == device)).scalar()
    unknown = [name for name in unknown if name not in known and name != own]
    if unknown:
        raise FleetError("; ".join(_problems(unknown, known)), "invalid")


def check_claimed(name: str | None) -> None:
    """Refuse a claim for what no device is: the name of a target is another one's.

    Raises:
        FleetError: It is an alias (``reason`` ``invalid``).
    """
    if name is not None and (meant := meanings(name)):
        raise FleetError(f"{name!r} is {' or '.join(meant)}: say that", "invalid")


def _problems(unknown: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """Say of each name what may be meant; a server does not know which CPU a device has."""
    for name in unknown:
        if meant := meanings(name):
            yield f"{name!r} is {' or '.join(meant)}: say that"
    others = [name for name in unknown if not meanings(name)]
    if others:
        near = dict.fromkeys(c for name in others for c in get_close_matches(name, sorted(known), 2))
        guess = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        yield f"there is no hardware {' or '.join(map(repr, others))}{guess}"
    yield "nothing was done, and the claim can still be used" + (
        ". For a target of your own, upload an artifact for it first, or make a claim for it:"
        "  edgec fleet claim --hardware TARGET"
        if others
        else ""
    )
