"""``edgec keys``: make signing keys, replace them, sign with them, and see what is due."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._lazy import SentencesGroup
from edgec.cli._text import columns
from edgec.cli._trust import (
    asked_passphrase,
    day,
    json_option,
    key_ring,
    keys_option,
    opened,
    passphrase_option,
    read_passphrase,
    repository_argument,
    tell,
    waiting_facts,
    waiting_lines,
)

if TYPE_CHECKING:
    from edgec.trust import KeyRing, PublicKey, RepositoryStatus, RoleStatus

_ROLES = ("root", "targets", "online", "director")


@click.group(cls=SentencesGroup)
def command() -> None:
    """Signing keys: who may say what runs on devices.

    Roles: root (people, names all other keys), targets (people, sign artifacts), online (a machine,
    keeps the catalogue fresh), director (a machine, assigns artifacts to devices, signs commands).
    Every command below takes --json.

    \b
    edgec keys init keys
    edgec keys status repo --keys keys
    edgec keys sign repo --keys /media/stick
    edgec keys rotate repo --keys keys --retire director
    """


@command.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--role", type=click.Choice(_ROLES), help="Make keys of one role only.")
@click.option("--name", help="With --role: make one key of this name.")
@click.option("--root-keys", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--targets-keys", type=click.IntRange(1, 16), default=2, show_default=True)
@passphrase_option
@json_option
def init(
    folder: Path,
    role: str | None,
    name: str | None,
    root_keys: int,
    targets_keys: int,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Make signing keys in FOLDER: NAME.pem (private, mode 0600) and NAME.pub. None is ever replaced.

    With --passphrase-file the keys of people are encrypted; those of machines are not, unless --role
    names one. Move the .pem files of root and targets to their holders afterwards, each to one.

    \b
    edgec keys init keys
    edgec keys init keys --role root --name root-anna --passphrase-file secret.txt
    """
    from edgec.trust import OFFLINE_ROLES, generate_key

    if name and not role:
        raise click.UsageError("--name needs --role: of which role shall the key be?")
    numbers = {"root": root_keys, "targets": targets_keys, "online": 1, "director": 1}
    wanted = [(name, role)] if name and role else _names(numbers, role)
    secret = None if passphrase_file is None else read_passphrase(passphrase_file)
    made = []
    for key_name, key_role in wanted:
        encrypted = secret if role or key_role in OFFLINE_ROLES else None
        made.append(generate_key(folder, key_name, key_role, passphrase=encrypted))
    facts = {"folder": str(folder), "keys": [_key_facts(key) for key in made]}
    tell(as_json, facts, lambda: _made_told(folder, made))


@command.command()
@repository_argument
@keys_option
@passphrase_option
@json_option
def sign(
    repository: Path, key_folders: tuple[Path, ...], passphrase_file: Path | None, as_json: bool
) -> None:
    """Add signatures of the private keys in --keys to what waits for them in REPOSITORY.

    Needs no other key: carry the repository to the key, or the key to the repository. What has all
    its signatures is put in force here if the online keys are at hand, else by  edgec repo renew.

    \b
    edgec keys sign repo --keys /media/anna
    """
    keys = key_ring(key_folders, passphrase_file)
    image, director = opened(repository, keys)
    with image.locked():
        signed = [f"{r.kind}/{role}" for r in (image, director) for role in r.sign_staged()]
        online = bool(keys.signers([key.keyid for key in keys.keys if key.role == "online"]))
        released = [f"image/{role}" for role in image.release()] if online else []
        if (
            keys.signers([key.keyid for key in keys.keys if key.role == "director"])
            or not director.root_files()
        ):
            released += [f"director/{role}" for role in director.release()]
    facts = {"signed": signed, "released": released, "waiting": waiting_facts(image, director)}
    tell(
        as_json,
        facts,
        lambda: [
            f"signed      {', '.join(signed) or 'nothing: these keys have signed all they may'}",
            f"in force    {', '.join(released) or 'nothing new'}",
            *waiting_lines(image, director),
        ],
    )


