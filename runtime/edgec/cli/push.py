"""``edgec push``: sign, publish and assign an artifact, tell devices of it, and follow what they answer."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._broker import BrokerAccess, broker_access, broker_options
from edgec.cli._terms import read_terms, terms_options
from edgec.cli._text import columns, printable
from edgec.cli._trust import json_option, key_ring, keys_option, opened, passphrase_option, waiting_facts
from edgec.cli.repo import published
from edgec.errors import TrustError

if TYPE_CHECKING:
    from edgec.protocol import Answer
    from edgec.trust import DeviceBundle, DirectorRepository, ImageRepository, ImageTarget, Terms

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAX_FILE_BYTES = 64 * 2**20


@click.command()
@click.argument("artifacts", nargs=-1, metavar="[ARTIFACT]...")
@click.option(
    "--devices",
    "devices_file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    required=True,
    help="One device per line: its id, and after it the targets that it can run. '-' reads standard input.",
)
@click.option(
    "--repo",
    "repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("repo"),
    show_default=True,
    help="Directory of the repository: edgec repo init.",
)
@keys_option
@passphrase_option
@click.option(
    "--rollback",
    metavar="MODEL[=VERSION]",
    help="Instead of artifacts: take devices back to the version before theirs, or to a certain one.",
)
@click.option(
    "--deltas",
    type=click.IntRange(0, 16),
    default=1,
    show_default=True,
    help="Patches from so many versions.",
)
@terms_options
@broker_options(required=False)
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="BASE",
    help="Where devices fetch the repository's files; while it waits, this command also sends them itself.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 7 * 86400),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="How long answers are followed; 0 for not at all.",
)
@json_option
def command(
    artifacts: tuple[str, ...],
    devices_file: Path,
    repository: Path,
    key_folders: tuple[Path, ...],
    passphrase_file: Path | None,
    rollback: str | None,
    deltas: int,
    retry: bool,
    urls: tuple[str, ...],
    wait_s: float,
    as_json: bool,
    **more: Any,
) -> None:
    """Bring an artifact to devices: verify, sign, publish, assign, tell, and say what each one answers.

    An ARTIFACT is a file, or MODEL=VERSION of what is published already. Several are one version for
    several targets: each device gets the one that fits the targets in its line. What devices run of other
    models stays. The message for each device is kept by the broker: one that is away finds it when it
    comes back. Without --broker, devices find the news in the repository. Exit status 1 means that not all
    devices have the artifact at the end.

    \b
    edgec push digits.edgec --devices fleet.txt --keys keys --broker mqtts://broker.example --ca ca.crt
    edgec push --rollback digits --devices fleet.txt --keys keys --broker mqtts://broker.example
    edgec push digits=2.1 --prepare --devices fleet.txt --keys keys --broker mqtts://broker.example
    edgec push digits=2.1 --retry --probation 3600 --devices fleet.txt --keys keys
    """
    if bool(artifacts) == (rollback is not None):
        raise click.UsageError("name artifacts, or --rollback and no artifact")
    terms = read_terms(more)
    access = broker_access(more) if more["broker_url"] else None
    devices = read_devices(devices_file)
    image, director = opened(repository, key_ring(key_folders, passphrase_file))
    with image.locked():
        targets = _put_in_force(image, director, [Path(a) for a in artifacts if not _is_name(a)], deltas)
        targets += [target for a in artifacts if _is_name(a) for target in _named(image, a)]
        plans = _plans(image, director, devices, targets, rollback)
        bundles, models = _assigned(director, devices, plans, terms, retry=retry)
    answers: Sequence[Answer] = ()
    if access is not None:
        answers = _announced(access, repository, bundles, models, urls, wait_s, quiet=as_json)
    facts = _facts(targets, bundles, models, answers)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_told(facts)))
    if wait_s and any(answer.outcome != ("prepared" if terms.prepare else "committed") for answer in answers):
        sys.exit(1)


def read_devices(file: Path) -> dict[str, set[str]]:
    """Return the targets that each device of a file can run, by its id; empty where the file has none.

    Raises:
        click.BadParameter: A line is none, a device is there twice, or there are none.
    """
    data = sys.stdin.buffer.read(_MAX_FILE_BYTES) if str(file) == "-" else file.read_bytes()
    devices: dict[str, set[str]] = {}
    problems = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        bad = [word for word in words if not _ID.fullmatch(word)]
        if bad:
            problems.append(f"line {number}: {bad[0]!r:.80} is no id")
        elif words[0] in devices:
            problems.append(f"line {number}: {words[0]} is there twice")
        else:
            devices[words[0]] = set(words[1:])
    if not devices and not problems:
        problems.append("it names no device")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise click.BadParameter(f"{file}: {'; '.join(problems[:5])}{more}", param_hint="--devices")
    return devices


def _is_name(artifact: str) -> bool:
    return "=" in artifact and not Path(artifact).exists()


def _named(image: ImageRepository, name: str) -> list[ImageTarget]:
    """Return the artifacts of ``MODEL=VERSION``, one per target."""
    model, _, version = name.partition("=")
    of_model = image.targets(model).values()
    found = [target for target in of_model if target.version == version]
    if not found:
        known = ", ".join(sorted({f"{model}={target.version}" for target in of_model})) or "nothing of it"
        raise TrustError(f"{name} is not published; there is: {known}", "assignment")
    return found


def _put_in_force(
    image: ImageRepository, director: DirectorRepository, artifacts: Sequence[Path], deltas: int
) -> list[ImageTarget]:
    missing = [str(path) for path in artifacts if not path.is_file()]
    if missing:
        raise click.BadParameter(f"no such file: {', '.join(missing)}", param_hint="ARTIFACT")
    targets = [published(image, path, deltas=deltas) for path in artifacts]
    if not targets:
        return []
    image.release()
    in_force = image.targets()
    if any(in_force.get(target.path) != target for target in targets):
        waiting = "; ".join(waiting_facts(image, director))
        raise TrustError(
            f"published, but not in force before all have signed: {waiting}. Run  edgec keys sign, then  "
            "edgec repo renew, and push again",
            "signature",
        )
    return targets


def _plans(
    image: ImageRepository,
    director: DirectorRepository,
    devices: dict[str, set[str]],
    targets: Sequence[ImageTarget],
    rollback: str | None,
) -> dict[str, dict[str, str]]:
    """Return the path of what each device shall run, by name of the model."""
    from edgec.trust import chosen_target, previous_target

    plans: dict[str, dict[str, str]] = {}
    for device, hardware in devices.items():
        if rollback is None:
            chosen = [_fitting(device, hardware, targets, model) for model in _models(targets)]
        elif "=" in rollback or "/" in rollback:
            chosen = [chosen_target(image, rollback, hardware)]
        else:
            chosen = [previous_target(image, director, device, rollback, hardware)]
        plans[device] = {target.model: target.path for target in chosen}
    return plans


def _assigned(
    director: DirectorRepository,
    devices: dict[str, set[str]],
    plans: dict[str, dict[str, str]],
    terms: Terms,
    *,
    retry: bool,
) -> tuple[list[DeviceBundle], list[str]]:
    """Sign what each device shall run; return that, and the names of the models it is about."""
    from edgec.trust import assign_also

    bundles = [
        assign_also(
            director,
            device,
            plan,
            hardware=devices[device] or None,
            terms=dict.fromkeys(plan, terms),
            retry=plan if retry else (),
        )
        for device, plan in plans.items()
    ]
    return bundles, sorted({model for plan in plans.values() for model in plan})


def _models(targets: Sequence[ImageTarget]) -> list[str]:
    return sorted({target.model for target in targets})


def _fitting(device: str, hardware: set[str], targets: Sequence[ImageTarget], model: str) -> ImageTarget:
    of_model = [target for target in targets if target.model == model]
    fitting = [target for target in of_model if not hardware or hardware & set(target.hardware)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(f"{t.path} for {'/'.join(t.hardware)}" for t in of_model)
    can = f"which can run {', '.join(sorted(hardware))}" if hardware else "whose line names no target"
    problem = "several artifacts fit" if fitting else "no artifact fits"
    raise TrustError(f"{problem} {device}, {can}; there is: {there}", "assignment")


def _announced(
    access: BrokerAccess,
    repository: Path,
    bundles: Sequence[DeviceBundle],
    models: Sequence[str],
    urls: Sequence[str],
    wait_s: float,
    *,
    quiet: bool,
) -> Sequence[Answer]:
    """Tell every device, and follow what becomes of it."""
    from edgec.protocol import Announcer, ChunkServer, MqttLink, Topics, desired_of

    topics = Topics(access.tenant)
    subscriptions = (
        *Announcer.subscriptions(topics, [bundle.device for bundle in bundles]),
        *ChunkServer.subscriptions(topics),
    )
    with MqttLink(access.link_options("push", subscriptions)) as link:
        link.wait_connected(30)
        announcer = Announcer(link, topics)
        chunks = ChunkServer(link, topics, repository)
        # The same epoch may be told again with newer metadata; the later one counts.
        revision = int(time.time())
        for bundle in bundles:
            desired = desired_of(bundle, revision=revision, sources=urls)
            announcer.announce(bundle.device, desired, set(models) & set(bundle.targets))
        if not quiet:
            click.echo(f"told {len(bundles)} devices; what they answer:" if wait_s else "told", err=True)
        return announcer.wait(
            wait_s,
            lambda answer: None if quiet else click.echo(_line(answer), err=True),
            chunks.take,
        )


def _line(answer: Answer) -> str:
    why = ": ".join(part for part in (answer.reason, answer.detail) if part)
    return printable(f"  {answer.device}  {answer.model}  {answer.state or answer.outcome}  {why}".rstrip())


def _facts(
    targets: Sequence[ImageTarget],
    bundles: Sequence[DeviceBundle],
    models: Sequence[str],
    answers: Sequence[Answer],
) -> dict[str, Any]:
    devices: dict[str, Any] = {
        bundle.device: {
            "epoch": bundle.epoch,
            "models": {m: t.path for m, t in bundle.targets.items() if m in models},
            "answers": {},
        }
        for bundle in bundles
    }
    for answer in answers:
        plain = asdict(answer)
        devices[plain.pop("device")]["answers"][plain.pop("model")] = plain
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer.outcome] = counts.get(answer.outcome, 0) + 1
    return {
        "published": [
            {"path": t.path, "length": t.length, "sha256": t.sha256, "patches": [d.length for d in t.deltas]}
            for t in targets
        ],
        "devices": devices,
        "outcomes": counts,
    }


def _told(facts: dict[str, Any]) -> list[str]:
    rows: list[Sequence[object]] = [("device", "epoch", "artifact", "answer")]
    for device, found in facts["devices"].items():
        for model, path in found["models"].items():
            answer = found["answers"].get(model)
            rows.append((device, found["epoch"], path, _said(answer) if answer else "not told: no --broker"))
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(facts["outcomes"].items()))
    return [*columns(rows, ""), *([counts] if counts else [])]


def _said(answer: dict[str, Any]) -> str:
    outcome = answer["outcome"]
    if outcome == "waiting":
        outcome = "no answer yet" if answer["online"] else "away; the broker keeps the message"
    why = ": ".join(part for part in (answer["reason"], answer["detail"]) if part)
    return f"{outcome} ({why})" if why and outcome != "committed" else outcome
