"""The process that runs one model: loads it, answers calls until its parent is gone.

Started by `edgec.runtime._isolated_process`, with descriptors for arguments.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact
from edgec.errors import ArtifactError, EdgecError
from edgec.runtime._containment import contain, end_with
from edgec.runtime._isolated_process import ASK, DONE, FAILED, MAX_MESSAGE, RUN
from edgec.runtime._shared_tensors import Segment, SharedTensors
from edgec.runtime.backends import LoadOptions, Program, get_backend

_MAX_TEXT = 2**14


def main() -> None:
    """Serve the parent."""
    connection, life, inputs, outputs, artifact = map(int, sys.argv[1:])
    end_with(life)
    faulthandler.enable()  # where an engine crashes, the error stream says in which call
    parent = socket.socket(fileno=connection)
    request = json.loads(parent.recv(MAX_MESSAGE))
    contain(memory_mib=request["memory_mib"])
    if request["cores"] is not None:
        os.sched_setaffinity(0, request["cores"])
    try:
        opened = _open(request, artifact)
        program = _load(request, opened)
    except EdgecError as e:
        parent.send(_failure(e))
        return
    facts = {"engine_version": program.engine_version, "placement": dict(program.placement)}
    parent.send(DONE + json.dumps(facts).encode())
    manifest = opened.manifest
    _serve(
        parent,
        program,
        SharedTensors(manifest.inputs, Segment(inputs)),
        SharedTensors(manifest.outputs, Segment(outputs)),
    )


def _open(request: Mapping[str, Any], descriptor: int) -> Artifact:
    # By its descriptor: the file may have been replaced or removed since.
    path = f"/proc/self/fd/{descriptor}"
    try:
        artifact = Artifact.open(path)
    except EdgecError as e:
        e.args = (str(e).replace(path, request["path"]),)
        raise
    artifact.path = Path(request["path"])
    if artifact.content_digest != request["content_digest"]:
        raise ArtifactError(f"{artifact.path} was written to since it was opened: load it again")
    return artifact


def _load(request: Mapping[str, Any], artifact: Artifact) -> Program:
    manifest = artifact.manifest
    spec = manifest.fallback if request["fallback"] else manifest.engine
    assert spec is not None
    options = LoadOptions(
        threads=request["threads"],
        cache_dir=None if request["cache_dir"] is None else Path(request["cache_dir"]),
        delegate=None if request["delegate"] is None else Path(request["delegate"]),
        providers=request["providers"],
        content_digest=artifact.content_digest,
        recipe=manifest.recipe,
    )
    return get_backend(spec.name).load(spec, artifact, manifest.inputs, manifest.outputs, options)


def _serve(parent: socket.socket, program: Program, inputs: SharedTensors, outputs: SharedTensors) -> None:
    while message := parent.recv(MAX_MESSAGE):
        try:
            if message[:1] == RUN:
                reply = DONE + outputs.write(program.run(inputs.views(message[1:])))
            else:
                assert message == ASK
                known = {"precision": program.precision, "precisions": dict(program.precisions)}
                reply = DONE + json.dumps(known).encode()
        except Exception as e:  # noqa: BLE001 - whatever a backend raises belongs to who called
            reply = _failure(e)
        parent.send(reply)


def _failure(error: Exception) -> bytes:
    known = isinstance(error, EdgecError)
    kind = type(error).__name__ if known else "InferenceError"
    message = str(error) if known else f"the engine raised {type(error).__name__}: {error}"
    return FAILED + json.dumps({"kind": kind, "message": message[:_MAX_TEXT]}).encode()
