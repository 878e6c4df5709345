"""The command line: one lazily loaded click command per module.

To add a command: write ``cli/<name>.py`` with a click command called ``command``, and name it in
``COMMANDS``.
"""

from __future__ import annotations

import sys

import click

from edgec.cli._lazy import LazyGroup
from edgec.errors import EdgecError
from edgec.errors.extras import failed_package, import_failed

COMMANDS = {
    "agent": "Keep this device's models as the fleet wants them, and say how that goes.",
    "benchmark": "Measure an artifact's latency, throughput, load time and memory.",
    "check": "Say, before any work, whether a model can be compiled for a target.",
    "command": "Have a device do something: a signed order over a broker, and its reply.",
    "compare": "Compare what two artifacts or models compute.",
    "compile": "Compile an ONNX model to a proven artifact per target.",
    "doctor": "Say what is installed, and what each target still needs here.",
    "evaluate": "Score an artifact on labelled data.",
    "explain": "Say why an artifact is what it is, and what int8 costs in each layer.",
    "finish": "Build on this device what only it can: the engine of an artifact for TensorRT.",
    "fleet": "Run a fleet of devices, or command one: releases, rollouts, what became of them.",
    "gateway": "Answer for devices that cannot answer themselves: Open Inference Protocol v2.",
    "inspect": "Show all that an artifact says of itself.",
    "keys": "Make, replace and use the keys that sign for devices; say what is due.",
    "push": "Publish an artifact, assign it to devices, tell them, and follow what becomes of it.",
    "rebuild": "Build an artifact again with today's tools, and say what changed.",
    "repo": "Publish artifacts in a signed repository, and assign them to devices.",
    "run": "Run an artifact on inputs.",
    "serve": "Serve artifacts over HTTP: Open Inference Protocol v2.",
    "stream": "Run an artifact on a camera, a video, files, sound or messages.",
    "targets": "List the targets, or show one.",
    "verify": "Check an artifact's digests and run its golden vectors.",
}


# Libraries that a command may find missing, and the extra that brings each.
_EXTRAS = {
    "ai_edge_litert": "litert",
    "alembic": "fleet",
    "cbor2": "agent",
    "cryptography": "agent",
    "cv2": "vision",
    "diskcache": "compiler",
    "fastapi": "fleet",
    "flatbuffers": "compiler",
    "google": "compiler",
    "httpx2": "fleet",
    "jinja2": "compiler",
    "matplotlib": "plots",
    "ml_dtypes": "compiler",
    "mlperf_loadgen": "loadgen",
    "onnx": "compiler",
    "onnx_ir": "compiler",
    "onnxruntime": "onnxruntime",
    "onnxslim": "compiler",
    "openvino": "openvino",
    "paho": "agent",
    "pyarrow": "parquet",
    "pydantic": "fleet",
    "scipy": "fleet",
    "sqlalchemy": "fleet",
    "tokenizers": "text",
    "tuf": "agent",
    "uvicorn": "serve",
}


@click.group(
    cls=LazyGroup,
    table={name: (f"edgec.cli.{name}:command", line) for name, line in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="edgec")
def main_group() -> None:
    """Compile models for edge devices, and prove every artifact.

    \b
    edgec targets
    edgec check model.onnx --target jetson
    edgec compile model.onnx --target cpu -o build --calibration calibration.npz
    edgec verify build/model-cpu-x86_64.edgec
    edgec benchmark build/model-cpu-x86_64.edgec
    """


def main() -> None:
    """Run the command line; an `EdgecError` is one line on standard error and exit status 1."""
    try:
        main_group.main(prog_name="edgec", standalone_mode=True)
    except EdgecError as e:
        _fail(e)
    except ImportError as e:
        package = failed_package(e, _EXTRAS)
        if package is None:
            raise
        _fail(import_failed("this command", e, _EXTRAS[package]))


def _fail(error: EdgecError) -> None:
    from edgec.cli._text import printable  # here, because nearly no call needs it

    # A message may quote what a file from outside says.
    click.echo(f"edgec: error: {printable(' '.join(str(error).split()))}", err=True)
    sys.exit(1)
