"""One repository, brought up to date by tuf's client in a folder of its own.

Nothing of the device's trusted state is touched here: what the client wrote is believed, and kept,
only after edgec's own checks. So metadata of another device, properly signed and with higher numbers,
cannot push this device's own metadata into the past.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.errors import TrustError
from edgec.trust._metadata import DIRECTOR, Extra, check_next_root, instant, parse
from edgec.trust._source import MetadataSource
from edgec.trust._tuf import FetcherInterface, Updater, UpdaterConfig, exceptions

_BASE = "edgec:///"
_LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=8,
    root_max_length=128 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=1024 * 1024,
    targets_max_length=2 * 1024 * 1024,
)


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """A repository whose metadata has been verified.

    Attributes:
        root: Newest root.
        timestamp: ``tuf.api.metadata.Timestamp``.
        snapshot: ``tuf.api.metadata.Snapshot``.
        targets: ``tuf.api.metadata.Targets``, of the top level.
        updater: For targets of delegated roles.
    """

    root: Any
    timestamp: Any
    snapshot: Any
    targets: Any
    updater: Any

    def expires(self) -> float:
        """Return when the first of its top-level roles expires, in seconds since 1970."""
        return float(
            min(s.expires.timestamp() for s in (self.root, self.timestamp, self.snapshot, self.targets))
        )

    def role(self, name: str) -> Any:
        """Return the verified targets metadata of a role that was looked up."""
        return self.updater._trusted_set[name]

    def is_valid(self, now_s: float, roles: Iterable[str]) -> bool:
        """Return whether some roles were looked up, and neither they nor those above them have expired."""
        signed = [self.root, self.timestamp, self.snapshot, self.targets]
        for name in roles:
            if name not in self.updater._trusted_set:
                return False
            signed.append(self.role(name))
        return not any(one.is_expired(instant(now_s)) for one in signed)


class _Fetcher(FetcherInterface):  # type: ignore[misc,unused-ignore]
    """Files of one repository for tuf's client; in memory, because a device may have no place for more."""

    def __init__(self, source: MetadataSource, kind: str, device_id: str) -> None:
        self._source, self._kind = source, kind
        self._folder = f"{kind}/{device_id}" if kind == DIRECTOR else kind

    def _fetch(self, url: str) -> Any:
        yield self.download_bytes(url, _LIMITS.targets_max_length)  # the largest that any may be

    def download_bytes(self, url: str, max_length: int) -> bytes:
        file = url.removeprefix(_BASE)
        is_root = re.fullmatch(r"[0-9]+\.root\.json", file) is not None
        data = self._source.fetch(f"{self._kind if is_root else self._folder}/{file}", max_length)
        if data is None:
            raise exceptions.DownloadHTTPError(f"{file} of the {self._kind} repository is not there", 404)
        if len(data) > max_length:
            raise exceptions.DownloadLengthMismatchError(
                f"{file} of the {self._kind} repository has more than {max_length} bytes"
            )
        return data


def refresh(
    kind: str,
    bootstrap: bytes,
    known: Mapping[str, bytes],
    source: MetadataSource,
    *,
    folder: Path,
    device_id: str,
    now_s: float,
) -> Refreshed:
    """Bring a repository up to date.

    Args:
        kind: ``image`` or ``director``.
        bootstrap: Root metadata that is believed without proof.
        known: Metadata files that were verified earlier, by the names that tuf's client gives them.
        source: Of newer ones.
        folder: Empty; the client writes to it.
        device_id: Whose metadata of the director is asked for.
        now_s: Time, in seconds since 1970.

    Raises:
        TrustError: It cannot be had or is not to be trusted; `reason` says why.
    """
    for file, data in known.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    with translated(kind):
        updater = Updater(
            str(folder),
            _BASE,
            fetcher=_Fetcher(source, kind, device_id),
            config=_LIMITS,
            bootstrap=bootstrap,
        )
        # tuf reads the system's clock here and takes no other one (7.0.1); a device may have none.
        trusted = updater._trusted_set
        trusted.reference_time = instant(now_s)
        updater.refresh()
    return Refreshed(
        root=trusted.root,
        timestamp=trusted.timestamp,
        snapshot=trusted.snapshot,
        targets=trusted.targets,
        updater=updater,
    )


