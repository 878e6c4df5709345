"""Which hardware there is: targets of edgec's, and whatever artifacts were uploaded for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from sqlalchemy import Connection, select

from edgec.errors import FleetError
from edgec.fleet.store._schema import hardware


def check_hardware(
    connection: Connection, names: Sequence[str], targets: Collection[str], claimed: str | None
) -> None:
    """Refuse a mistyped name before a claim is used up for a device that no artifact would reach.

    Args:
        connection: Of the transaction in which the claim is used.
        names: That a device says it is.
        targets: Of edgec's; nothing is refused where there are none.
        claimed: That the claim is for: whoever made it knows better.

    Raises:
        FleetError: There is none of a name (``reason`` ``invalid``).
    """
    unknown = [name for name in names if name not in targets and name != claimed]
    if not unknown or not targets:
        return
    known = {*targets, *connection.execute(select(hardware.c.name).distinct()).scalars()}
    unknown = [name for name in unknown if name not in known]
    if unknown:
        near = dict.fromkeys(c for name in unknown for c in get_close_matches(name, sorted(known), 2))
        raise FleetError(
            f"there is no hardware {' or '.join(map(repr, unknown))}"
            + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ";")
            + " nothing was done, and the claim can still be used. For a target of your own, upload an"
            " artifact for it first, or make a claim for it:  edgec fleet claim --hardware TARGET",
            "invalid",
        )
