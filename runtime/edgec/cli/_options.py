"""Options that several commands take."""

from __future__ import annotations

import os
from pathlib import Path

import click

# OpenCV makes room for what the head of an image promises; by default that may be 2**30 pixels.
_MOST_PIXELS = 2**26

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
isolate = click.option(
    "--isolate",
    is_flag=True,
    help="Run the engine in a process of its own, which may crash, hang or leak without this one.",
)
queue = click.option(
    "--queue",
    type=click.IntRange(0),
    default=128,
    show_default=True,
    help="Requests that wait for one model; more are refused with 503.",
)
THREADS = click.IntRange(1, 1024)
threads = click.option("--threads", type=THREADS, help="Threads of one inference.")
max_batch = click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Join requests that come while their model runs to so many rows, where that pays; 1 for never.",
)


def prepare_server(tls_cert: Path | None, tls_key: Path | None) -> None:
    """Check what servers take, and bound the images that they will open; before OpenCV is loaded.

    Raises:
        UsageError: Of certificate and key, one is missing.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(_MOST_PIXELS))
