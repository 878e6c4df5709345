"""Reading artifacts: files from outside, mapped into memory and checked before anything is believed."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any
from zlib import crc32

from edgec.artifact import _json
from edgec.artifact._fields import mapping
from edgec.artifact._files import atomic_write
from edgec.artifact._golden import GoldenVector, decode_golden
from edgec.artifact._layout import GOLDEN, MANIFEST, REPORT, Entry, read_entries
from edgec.artifact._manifest import Manifest
from edgec.artifact._manifest_json import MAX_MANIFEST_SIZE, read_manifest
from edgec.errors import ArtifactError, DigestMismatchError, ManifestError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

MAX_REPORT_SIZE = 16 * 2**20
_CHUNK = 2**24


class Artifact:
    """An artifact, open for reading; close it, or use it in a ``with`` statement.

    `open` checks everything but the bytes of the members; `verify` checks those. Members are
    mapped, so that opening costs the same whatever their size; the file must not be written to
    while it is open (`pack` replaces files whole, which is safe). Nothing in it is ever executed.

    Attributes:
        path: Of the file.
        manifest: What it says of itself.
        content_digest: Of all but measured figures: ``sha256:5e8f...``.
        size_bytes: Of the file.
    """

    path: Path
    manifest: Manifest
    content_digest: str
    size_bytes: int

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        """Use `open`."""
        self.path = path
        self._map: mmap.mmap | None = data
        whole = memoryview(data)
        self.size_bytes = len(whole)
        entries, digest = read_entries(whole)
        self._entries = {entry.name: entry for entry in entries}
        self.manifest, self.content_digest = read_manifest(_manifest_bytes(whole, entries[-1], digest))
        _check_members(entries[:-1], self.manifest)

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open the artifact at `path` and check all of it but the bytes of its members.

        Raises:
            ArtifactError: There is no file, it is no artifact, or it is damaged; the message says where.
            ManifestError: The manifest is malformed.
            IncompatibleArtifactError: It has another format version, or requires what is not known here.
        """

        from pathlib import Path

        path = Path(path)
        data = _map(path)
        try:
            return cls(path, data)
        except ArtifactError as e:
            # The same error, which now says what file it is about.
            e.args = (f"{path}: {e}",)
            raise

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; calling it again does nothing.

        Views that were given out stay valid: the mapping goes when the last of them does.
        """
        data, self._map = self._map, None
        if data is not None:
            # Raised as long as there are views; the mapping then ends with them.
            with suppress(BufferError):
                data.close()

    def give_back_pages(self) -> None:
        """Let the system take what of the file is in this process's memory; what is read again comes back.

        Engines that pack weights anew have read the members once, and need none of it any more. Linux only.
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if self._map is not None and advice is not None:
            self._map.madvise(advice)

    def names(self) -> tuple[str, ...]:
        """Return the names of the members but the manifest, in the order of the file."""
        return tuple(name for name in self._entries if name != MANIFEST)

    def offset(self, name: str) -> int:
        """Return where the bytes of member `name` begin in the file; payload begins at multiples of 4096.

        Raises:
            ArtifactError: There is no such member.
        """
        return self._entry(name).start

    def view(self, name: str) -> memoryview:
        """Return the bytes of member `name`: mapped, not copied, read-only, and not checked (see `verify`).

        Raises:
            ArtifactError: There is no such member, or the artifact is closed.
        """
        entry = self._entry(name)
        if self._map is None:
            raise ArtifactError(f"{self.path}: the artifact is closed; open it again to read {name!r}")
        return memoryview(self._map)[entry.start : entry.end]

    def read(self, name: str) -> bytes:
        """Return a copy of the bytes of member `name`.

        Raises:
            ArtifactError: There is no such member, or the artifact is closed.
            DigestMismatchError: They are not what the manifest promises.
        """
        return bytes(self._checked(name))

    @property
    def report(self) -> Mapping[str, Any] | None:
        """What was measured when it was made; None where that is not in it.

        Raises:
            ArtifactError: It is damaged, malformed, or the artifact is closed.
        """
        if REPORT not in self._entries:
            return None
        size = self._entries[REPORT].size
        if size > MAX_REPORT_SIZE:
            raise ManifestError(f"{self.path}: {REPORT} has {size} bytes; at most {MAX_REPORT_SIZE} are read")
        try:
            return mapping(_json.decode(self.read(REPORT), REPORT, max_size=MAX_REPORT_SIZE), REPORT)
        except ManifestError as e:
            raise ManifestError(f"{self.path}: {e}") from e

    def golden(self) -> list[GoldenVector]:
        """Return copies of the golden vectors; none where the artifact has none.

        Each has all inputs of the model, and outputs of it for which the manifest has a tolerance.

        Raises:
            ArtifactError: They are damaged, malformed, not of this model, or the artifact is closed.
        """
        if GOLDEN not in self._entries:
            return []
        try:
            vectors = decode_golden(self._checked(GOLDEN))
            _check_golden(vectors, self.manifest)
        except ManifestError as e:
            raise ManifestError(f"{self.path}: {e}") from e
        return vectors

    def verify(self) -> None:
        """Check the bytes of every member; the engines are not asked (``Session.self_test`` does).

        Raises:
            DigestMismatchError: The bytes of a member are not what the manifest promises.
            ArtifactError: The report or the golden vectors are malformed, or the artifact is closed.
        """
        for name in self.names():
            self._checked(name)
        _ = self.report
        self.golden()

    def extract(self, directory: str | Path, names: Iterable[str] | None = None) -> dict[str, Path]:
        """Write members to files of their names below `directory`, which is made if need be.

        Args:
            directory: Where to; files that are there already are replaced.
            names: Of the members; all of `names` if None.

        Returns:
            The path of each file, by name of the member.

        Raises:
            DigestMismatchError: The bytes of a member are not what the manifest promises; it is not written.
            ArtifactError: There is no such member, or the artifact is closed.
            OutputError: A file cannot be written.
        """

        from pathlib import Path

        written: dict[str, Path] = {}
        for name in self.names() if names is None else names:
            data = self._checked(name)
            path = Path(directory, name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise OutputError(f"cannot make the directory {path.parent}: {e.strerror}") from e
            with atomic_write(path) as file:
                file.write(data)
            written[name] = path
        return written

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise ArtifactError(f"{self.path}: no member {name!r}; there are {', '.join(self.names())}")
        return self._entries[name]

    def _checked(self, name: str) -> memoryview:
        from hashlib import sha256

        data = self.view(name)
        digest, crc = sha256(), 0
        # In pieces, so that an interrupt is heard.
        for at in range(0, len(data), _CHUNK):
            piece = data[at : at + _CHUNK]
            digest.update(piece)
            crc = crc32(piece, crc)
        if name != MANIFEST and digest.hexdigest() != self.manifest.members[name].sha256:
            raise DigestMismatchError(
                f"{self.path}: member {name!r} has SHA-256 {digest.hexdigest()}, the manifest promises "
                f"{self.manifest.members[name].sha256}: the file is damaged; get it again",
                name,
            )
        if crc != self._entries[name].crc:
            raise DigestMismatchError(
                f"{self.path}: member {name!r} has CRC-32 {crc:08x}, its header promises another",
                name,
            )
        return data


def _map(path: Path) -> mmap.mmap:
    """Map the file at `path`, read-only."""
    try:
        # Asked first: to open a pipe waits for its writer.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ArtifactError(f"{path} is a directory, not an artifact")
        if not stat.S_ISREG(mode):
            raise ArtifactError(f"{path} is a device or a pipe, not an artifact")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ArtifactError(f"{path} is empty, not an artifact")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise ArtifactError(f"cannot read the artifact {path}: {e.strerror or e}") from e
    except ValueError as e:  # a NUL in the path
        raise ArtifactError(f"cannot read the artifact {str(path)!r}: {e}") from e


def _manifest_bytes(whole: memoryview, entry: Entry, digest: str) -> bytes:
    """Return the bytes of the manifest, having checked their size and their digest."""
    from hashlib import sha256

    if entry.size > MAX_MANIFEST_SIZE:
        raise ManifestError(f"{MANIFEST} has {entry.size} bytes; at most {MAX_MANIFEST_SIZE} are read")
    raw = bytes(whole[entry.start : entry.end])
    if sha256(raw).hexdigest() != digest or crc32(raw) != entry.crc:
        raise DigestMismatchError(
            f"{MANIFEST} has SHA-256 {sha256(raw).hexdigest()}, the end of the file promises {digest}: "
            "the file is damaged; get it again",
            MANIFEST,
        )
    return raw


def _check_members(entries: list[Entry], manifest: Manifest) -> None:
    """Raise ArtifactError where the members there are differ from those that the manifest has."""
    for entry in entries:
        promised = manifest.members.get(entry.name)
        if promised is None:
            raise ArtifactError(f"member {entry.name!r} is not in the manifest")
        if promised.size != entry.size:
            raise ArtifactError(
                f"member {entry.name!r} has {entry.size} bytes, the manifest promises {promised.size}"
            )
    for name in manifest.members.keys() - {entry.name for entry in entries}:
        raise ArtifactError(f"member {name!r} is missing: the manifest promises it")


def _check_golden(vectors: list[GoldenVector], manifest: Manifest) -> None:
    """Raise ManifestError where golden vectors are not of the model that the manifest describes."""
    inputs = {spec.name for spec in manifest.inputs}
    judged = {name for name, limits in manifest.golden.items() if "max_abs_error" in limits}
    for i, vector in enumerate(vectors):
        if vector.inputs.keys() != inputs:
            raise ManifestError(f"{GOLDEN}: vector {i} does not have the inputs of the model")
        if not vector.outputs or vector.outputs.keys() - judged:
            raise ManifestError(
                f"{GOLDEN}: vector {i} must have outputs that manifest.golden has a max_abs_error for"
            )
