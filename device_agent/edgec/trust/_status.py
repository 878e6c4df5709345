"""What a repository is made of: expiry, thresholds, who signed, and what somebody must do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgec.trust._director import DirectorRepository
from edgec.trust._image import ImageRepository
from edgec.trust._metadata import DAY_S, PREFIX, parse, seconds
from edgec.trust._repository import SignedRepository


@dataclass(frozen=True, kw_only=True)
class RoleStatus:
    """A role in force, or waiting for signatures.

    Attributes:
        repository: ``image`` or ``director``.
        role: ``root``, ``targets``, ``model.kws``, ``snapshot``, ``timestamp``.
        version: Of its metadata.
        expires: In seconds since 1970.
        needed: How many keys must sign.
        signed: Names of keys that did.
        missing: Names of keys that could have.
        in_force: Or waiting, in ``staged/``.
    """

    repository: str
    role: str
    version: int
    expires: float
    needed: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    in_force: bool


@dataclass(frozen=True, kw_only=True)
class Due:
    """Something to do.

    Attributes:
        at: Until when, in seconds since 1970; 0 where it waits only for somebody to do it.
        what: For people.
        overdue: Whether devices refuse what is new until it is done.
    """

    at: float
    what: str
    overdue: bool


@dataclass(frozen=True, kw_only=True)
class RepositoryStatus:
    """Both repositories of a directory.

    Attributes:
        roles: In force and waiting.
        due: What must be done, the most urgent first.
        models: How many artifacts of each model are in force.
        devices: Epoch, and when the first of its metadata expires, by id.
    """

    roles: tuple[RoleStatus, ...]
    due: tuple[Due, ...]
    models: dict[str, int]
    devices: dict[str, tuple[int, float]]


def role_statuses(image: ImageRepository, director: DirectorRepository) -> tuple[RoleStatus, ...]:
    """Return the roles in force of both repositories; of devices there is nothing in it.

    Raises:
        TrustError: Metadata is missing or malformed.
    """
    return (*_in_force(image), *_in_force(director))


def repository_status(
    image: ImageRepository, director: DirectorRepository, *, soon_days: float = 14
) -> RepositoryStatus:
    """Look at all that is in force or waits.

    Args:
        image: The image repository.
        director: The director on the same directory.
        soon_days: How long before it expires that something is due.

    Raises:
        TrustError: Metadata is missing or malformed.
    """
    now = image.clock()
    roles = [*role_statuses(image, director), *_waiting(image), *_waiting(director)]
    devices = {}
    for device in director.devices():
        epoch, _ = director.assigned(device)
        devices[device] = (epoch, director.expires(device))
    due = [_sign(role) for role in roles if not role.in_force]
    due += [_renew(role, now) for role in roles if role.in_force and role.expires < now + soon_days * DAY_S]
    late = sorted(expires for _, expires in devices.values() if expires < now + soon_days * DAY_S)
    if late:
        what = f"{len(late)} devices' assignments expire: run  edgec repo renew"
        due.append(Due(at=late[0], what=what, overdue=late[0] <= now))
    counts: dict[str, int] = dict.fromkeys(image.models(), 0)
    for target in image.targets().values():
        counts[target.model] += 1
    return RepositoryStatus(
        roles=tuple(roles),
        due=tuple(sorted(due, key=lambda d: (d.at, d.what))),
        models=counts,
        devices=devices,
    )


def _in_force(repository: SignedRepository) -> list[RoleStatus]:
    files = repository.root_files()
    if not files:
        return []
    found = [("root", parse(files[len(files)], "root"))]
    if isinstance(repository, ImageRepository):
        found += [
            (role, repository.role(role)) for role in ("targets", *map(PREFIX.__add__, repository.models()))
        ]
        found.append(("snapshot", repository.snapshot()))
        data = repository.read("image/timestamp.json")
        found.append(("timestamp", parse(data, "timestamp") if data else None))
    return [_status(repository, role, metadata, True) for role, metadata in found if metadata is not None]


def _waiting(repository: SignedRepository) -> list[RoleStatus]:
    return [_status(repository, role, metadata, False) for role, metadata in repository.staged().items()]


def _status(repository: SignedRepository, role: str, metadata: Any, in_force: bool) -> RoleStatus:
    if in_force and role == "root":
        # By the keys that it names; that the root before it was satisfied is proven by its being in force.
        own = metadata.signed.get_verification_result("root", metadata.signed_bytes, metadata.signatures)
        signed, missing = ([repository.keys.name_of(i) for i in part] for part in (own.signed, own.unsigned))
        needed = own.threshold
    else:
        found = repository.signatures(role, metadata)
        signed, missing, needed = list(found.signed), list(found.missing), found.needed
    return RoleStatus(
        repository=repository.kind,
        role=role,
        version=metadata.signed.version,
        expires=seconds(metadata.signed.expires),
        needed=needed,
        signed=tuple(sorted(signed)),
        missing=tuple(sorted(missing)),
        in_force=in_force,
    )


def _sign(role: RoleStatus) -> Due:
    if len(role.signed) >= role.needed:
        what = (
            f"{role.repository}/{role.role} {role.version} is signed and not in force: run  edgec repo renew"
        )
    else:
        what = (
            f"{role.repository}/{role.role} {role.version} has {len(role.signed)} of {role.needed} "
            f"signatures: {' or '.join(role.missing)} must sign  (edgec keys sign)"
        )
    return Due(at=0, what=what, overdue=False)


def _renew(role: RoleStatus, now: float) -> Due:
    how = {"root": "edgec keys rotate", "snapshot": "edgec repo renew", "timestamp": "edgec repo renew"}
    command = how.get(role.role, "edgec repo renew --targets")
    return Due(
        at=role.expires,
        what=f"{role.repository}/{role.role} expires: run  {command}",
        overdue=role.expires <= now,
    )
