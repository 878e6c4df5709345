"""What edgec adds to The Update Framework's metadata: signed fields, and how metadata is made and read.

Every role carries an object ``x-edgec``, signed with the rest: ``repository`` (``image`` or
``director``: both roots are signed by the same people, and one must not pass for the other),
``issued`` (seconds since 1970, from which devices learn the time), and in the director's metadata
``device`` and ``epoch``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from edgec.artifact._fields import Fields, matching, natural, one_of
from edgec.errors import ManifestError, TrustError
from edgec.trust._tuf import DeserializationError, Metadata, MetaFile, exceptions

FIELD = "x-edgec"
IMAGE, DIRECTOR = "image", "director"
# Of the names of roles, so that no model can be called like one of the four of every repository.
PREFIX = "model."
DAY_S = 86400
# Ids of devices and groups, and names of models: they are folders, topics and parts of URLs.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_YEAR_9999 = 253402300799
# RFC 8259 parsers elsewhere keep integers up to here apart.
MAX_INTEGER = 2**53 - 1

name = matching(NAME_PATTERN, "1 to 64 letters, digits, '_', '.', '-', a letter or digit first")


def checked_name(value: str, what: str) -> str:
    """Return `value` if it can be a file name and a topic.

    Raises:
        TrustError: It cannot (``reason`` ``name``).
    """
    try:
        return name(value, what)
    except ManifestError as e:
        raise TrustError(str(e), "name") from e


def instant(seconds: float) -> datetime:
    """Return a time in UTC, whole seconds; what no calendar holds becomes its first or last day."""
    clamped = min(max(seconds, 0), _YEAR_9999) if seconds == seconds else 0
    return datetime.fromtimestamp(int(clamped), timezone.utc)


def expiry(now_s: float, days: float) -> datetime:
    """Return when metadata that is made now expires."""
    return instant(now_s) + timedelta(days=days)


def seconds(moment: datetime) -> float:
    """Return seconds since 1970."""
    return moment.timestamp()


def field(repository: str, issued_s: float, **more: Any) -> dict[str, Any]:
    """Return the unrecognized fields of a signed role: edgec's own."""
    return {FIELD: {"repository": repository, "issued": int(issued_s), **more}}


class Extra:
    """Edgec's own fields of a signed role, checked.

    Attributes:
        repository: ``image`` or ``director``.
        issued: When it was made, in seconds since 1970.
        device: In the director's metadata of a device: for which one; else "".
        epoch: In the director's targets: which assignment; else 0.
    """

    def __init__(self, signed: Any) -> None:
        """Read them.

        Raises:
            TrustError: They are missing or malformed (``reason`` ``malformed``).
        """
        where = f"{signed.type} metadata, {FIELD}"
        try:
            fields = Fields(signed.unrecognized_fields.get(FIELD), where)
            self.repository = fields.need("repository", one_of((IMAGE, DIRECTOR)))
            self.issued = fields.need("issued", natural)
            self.device = fields.may("device", name, "")
            self.epoch = fields.may("epoch", natural, 0)
        except ManifestError as e:
            raise TrustError(f"{e}; it was not made by edgec", "malformed") from e


def parse(data: bytes, where: str) -> Any:
    """Read metadata without believing it.

    Raises:
        TrustError: It is none (``reason`` ``malformed``).
    """
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as e:
        raise TrustError(f"{where} is no metadata: {e}", "malformed") from e


def meta_file(version: int, data: bytes) -> Any:
    """Return the entry by which one role pins another: version, length and digest."""
    return MetaFile.from_data(version, data, ["sha256"])


def key_digest(*keyids: Iterable[str]) -> str:
    """Return a digest of sets of keys: it changes when one of them does."""
    text = "|".join(",".join(sorted(ids)) for ids in keyids)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def verified_root_chain(bootstrap: bytes, later: Mapping[int, bytes], repository: str) -> Any:
    """Follow root metadata from the one that was installed to the newest that is verified.

    Args:
        bootstrap: Root metadata that came with the device, or with the repository's own first version.
        later: Newer versions, by number; the chain ends where one is missing or does not verify.
        repository: Which one it must say it is of.

    Returns:
        The newest root (``tuf.api.metadata.Root``).

    Raises:
        TrustError: `bootstrap` itself is malformed, unsigned or of another repository.
    """
    first = parse(bootstrap, f"the first root of the {repository} repository")
    root = first.signed
    try:
        root.verify_delegate("root", first.signed_bytes, first.signatures)
    except (exceptions.UnsignedMetadataError, ValueError, AttributeError) as e:
        raise TrustError(
            f"the first root of the {repository} repository is not signed: {e}", "signature"
        ) from e
    _check_repository(root, repository)
    while (data := later.get(root.version + 1)) is not None:
        try:
            new = parse(data, f"root {root.version + 1}")
            check_next_root(root, new, repository)
        except TrustError:
            break
        root = new.signed
    return root


def check_next_root(root: Any, new: Any, repository: str) -> None:
    """Check that `new` may follow `root`: by the old and the new threshold, and of this repository.

    Raises:
        TrustError: It may not.
    """
    try:
        root.verify_delegate("root", new.signed_bytes, new.signatures)
        new.signed.verify_delegate("root", new.signed_bytes, new.signatures)
    # Metadata of another type has no keys, and a role without keys is a ValueError.
    except (exceptions.UnsignedMetadataError, ValueError, AttributeError) as e:
        raise TrustError(
            f"root {root.version + 1} is not signed as root {root.version} asks: {e}", "signature"
        ) from e
    if new.signed.version != root.version + 1:
        raise TrustError(f"root {new.signed.version} cannot follow root {root.version}", "rollback")
    _check_repository(new.signed, repository)


def _check_repository(root: Any, repository: str) -> None:
    if (found := Extra(root).repository) != repository:
        raise TrustError(
            f"this root is of the {found} repository, and the {repository} repository was asked for: "
            "one never stands in for the other",
            "repository",
        )
