"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

engine_cache = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the engine keeps what it compiles; for TensorRT, where edgec finish put it.",
)
delegate = click.option(
    "--delegate",
    type=click.Path(path_type=Path),
    metavar="LIB",
    help="Shared library through which LiteRT reaches the NPU; it is loaded into this process.",
)
