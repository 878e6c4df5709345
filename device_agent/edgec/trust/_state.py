"""What a device remembers of metadata: files in one piece on disk, and floors that survive their loss.

``metadata.json`` holds the verified metadata files; where it is damaged, everything is fetched and
verified again from the root that came with the device. ``floors.json`` holds the numbers below which
nothing is believed, twice, so that this fetching again cannot be used to lead the device back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgec.artifact import atomic_write
from edgec.artifact._fields import Fields, integer, mapping, text
from edgec.errors import ManifestError, TrustError

_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a role was seen at.

    Attributes:
        keys: Digest of the keys that sign it; a floor holds as long as these do.
        value: Version, epoch or time.
    """

    keys: str = ""
    value: int = 0

    def below(self, value: int, keys: str) -> bool:
        """Whether `value`, signed by `keys`, is older than what was seen; other keys begin anew."""
        return keys == self.keys and value < self.value

    def raised(self, value: int, keys: str) -> Floor:
        """Return the floor after `value`, signed by `keys`, was seen."""
        return Floor(keys=keys, value=max(self.value, value) if keys == self.keys else value)


@dataclass(frozen=True, kw_only=True)
class Floors:
    """All floors of a device.

    Attributes:
        versions: By role: ``director/timestamp``.
        issued: When the newest metadata was signed, by repository: the trusted time.
        epoch: Of the newest assignment.
        assignment: Digest of what that epoch assigned.
        releases: Rollback floor by model.
    """

    versions: Mapping[str, Floor]
    issued: Mapping[str, Floor]
    epoch: Floor
    assignment: str
    releases: Mapping[str, Floor]

    @property
    def time_s(self) -> int:
        """The trusted time: it is later than this, whatever the clock says."""
        return max((floor.value for floor in self.issued.values()), default=0)


NO_FLOORS = Floors(versions={}, issued={}, epoch=Floor(), assignment="", releases={})


class TrustState:
    """The files of a device's trust directory, and what they said when they were read."""

    def __init__(self, directory: Path) -> None:
        """Read them; what is damaged counts as not there.

        Raises:
            TrustError: The directory cannot be made or read (``reason`` ``storage``).
        """
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise TrustError(f"cannot use {directory}: {e.strerror}", "storage") from e
        copies = [_floors(self._read(name)) for name in ("floors.json", "floors.copy.json")]
        self.floors = next((floors for floors in copies if floors is not None), NO_FLOORS)
        names = ("floors.json", "floors.copy.json", "metadata.json")
        self.healed = [name for name in names if self._is_damaged(name)]
        self._whole = not self.healed
        files = self._read("metadata.json")
        self.files: dict[str, bytes] = {
            str(name): value.encode() for name, value in (files or {}).items() if isinstance(value, str)
        }
        self._stored = dict(self.files)

    def of(self, kind: str) -> dict[str, bytes]:
        """Return verified files of a repository, by the names that tuf's client gives them."""
        prefix = f"{kind}/"
        return {name[len(prefix) :]: data for name, data in self.files.items() if name.startswith(prefix)}

    def keep(self, kind: str, files: Mapping[str, bytes]) -> None:
        """Replace the files of a repository, in memory."""
        others = {name: data for name, data in self.files.items() if not name.startswith(f"{kind}/")}
        self.files = others | {f"{kind}/{name}": data for name, data in files.items()}

    def save(self, floors: Floors) -> None:
        """Write what changed; durable when this returns.

        Raises:
            OutputError: It cannot be written; both files are as they were.
        """
        if self.files != self._stored:
            self._write("metadata.json", {name: data.decode() for name, data in self.files.items()})
            self._stored = dict(self.files)
        if floors != self.floors or not self._whole:
            for name in ("floors.json", "floors.copy.json"):
                self._write(name, asdict(floors))
            self.floors = floors
        self._whole = True

    def _is_damaged(self, name: str) -> bool:
        return (self._directory / name).exists() and self._read(name) is None

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_document(self._directory / name)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_document(self._directory / name, content)


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its digest, whole and synced to disk.

    Raises:
        OutputError: It cannot be written; what was there is untouched.
    """
    body = json.dumps(content, sort_keys=True)
    with atomic_write(path) as file:
        file.write(f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "content": {body}}}'.encode())


def read_document(path: Path) -> dict[str, Any] | None:
    """Read what `write_document` wrote; None where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        document = json.loads(data)
        content = document["content"]
        body = json.dumps(content, sort_keys=True)
        right = hashlib.sha256(body.encode()).hexdigest() == document["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if right and isinstance(content, dict) else None


def merged(old: Floors, **changes: Any) -> Floors:
    """Return `old` with changed fields."""
    return replace(old, **changes)


def _floors(document: dict[str, Any] | None) -> Floors | None:
    if document is None:
        return None
    try:
        fields = Fields(document, "floors")
        return Floors(
            versions=_by_name(fields.need("versions", mapping)),
            issued=_by_name(fields.need("issued", mapping)),
            epoch=_floor(fields.need("epoch", mapping)),
            assignment=fields.need("assignment", text),
            releases=_by_name(fields.need("releases", mapping)),
        )
    except ManifestError:
        return None


def _by_name(document: Mapping[str, Any]) -> dict[str, Floor]:
    return {str(name): _floor(value) for name, value in document.items()}


def _floor(value: Any) -> Floor:
    fields = Fields(value, "a floor")
    return Floor(keys=fields.need("keys", text), value=fields.need("value", integer))