@command.command()
@repository_argument
@keys_option
@click.option("--retire", multiple=True, metavar="NAME", help="Key that must not be believed any more.")
@click.option(
    "--new",
    multiple=True,
    metavar="NAME",
    help="Key to believe from now on, in --keys already; by default a new one per retired key.",
)
@click.option("--root-threshold", type=click.IntRange(1, 16), help="How many root keys must sign.")
@click.option("--targets-threshold", type=click.IntRange(1, 16), help="How many targets keys must sign.")
@passphrase_option
@json_option
def rotate(
    repository: Path,
    key_folders: tuple[Path, ...],
    retire: tuple[str, ...],
    new: tuple[str, ...],
    root_threshold: int | None,
    targets_threshold: int | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Replace keys, or with no --retire and no --new sign the roots again for another year.

    The new root needs the old threshold of root keys and the new one; what is missing is added by
    edgec keys sign. Devices follow with their next refresh.

    \b
    edgec keys rotate repo --keys keys --retire director
    edgec keys rotate repo --keys keys --retire root-2 --new root-4
    edgec keys rotate repo --keys keys
    """
    from edgec.trust import rotate as rotate_keys

    keys = key_ring(key_folders, passphrase_file)
    retired = [keys.named(name) for name in retire]
    added = [keys.named(name) for name in new] or _replacements(keys, retired, passphrase_file)
    keys = key_ring(key_folders, passphrase_file)
    thresholds = {"root": root_threshold, "targets": targets_threshold}
    image, director = opened(repository, keys)
    with image.locked():
        staged = rotate_keys(
            image,
            director,
            retire=retired,
            add=added,
            thresholds={role: number for role, number in thresholds.items() if number is not None},
        )
        released = [f"image/{role}" for role in image.release()]
        released += [f"director/{role}" for role in director.release()]
    facts = {
        "retired": [key.name for key in retired],
        "new": [key.name for key in added],
        "staged": staged,
        "released": released,
        "waiting": waiting_facts(image, director),
    }
    tell(
        as_json,
        facts,
        lambda: [
            f"retired     {', '.join(key.name for key in retired) or 'none'}",
            f"new         {', '.join(key.name for key in added) or 'none'}",
            f"in force    {', '.join(released) or 'nothing yet'}",
            *waiting_lines(image, director),
        ],
    )


@command.command()
@repository_argument
@keys_option
@json_option
def status(repository: Path, key_folders: tuple[Path, ...], as_json: bool) -> None:
    """Say of each role when it expires, who signed, who could, and what is due next.

    Public keys are enough. Exits with 1 if something has expired, so that a timer can warn.

    \b
    edgec keys status repo --keys keys
    edgec keys status repo --keys keys --json
    """
    from edgec.trust import repository_status

    image, director = opened(repository, key_ring(key_folders, None))
    found = repository_status(image, director)
    tell(as_json, status_facts(found), lambda: _status_told(found))
    if any(due.overdue for due in found.due):
        raise click.exceptions.Exit(1)


def status_facts(found: RepositoryStatus) -> dict[str, Any]:
    """Return the state of a repository as JSON can hold it."""
    return {
        "roles": [vars(role) for role in found.roles],
        "due": [vars(due) for due in found.due],
        "models": found.models,
        "devices": {
            device: {"epoch": epoch, "expires": expires} for device, (epoch, expires) in found.devices.items()
        },
    }


def due_lines(found: RepositoryStatus) -> list[str]:
    """Return what is due, for people."""
    if not found.due:
        return ["due         nothing within two weeks"]
    marks = [
        ("OVERDUE " if due.overdue else "due ") + (day(due.at) if due.at else "now") for due in found.due
    ]
    return columns(zip(marks, [due.what for due in found.due], strict=True), "")


def _status_told(found: RepositoryStatus) -> list[str]:
    head = ("role", "version", "expires", "signed by", "")
    return [*columns([head, *(_role_row(role) for role in found.roles)], ""), "", *due_lines(found)]


def _role_row(role: RoleStatus) -> tuple[str, ...]:
    signed = f"{len(role.signed)} of {role.needed}: {', '.join(role.signed) or 'nobody'}"
    state = "" if role.in_force else f"waits for {' or '.join(role.missing) or 'release'}"
    return (f"{role.repository}/{role.role}", str(role.version), day(role.expires), signed, state)


def _names(numbers: dict[str, int], role: str | None) -> list[tuple[str, str]]:
    wanted = numbers if role is None else {role: numbers[role]}
    return [
        (key_role if key_role in ("online", "director") else f"{key_role}-{i + 1}", key_role)
        for key_role, count in wanted.items()
        for i in range(count)
    ]


def _replacements(
    keys: KeyRing, retired: Sequence[PublicKey], passphrase_file: Path | None
) -> list[PublicKey]:
    """Make a key for each retired one, beside it, called like it with the next free number."""
    from edgec.trust import OFFLINE_ROLES, generate_key

    taken = {key.name for key in keys.keys}
    made = []
    for key in retired:
        stem = key.name.rstrip("0123456789").rstrip("-") or key.role
        number = next(n for n in range(2, 10_000) if f"{stem}-{n}" not in taken)
        secret = (
            asked_passphrase(passphrase_file)(key.name)
            if key.role in OFFLINE_ROLES and passphrase_file
            else None
        )
        taken.add(f"{stem}-{number}")
        made.append(generate_key(keys.directories[0], f"{stem}-{number}", key.role, passphrase=secret))
    return made


def _key_facts(key: PublicKey) -> dict[str, str]:
    return {"name": key.name, "role": key.role, "keyid": key.keyid}


def _made_told(folder: Path, made: Sequence[PublicKey]) -> list[str]:
    rows = [(key.role, f"{key.name}.pem", key.keyid[:16]) for key in made]
    return [
        *columns([("role", "private key", "key id"), *rows], ""),
        "",
        f"Private keys are in {folder}. Give each .pem of root and targets to one person, who keeps it",
        "offline, with a backup. Leave online.pem and director.pem with the machine that publishes.",
    ]
