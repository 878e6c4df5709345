"""Who is first: places of devices in a ring that every rollout salts anew."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

PLACES = 10_000


@lru_cache(maxsize=2**17)
def place(rollout: str, device: str) -> int:
    """Return the place of a device in the ring of a rollout, from 0 to 9999.

    The same for ever, so that who joins late has a place, too, and nothing needs to be stored.
    """
    digest = blake2b(f"{rollout}:{device}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % PLACES


def cutoff(rollout: str, devices: Iterable[str], percent: float, least: int) -> int:
    """Return below which place devices are in a stage.

    In fleets of `least` devices or more, a stage has at least so many, since with no failure among n devices
    the rate of failures may still be 3 / n. In smaller fleets, it has what its percentage says,
    one at the least.

    Args:
        rollout: Salt.
        devices: Ids of all that are eligible.
        percent: Of the stage.
        least: Devices of a stage.
    """
    places = sorted(place(rollout, device) for device in devices)
    if not places or percent >= 100:
        return PLACES
    share = math.ceil(percent * PLACES / 100)
    wanted = least if len(places) >= least else max(math.ceil(len(places) * percent / 100), 1)
    reached = places[wanted - 1] + 1
    return max(share, reached) if len(places) >= least else reached
