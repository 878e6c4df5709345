"""What a fleet needs before it can do anything: keys and repositories, made once, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec.artifact import sync_directory
from edgec.errors import OutputError
from edgec.fleet.store._tokens import Tokens
from edgec.trust import KeyRing, Lifetimes, generate_key, open_repositories, write_lifetimes

_ACTOR = "first start"
# Of the names that ``edgec keys init`` gives.
_KEYS = (
    *((f"root-{number}", "root") for number in (1, 2, 3)),
    ("targets-1", "targets"),
    ("online", "online"),
    ("director", "director"),
)


@dataclass(frozen=True, kw_only=True)
class FirstStart:
    """What was made because it was missing.

    Attributes:
        made: For people: ``6 signing keys in /srv/fleet/keys``.
        admin_token: Opens everything; kept nowhere. None once a token of an admin has been used.
        advice: What to do about it, for people.
    """

    made: tuple[str, ...]
    admin_token: str | None
    advice: tuple[str, ...]


def make_keys(folder: Path) -> bool:
    """Make the keys of a fleet whose server signs alone, unless the folder is there; return if it was made.

    Keys of role ``targets``, ``online`` and ``director`` stay with the server. Those of role ``root`` are
    there to be moved away.

    Raises:
        OutputError: They cannot be written.
    """
    return _make_whole(folder, 0o700, lambda part: [generate_key(part, name, role) for name, role in _KEYS])


def make_repositories(folder: Path, ring: KeyRing, clock: Callable[[], float]) -> bool:
    """Make empty repositories, unless the folder is there; return whether it was made.

    Raises:
        OutputError: They cannot be written.
        TrustError: The root keys are not at hand.
    """

    def fill(part: Path) -> None:
        lifetimes = Lifetimes()
        image, director = open_repositories(part, ring, lifetimes=lifetimes, clock=clock)
        image.initialise()
        director.initialise()
        write_lifetimes(part, lifetimes)
        image.release()
        director.release()

    return _make_whole(folder, 0o755, fill)


def first_token(tokens: Tokens, now: float) -> str | None:
    """Return a token of role admin as long as none was ever used; None from then on.

    A start that is killed before it has told the token leaves one that nobody knows: the next start makes
    another and takes it back.
    """
    admins = [token for token in tokens.all() if token.role == "admin"]
    if any(token.used_at is not None or token.created_by != _ACTOR for token in admins):
        return None
    unknown = [token.id for token in admins if token.revoked_at is None]
    return tokens.create("first", "admin", now=now, actor=_ACTOR, instead_of=unknown)[1]


def root_key_files(keys: Path) -> list[Path]:
    """Return private keys that should not lie on a server."""
    return sorted(keys.glob("root-*.pem"))


def _make_whole(folder: Path, mode: int, fill: Callable[[Path], object]) -> bool:
    """Fill a folder beside, and rename it when it is complete: one that was stopped begins anew."""
    if folder.exists():
        return False
    part = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, mode=mode)
        fill(part)
        os.rename(part, folder)
        sync_directory(folder.parent)
    except OSError as e:
        raise OutputError(f"cannot make {folder}: {e.strerror}") from e
    return True
