"""Changing keys: new roots that both old and new key holders sign, and what is signed anew with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgec.errors import TrustError
from edgec.trust._director import DirectorRepository
from edgec.trust._image import ImageRepository
from edgec.trust._keys import PublicKey
from edgec.trust._metadata import PREFIX
from edgec.trust._repository import RootRoles, SignedRepository

# Which roles of the metadata a key of edgec's role signs.
SIGNS = {
    ("image", "root"): ("root",),
    ("image", "targets"): ("targets",),
    ("image", "online"): ("snapshot", "timestamp"),
    ("director", "root"): ("root",),
    ("director", "director"): ("targets", "snapshot", "timestamp"),
}


def rotate(
    image: ImageRepository,
    director: DirectorRepository,
    *,
    retire: Sequence[PublicKey] = (),
    add: Sequence[PublicKey] = (),
    thresholds: Mapping[str, int] | None = None,
) -> list[str]:
    """Stage what it takes to replace keys; with nothing to replace, roots that expire later.

    The new root is signed by the old threshold of root keys and by the new one. What retired keys had
    signed is staged to be signed by the new ones. `release` of both repositories puts it in force.

    Args:
        image: The image repository.
        director: The director on the same directory.
        retire: Keys that must not be believed any more.
        add: Keys that are believed from now on; they must be in the key ring of both repositories.
        thresholds: How many keys must sign, by edgec's role: ``{"root": 2}``; as it was if not named.

    Returns:
        What was staged: ``image/root``, ``image/targets`` ...

    Raises:
        TrustError: A role would have fewer keys than must sign; nothing was staged.
    """
    roles = {key.role for key in (*retire, *add)} | set(thresholds or {})
    repositories: tuple[SignedRepository, ...] = (image, director)
    affected = [r for r in repositories if not roles or any((r.kind, role) in SIGNS for role in roles)]
    plans = [(r, _planned(r, retire, add, thresholds or {})) for r in affected]
    for repository, plan in plans:
        repository.stage_root(plan)
    staged = [f"{repository.kind}/root" for repository in affected]
    if "targets" in roles:
        staged += _sign_catalogue_anew(image, {key.keyid for key in retire}, [key.key for key in add])
    return staged


def _planned(
    repository: SignedRepository,
    retire: Sequence[PublicKey],
    add: Sequence[PublicKey],
    thresholds: Mapping[str, int],
) -> RootRoles:
    root, retired = repository.root, {key.keyid for key in retire}
    planned: dict[str, tuple[Sequence[Any], int]] = {}
    for (kind, key_role), metadata_roles in SIGNS.items():
        if kind != repository.kind:
            continue
        for role in metadata_roles:
            keys = [root.keys[i] for i in root.roles[role].keyids if i not in retired]
            keys += [key.key for key in add if key.role == key_role]
            threshold = thresholds.get(key_role, root.roles[role].threshold)
            if len(keys) < threshold:
                raise TrustError(
                    f"{repository.kind}: {len(keys)} keys would be left for {role}, {threshold} must sign; "
                    "name a new key (--new), or lower the threshold",
                    "threshold",
                )
            planned[role] = (keys, threshold)
    return planned


def _sign_catalogue_anew(image: ImageRepository, retired: set[str], added: Sequence[Any]) -> list[str]:
    """Stage the catalogue, and the roles of models that retired keys could sign, for the new keys."""
    root = image.delegators("targets")[-1]
    keys = [root.keys[keyid] for keyid in root.roles["targets"].keyids]
    catalogue = image.role("targets")
    changed = [
        role.name.removeprefix(PREFIX)
        for role in catalogue.signed.delegations.roles.values()
        if retired & set(role.keyids)
    ]
    image.delegate_again(changed, keys, root.roles["targets"].threshold)
    return ["image/targets", *(f"image/{PREFIX}{model}" for model in changed)]