def is_unchanged(
    kind: str, before: Refreshed, timestamp: bytes, source: MetadataSource, *, device_id: str
) -> bool:
    """Return whether a source has no root after the one that was verified, and the very timestamp.

    A repository is then as it was: its timestamp pins the snapshot, and that all else.

    Args:
        kind: ``image`` or ``director``.
        before: As it was verified.
        timestamp: The file, as it was then.
        source: Is asked for both.
        device_id: As of `refresh`.

    Raises:
        TrustError: It cannot be asked.
    """
    fetcher = _Fetcher(source, kind, device_id)
    # In the order in which the client asks, so that nothing can come in between that it would not see.
    try:
        fetcher.download_bytes(f"{_BASE}{before.root.version + 1}.root.json", _LIMITS.root_max_length)
    except exceptions.DownloadHTTPError:
        pass
    except exceptions.DownloadError:
        return False
    else:
        return False
    try:
        return fetcher.download_bytes(f"{_BASE}timestamp.json", _LIMITS.timestamp_max_length) == timestamp
    except exceptions.DownloadError:
        return False


def verified_roots(folder: Path, bootstrap: bytes, kind: str) -> dict[str, bytes]:
    """Return the roots that the client has verified, by file name, as far as they are of this repository.

    Raises:
        TrustError: One is signed as it should be, and of the other repository.
    """
    found: dict[str, bytes] = {}
    root = parse(bootstrap, f"the first root of the {kind} repository").signed
    while (path := folder / "root_history" / f"{root.version + 1}.root.json").is_file():
        data = path.read_bytes()
        new = parse(data, path.name)
        check_next_root(root, new, kind)
        found[f"root_history/{path.name}"] = data
        root = new.signed
    return found


def check_owner(refreshed: Refreshed, kind: str, device_id: str) -> None:
    """Check that metadata is of the repository, and from the director for the device, that was asked for.

    Raises:
        TrustError: It is of another repository (``repository``) or for another device (``device``).
    """
    for signed in (refreshed.timestamp, refreshed.snapshot, refreshed.targets):
        extra = Extra(signed)
        if extra.repository != kind:
            raise TrustError(
                f"{signed.type} metadata of the {extra.repository} repository came in place of the {kind}'s",
                "repository",
            )
        if kind == DIRECTOR and extra.device != device_id:
            raise TrustError(
                f"the director's {signed.type} metadata is for device {extra.device or '(none)'}, "
                f"and this is {device_id}",
                "device",
            )


class translated:
    """Turn errors of tuf into `TrustError` in a ``with`` block."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, TrustError):
            return
        for error_class, reason, advice in _REASONS:
            if isinstance(error, error_class):
                raise TrustError(f"{self._kind} repository: {error}; {advice}", reason) from error


# The narrowest first. A ValueError is what tuf raises for a role that nobody delegated to.
_REASONS: tuple[tuple[type[BaseException], str, str], ...] = (
    (exceptions.ExpiredMetadataError, "expired", "nothing new is accepted until it is signed again"),
    (exceptions.UnsignedMetadataError, "signature", "nothing was taken over"),
    (exceptions.BadVersionNumberError, "rollback", "older metadata than before is refused"),
    (exceptions.LengthOrHashMismatchError, "digest", "it is not the file that the repository refers to"),
    (exceptions.DownloadLengthMismatchError, "too_large", "nothing was taken over"),
    (exceptions.DownloadHTTPError, "not_found", "nothing was published there yet, or it is not complete"),
    (exceptions.DownloadError, "unreachable", "try again later"),
    (exceptions.RepositoryError, "malformed", "nothing was taken over"),
    (ValueError, "malformed", "nothing was taken over"),
    (OSError, "storage", "the device's trust directory cannot be written"),
)
