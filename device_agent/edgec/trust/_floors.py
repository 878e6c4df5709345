"""What may not sink: versions of metadata, and the epoch of an assignment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from edgec.errors import TrustError
from edgec.trust._assignment import Assignment
from edgec.trust._metadata import Extra, key_digest
from edgec.trust._refresh import Refreshed
from edgec.trust._state import Floor, Floors, merged


def raised(floors: Floors, fresh: Mapping[str, Refreshed], learned: Callable[[int], int]) -> Floors:
    """Return the floors after verified metadata was seen; refuse what is below those before.

    Args:
        floors: Those before.
        fresh: Repositories by kind, verified.
        learned: What is believed of the time, in seconds since 1970, that metadata says it was signed at.

    Raises:
        TrustError: A role is older than before (``reason`` ``rollback``).
    """
    versions, issued = dict(floors.versions), dict(floors.issued)
    for kind, repository in fresh.items():
        for role, version, keys in _versions(repository):
            name = f"{kind}/{role}"
            floor = versions.get(name, Floor())
            if floor.below(version, keys):
                raise TrustError(
                    f"{kind} repository: {role} {version} is older than {floor.value}, seen here before; "
                    "older metadata than before is refused",
                    "rollback",
                )
            versions[name] = floor.raised(version, keys)
        keys = key_digest(repository.root.roles["timestamp"].keyids)
        issued[kind] = issued.get(kind, Floor()).raised(learned(Extra(repository.timestamp).issued), keys)
    return merged(floors, versions=versions, issued=issued)


def with_epoch(floors: Floors, director: Refreshed, assignment: Assignment) -> Floors:
    """Return the floors after an assignment was seen; refuse one from before, and another of the same epoch.

    Args:
        floors: Those before.
        director: That made it, verified.
        assignment: What it says.

    Raises:
        TrustError: It is one of those (``reason`` ``epoch``).
    """
    keys = key_digest(director.root.roles["targets"].keyids)
    content = [(t.model, t.path, t.length, t.sha256) for t in assignment.targets]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    if floors.epoch.below(assignment.epoch, keys):
        raise TrustError(
            f"the assignment has epoch {assignment.epoch}, and {floors.epoch.value} was seen already",
            "epoch",
        )
    same = floors.epoch == Floor(keys=keys, value=assignment.epoch)
    if same and floors.assignment != digest:
        raise TrustError(
            f"the assignment of epoch {assignment.epoch} changed without a new epoch; it is refused",
            "epoch",
        )
    return merged(floors, epoch=floors.epoch.raised(assignment.epoch, keys), assignment=digest)


def _versions(repository: Refreshed) -> list[tuple[str, int, str]]:
    """Return name, version and digest of the keys of each role that may not sink."""
    roles = repository.root.roles
    snapshot = roles["snapshot"].keyids
    return [
        ("root", repository.root.version, ""),
        ("timestamp", repository.timestamp.version, key_digest(roles["timestamp"].keyids)),
        ("snapshot", repository.snapshot.version, key_digest(snapshot)),
        # A snapshot says which version of the targets there is, so both sign for it.
        ("targets", repository.targets.version, key_digest(roles["targets"].keyids, snapshot)),
    ]
