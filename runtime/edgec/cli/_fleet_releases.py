"""``edgec fleet upload``, ``releases`` and ``quarantine``."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli._fleet_login import json_option, show, with_fleet
from edgec.cli._fleet_text import table
from edgec.cli._text import moment, printable, size
from edgec.errors import FleetError

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient
    from edgec.fleet.views import ArtifactDetail, ArtifactView

# Then the other files would only wait for the same.
_NO_SERVER = ("unreachable", "tls")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="ARTIFACT...")
@click.option(
    "--hardware",
    multiple=True,
    metavar="NAME",
    help="Class of hardware that it may run on; its target's if left out.",
)
@click.option("--override", metavar="REASON", help="Take what did not pass parity or budget, and why.")
@json_option
@with_fleet
def upload(
    client: FleetClient,
    files: tuple[Path, ...],
    hardware: tuple[str, ...],
    override: str | None,
    as_json: bool,
) -> None:
    """Upload artifacts: the fleet verifies, keeps and signs them. The same file again changes nothing.

    Each file is tried; where some are not taken, the exit status is 1.

    \b
    edgec fleet upload build/kws-cpu-x86_64.edgec build/kws-rpi5.edgec
    edgec fleet upload kws.edgec --override 'accuracy is measured in the lab'
    """
    taken: dict[Path, ArtifactDetail] = {}
    refused: list[FleetError] = []
    for path in files:
        got = _tried(client, path, hardware, override)
        if not isinstance(got, FleetError):
            taken[path] = got
            continue
        if len(files) == 1:
            raise got
        refused.append(got)
        if got.reason in _NO_SERVER:
            break
    head = ["model", "version", "target", "runs on", "size", "digest", ""]
    rows = [_row(artifact) for artifact in taken.values()]
    show(as_json, list(taken.values()), lambda: table(head, rows, "nothing was taken"))
    for error in refused:
        click.echo(f"edgec: {printable(' '.join(str(error).split()))}", err=True)
    if refused:
        missing = [path for path in files if path not in taken]
        reasons = {error.reason for error in refused}
        raise FleetError(
            f"{len(missing)} of {len(files)} files were not taken: {', '.join(map(str, missing))}",
            reasons.pop() if len(reasons) == 1 else "refused",
        )


def _tried(
    client: FleetClient, path: Path, hardware: tuple[str, ...], override: str | None
) -> ArtifactDetail | FleetError:
    try:
        return _send(client, path, hardware, override)
    except FleetError as e:
        return e


def _send(client: FleetClient, path: Path, hardware: tuple[str, ...], override: str | None) -> ArtifactDetail:
    total = path.stat().st_size
    # A bar is for a terminal; it begins anew where the network made the upload begin anew.
    with click.progressbar(
        length=total, label=path.name, file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def moved(count: int) -> None:
            bar.update(count if bar.pos + count <= total else count - bar.pos)

        try:
            return client.upload(path, hardware=hardware, override=override, progress=moved)
        except FleetError as e:
            # The server knows of no names of files here.
            told = str(e)
            named = told.replace("the file that was sent", str(path), 1)
            raise FleetError(named if named != told else f"{path}: {told}", e.reason) from e


def _row(artifact: ArtifactDetail) -> list[str]:
    return [
        artifact.model, artifact.version, artifact.target, " ".join(artifact.hardware), size(artifact.length),
        artifact.sha256[:16], _note(artifact),
    ]  # fmt: skip


def _note(artifact: ArtifactView) -> str:
    note = f"taken although: {artifact.override}" if artifact.override else ""
    note = f"quarantined: {artifact.quarantined}" if artifact.quarantined else note
    return "; ".join([*filter(None, [note]), *(f"warning: {words}" for words in artifact.warnings)])


@click.command()
@click.argument("model", required=False)
@click.argument("version", required=False)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most releases.")
@json_option
@with_fleet
def releases(client: FleetClient, model: str | None, version: str | None, limit: int, as_json: bool) -> None:
    """List releases, newest first; or the artifacts of one.

    \b
    edgec fleet releases
    edgec fleet releases kws
    edgec fleet releases kws 2
    """
    if model and version:
        found = client.release(model, version)
        head = ["target", "hardware", "size", "uploaded", "by", "digest", ""]
        rows = [
            [
                a.target, " ".join(a.hardware), size(a.length), moment(a.uploaded_at), a.uploaded_by,
                a.sha256, _note(a),
            ]
            for a in found.artifacts
        ]  # fmt: skip
        show(as_json, found, lambda: table(head, rows, "no artifact"))
        return
    listed = list(islice(client.releases(model), limit))
    head = ["model", "version", "number"]
    show(as_json, listed, lambda: table(head, [[r.model, r.version, r.number] for r in listed], "no release"))


@click.command()
@click.argument("digest", required=False)
@click.option("--reason", help="Why it may not be installed any more, or may again.")
@click.option("--release", is_flag=True, help="It may be installed again.")
@json_option
@with_fleet
def quarantine(
    client: FleetClient, digest: str | None, reason: str | None, release: bool, as_json: bool
) -> None:
    """List what may not be installed; put an artifact there, or release it.

    \b
    edgec fleet quarantine
    edgec fleet quarantine DIGEST --reason 'wrong labels'
    edgec fleet quarantine DIGEST --release --reason 'checked'
    """
    if digest is not None:
        if not reason:
            raise click.UsageError("give a --reason: it is what others will read")
        if release:
            client.release_quarantine(digest, reason)
        else:
            client.quarantine(digest, reason)
    found = list(client.quarantined())
    rows = [[q.digest, moment(q.at), q.rollout or "-", q.reason] for q in found]
    show(as_json, found, lambda: table(["digest", "since", "rollout", "reason"], rows, "nothing"))
