"""``edgec fleet backup``: a copy of a fleet's directory while its server runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgec.cli._text import size


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("edgec-fleet"),
    show_default=True,
    envvar="EDGEC_FLEET_DATA_DIR",
    help="Directory of the fleet.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(out: Path, data_dir: Path, as_json: bool) -> None:
    """Copy a fleet to the tar file OUT, which holds its private keys, while its server runs.

    To restore it, unpack it into an empty directory:  tar -xf OUT -C DIRECTORY. A database on PostgreSQL is
    copied by  pg_dump  before.

    \b
    edgec fleet backup fleet.tar
    edgec fleet backup /backup/fleet.tar --data-dir /srv/fleet
    """
    from edgec.fleet.service import back_up

    files = back_up(data_dir, out)
    length = out.stat().st_size
    facts = {"out": str(out), "files": files, "bytes": length}
    text = f"wrote   {out}: {files} files, {size(length)}, mode 0600"
    click.echo(json.dumps(facts) if as_json else text)
