"""What the commands about keys and repositories share: where keys are, passphrases, what is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.errors import TrustError

if TYPE_CHECKING:
    from edgec.trust import DirectorRepository, ImageRepository, KeyRing, Passphrase


keys_option = click.option(
    "--keys",
    "key_folders",
    type=click.Path(file_okay=False, path_type=Path),
    multiple=True,
    required=True,
    help="Folder with .pub and .pem files; may be given several times (a USB stick, an online folder).",
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the passphrase of the private keys; asked for on the terminal if they need one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
repository_argument = click.argument("repository", type=click.Path(file_okay=False, path_type=Path))


def key_ring(folders: Sequence[Path], passphrase_file: Path | None) -> KeyRing:
    """Return the keys of `folders`."""
    from edgec.trust import KeyRing

    return KeyRing(folders, asked_passphrase(passphrase_file))


def asked_passphrase(file: Path | None) -> Passphrase:
    """Return what knows the passphrase of a key: a file, or whoever sits at the terminal."""

    def from_file(name: str) -> bytes | None:
        return None if file is None else read_passphrase(file)

    def from_terminal(name: str) -> bytes | None:
        if not sys.stdin.isatty():
            return None
        return str(click.prompt(f"Passphrase of {name}", hide_input=True, err=True)).encode()

    return from_terminal if file is None else from_file


def read_passphrase(file: Path) -> bytes:
    """Return the passphrase in a file: its first line.

    Raises:
        TrustError: It cannot be read, or is empty.
    """
    try:
        lines = file.read_bytes()[:4096].splitlines()
    except OSError as e:
        raise TrustError(f"cannot read the passphrase in {file}: {e.strerror}", "key") from e
    if not lines or not lines[0]:
        raise TrustError(f"{file} is empty: its first line is the passphrase", "key")
    return lines[0]


def opened(repository: Path, keys: KeyRing) -> tuple[ImageRepository, DirectorRepository]:
    """Return both repositories of a directory, with the lifetimes that it was made with."""
    from edgec.trust import open_repositories, read_lifetimes

    return open_repositories(repository, keys, lifetimes=read_lifetimes(repository))


def day(seconds: float) -> str:
    """Return a time for people: ``2026-11-22``."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d}"


def tell(as_json: bool, facts: dict[str, Any], lines: Callable[[], Sequence[str]]) -> None:
    """Print `facts` as JSON, or what `lines` says of them."""
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines()))


def waiting_lines(image: ImageRepository, director: DirectorRepository) -> list[str]:
    """Return what waits for signatures, for people."""
    return [f"  {what}" for what in _waiting(image, director)]


def waiting_facts(image: ImageRepository, director: DirectorRepository) -> list[str]:
    """Return what waits for signatures: ``image/targets needs 1 more of targets-2``."""
    return _waiting(image, director)


def _waiting(image: ImageRepository, director: DirectorRepository) -> list[str]:
    found = []
    for repository in (image, director):
        for role, metadata in repository.staged().items():
            state = repository.signatures(role, metadata)
            if state.complete:
                found.append(f"{repository.kind}/{role}: signed, not yet in force")
            else:
                found.append(
                    f"{repository.kind}/{role}: {len(state.signed)} signatures; "
                    f"{', '.join(state.missing)} may sign, {state.needed} are needed"
                )
    return found
