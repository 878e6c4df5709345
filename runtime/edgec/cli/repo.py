"""``edgec repo``: a signed repository of artifacts on a directory that any web server can serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._lazy import SentencesGroup
from edgec.cli._terms import read_terms, terms_options
from edgec.cli._text import columns, size
from edgec.cli._trust import (
    day,
    json_option,
    key_ring,
    keys_option,
    opened,
    passphrase_option,
    repository_argument,
    tell,
    waiting_facts,
    waiting_lines,
)
from edgec.cli.keys import due_lines, status_facts

if TYPE_CHECKING:
    from edgec.trust import DeviceBundle, ImageRepository, ImageTarget, RepositoryStatus


@click.group(cls=SentencesGroup)
def command() -> None:
    """Publish artifacts, and say which device runs which. Nothing but a directory is needed.

    Every command below takes --json.

    \b
    edgec keys init keys
    edgec repo init repo --keys keys
    edgec repo publish repo digits-cpu-x86_64.edgec --keys keys
    edgec repo assign repo camera-7 digits --keys keys
    edgec repo status repo --keys keys
    """


@command.command()
@repository_argument
@keys_option
@passphrase_option
@click.option("--root-threshold", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option("--targets-threshold", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--root-days", type=float, default=365, show_default=True, help="Roots are valid for so long.")
@click.option("--targets-days", type=float, default=365, show_default=True, help="So are signed artifacts.")
@click.option(
    "--online-days",
    type=float,
    default=30,
    show_default=True,
    help="So is what machines sign: edgec repo renew.",
)
@json_option
def init(
    repository: Path,
    key_folders: tuple[Path, ...],
    passphrase_file: Path | None,
    root_threshold: int,
    targets_threshold: int,
    root_days: float,
    targets_days: float,
    online_days: float,
    as_json: bool,
) -> None:
    """Make an empty repository whose first root names the keys in --keys.

    All .pub files must be there; the root waits for signatures whose .pem files are not. Give
    image/1.root.json and director/1.root.json to devices when they are provisioned.

    \b
    edgec repo init repo --keys keys
    edgec repo init repo --keys keys --targets-threshold 2
    """
    from edgec.trust import Lifetimes, open_repositories, write_lifetimes

    lifetimes = Lifetimes(root=root_days, targets=targets_days, online=online_days, director=online_days)
    keys = key_ring(key_folders, passphrase_file)
    image, director = open_repositories(repository, keys, lifetimes=lifetimes)
    with image.locked():
        image.initialise(root_threshold=root_threshold, targets_threshold=targets_threshold)
        director.initialise(root_threshold=root_threshold)
        write_lifetimes(repository, lifetimes)
        released = [f"image/{role}" for role in image.release()]
        released += [f"director/{role}" for role in director.release()]
    roots = [str(repository / kind / "1.root.json") for kind in ("image", "director")]
    facts = {"repository": str(repository), "released": released, "roots": roots}
    waiting = {"waiting": waiting_facts(image, director)}
    tell(
        as_json,
        facts | waiting,
        lambda: [
            f"in force    {', '.join(released) or 'nothing yet'}",
            *waiting_lines(image, director),
            f"devices     are provisioned with {' and '.join(roots)}",
        ],
    )


@command.command()
@repository_argument
@click.argument("artifacts", type=click.Path(path_type=Path), nargs=-1, required=True)
@keys_option
@passphrase_option
@click.option(
    "--hardware",
    multiple=True,
    metavar="TARGET",
    help="Target it may run on; by default what it was compiled for.",
)
@click.option(
    "--rollback-floor",
    metavar="VERSION",
    help="No device may install a version of the model before this one any more (a security fix).",
)
@click.option(
    "--deltas",
    type=click.IntRange(0, 16),
    default=1,
    show_default=True,
    help="From how many earlier versions a patch is made, where it is worth it.",
)
@json_option
def publish(
    repository: Path,
    artifacts: tuple[Path, ...],
    key_folders: tuple[Path, ...],
    passphrase_file: Path | None,
    hardware: tuple[str, ...],
    rollback_floor: str | None,
    deltas: int,
    as_json: bool,
) -> None:
    """Verify artifacts, copy them into REPOSITORY, and sign that they are to be believed.

    Every member of an artifact is checked first. What lacks signatures of further people waits for
    edgec keys sign; devices see nothing of it until then. Stopping at any point is safe.

    \b
    edgec repo publish repo build/digits-cpu-x86_64.edgec --keys keys
    edgec repo publish repo build/*.edgec --keys keys --rollback-floor 2.1
    """
    image, director = opened(repository, key_ring(key_folders, passphrase_file))
    with image.locked():
        targets = [published(image, path, hardware, deltas) for path in artifacts]
        if rollback_floor is not None:
            for model in sorted({target.model for target in targets}):
                image.set_rollback_floor(model, rollback_floor)
        released = image.release()
    facts = {
        "published": [_target_facts(target) for target in targets],
        "in_force": all(target.path in image.targets() for target in targets),
        "released": [f"image/{role}" for role in released],
        "waiting": waiting_facts(image, director),
    }
    tell(
        as_json,
        facts,
        lambda: [*_targets_told(targets), *_force_told(facts), *waiting_lines(image, director)],
    )


@command.command()
@repository_argument
@click.argument("device")
@click.argument("models", nargs=-1, required=True, metavar="MODEL[=VERSION]...")
@keys_option
@passphrase_option
@click.option(
    "--hardware",
    multiple=True,
    metavar="TARGET",
    help="Targets that the device can run: chooses among the artifacts of a version.",
)
@terms_options
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the metadata for this device as one JSON file: names and texts.",
)
@json_option
def assign(
    repository: Path,
    device: str,
    models: tuple[str, ...],
    key_folders: tuple[Path, ...],
    passphrase_file: Path | None,
    hardware: tuple[str, ...],
    retry: bool,
    bundle: Path | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Say what DEVICE shall run, in place of all that it was told before.

    A model is a name (its newest version), NAME=VERSION, or a path that edgec repo status prints.
    Older content is a new epoch like any other, so that a bad release can be taken back, but
    nothing below the rollback floor can be assigned.

    \b
    edgec repo assign repo camera-7 digits --keys keys
    edgec repo assign repo camera-7 digits=1.0 wake-word=3 --hardware rpi5 --keys keys
    edgec repo assign repo camera-7 digits=2.1 --shadow 3600 --keys keys
    """
    from edgec.trust import chosen_target

    terms = read_terms(more)
    image, director = opened(repository, key_ring(key_folders, passphrase_file))
    with image.locked():
        wanted = [chosen_target(image, model, set(hardware)) for model in models]
        paths = {target.model: target.path for target in wanted}
        if len(paths) < len(wanted):
            raise click.UsageError("each model can be named once")
        made = director.assign(
            device,
            paths,
            hardware=set(hardware) or None,
            terms=dict.fromkeys(paths, terms),
            retry=paths if retry else (),
        )
    if bundle is not None:
        _write_bundle(bundle, made)
    tell(as_json, _bundle_facts(made), lambda: _bundle_told(made))


@command.command()
@repository_argument
@keys_option
@passphrase_option
@click.option("--targets", "sign_targets", is_flag=True, help="Also have people sign all artifacts again.")
@json_option
def renew(
    repository: Path,
    key_folders: tuple[Path, ...],
    passphrase_file: Path | None,
    sign_targets: bool,
    as_json: bool,
) -> None:
    """Put in force what is signed, and sign again what machines sign, before it expires.

    For a timer, once a day: devices that see nothing fresh for --online-days refuse anything new.

    \b
    edgec repo renew repo --keys online-keys
    """
    image, director = opened(repository, key_ring(key_folders, passphrase_file))
    with image.locked():
        if sign_targets:
            for role in ("targets", *(f"model.{model}" for model in image.models())):
                image.stage_again(role)
        released = [f"image/{role}" for role in image.release(renew=True)]
        released += [f"director/{role}" for role in director.release()]
        devices = director.devices()
        for device in devices:
            director.renew(device)
    facts = {"released": released, "devices": len(devices), "waiting": waiting_facts(image, director)}
    tell(
        as_json,
        facts,
        lambda: [
            f"in force    {', '.join(released) or 'nothing new'}",
            f"renewed     the catalogue, and the assignments of {len(devices)} devices",
            *waiting_lines(image, director),
        ],
    )


@command.command()
@repository_argument
@keys_option
@json_option
def status(repository: Path, key_folders: tuple[Path, ...], as_json: bool) -> None:
    """Say which artifacts are in force, what each device is assigned, and what is due.

    \b
    edgec repo status repo --keys keys
    edgec repo status repo --keys keys --json
    """
    from edgec.trust import repository_status

    image, director = opened(repository, key_ring(key_folders, None))
    found = repository_status(image, director)
    targets = list(image.targets().values())
    assigned = {device: director.assigned(device)[1] for device in found.devices}
    facts: dict[str, Any] = {
        **status_facts(found),
        "artifacts": [_target_facts(target) for target in targets],
    }
    for device, models in assigned.items():
        facts["devices"][device]["models"] = models
    tell(
        as_json,
        facts,
        lambda: [*_targets_told(targets), "", *_devices_told(found, assigned), "", *due_lines(found)],
    )


def published(
    image: ImageRepository, path: Path, hardware: tuple[str, ...] = (), deltas: int = 1
) -> ImageTarget:
    """Stage an artifact with patches from the versions before it and the map of its chunks.

    Raises:
        TrustError: It is over its budget, which was kept to be looked at.
    """
    from edgec.artifact import Artifact
    from edgec.errors import TrustError

    with Artifact.open(path) as artifact:
        told = (artifact.report or {}).get("over_budget")
    if told:
        raise TrustError(f"{path} is over budget: {told}; compile it within its budget", "refused")
    from edgec.delta import ChunkMap, make_delta
    from edgec.trust import publish_artifact

    return publish_artifact(
        image,
        path,
        make_delta=make_delta,
        make_map=lambda file: ChunkMap.of_file(file).to_bytes(),
        hardware=hardware,
        deltas=deltas,
    )


def _write_bundle(path: Path, made: DeviceBundle) -> None:
    from edgec.artifact import atomic_write

    with atomic_write(path) as file:
        document = {name: data.decode() for name, data in made.metadata.items()}
        file.write(json.dumps(document, indent=1, sort_keys=True).encode())


def _target_facts(target: ImageTarget) -> dict[str, Any]:
    return {
        "model": target.model,
        "version": target.version,
        "release": target.release,
        "path": target.path,
        "location": target.location,
        "length": target.length,
        "sha256": target.sha256,
        "hardware": list(target.hardware),
        "rollback_floor": target.rollback_floor,
        "deltas": [vars(delta) for delta in target.deltas],
        "chunks": None if target.chunks is None else vars(target.chunks),
    }


def _bundle_facts(made: DeviceBundle) -> dict[str, Any]:
    return {
        "device": made.device,
        "epoch": made.epoch,
        "models": {model: _target_facts(target) for model, target in made.targets.items()},
        "metadata_bytes": made.size_bytes,
    }


def _targets_told(targets: list[ImageTarget]) -> list[str]:
    if not targets:
        return ["no artifacts are in force"]
    rows = [
        (t.path, f"release {t.release}", size(t.length), ", ".join(t.hardware), f"floor {t.rollback_floor}")
        for t in targets
    ]
    return columns([("artifact", "release", "size", "runs on", "rollback"), *rows], "")


def _force_told(facts: dict[str, Any]) -> list[str]:
    return ["in force" if facts["in_force"] else "not in force yet:"]


def _bundle_told(made: DeviceBundle) -> list[str]:
    rows = [(target.model, target.path, size(target.length)) for target in made.targets.values()]
    return [
        f"{made.device}: epoch {made.epoch}, {size(made.size_bytes)} of metadata",
        *columns(rows),
    ]


def _devices_told(found: RepositoryStatus, assigned: dict[str, dict[str, str]]) -> list[str]:
    if not found.devices:
        return ["no device has an assignment"]
    rows = [
        (device, f"epoch {epoch}", f"until {day(expires)}", ", ".join(assigned[device].values()))
        for device, (epoch, expires) in found.devices.items()
    ]
    return columns([("device", "epoch", "valid", "runs"), *rows], "")
