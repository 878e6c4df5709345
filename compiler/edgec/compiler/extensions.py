"""What other packages add by entry point: their passes, and a digest of their code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import onnx

from edgec.errors import PassError

PASSES = "edgec.passes"
GROUPS = ("edgec.backends", "edgec.converters", PASSES, "edgec.targets")

Pass = Callable[[onnx.ModelProto], "onnx.ModelProto | None"]
"""Takes a model that is its own to change; returns the model to go on with, or None for no change."""


def registered_passes() -> list[tuple[str, Pass]]:
    """Return the passes that installed packages offer, by name, in the order of their names.

    Raises:
        PassError: One cannot be imported, or is no function.
    """
    return [(point.name, _loaded(point)) for point in sorted(entry_points(group=PASSES), key=_name)]


def apply_pass(name: str, rewrite: Pass, model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return what a registered pass makes of a model, which stays as it is; None where it changes nothing.

    Raises:
        PassError: It fails, or makes no valid model of the same inputs and outputs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        changed = rewrite(copy)
    except Exception as e:  # whatever escapes from code that is not edgec's own
        raise PassError(f"pass {name!r} failed: {type(e).__name__}: {e}; fix or uninstall its package") from e
    if changed is None:
        return None
    if not isinstance(changed, onnx.ModelProto):
        raise PassError(f"pass {name!r} gave {type(changed).__name__}: expected an onnx.ModelProto, or None")
    if (list(changed.graph.input), list(changed.graph.output)) != (
        list(model.graph.input),
        list(model.graph.output),
    ):
        raise PassError(f"pass {name!r} changes the inputs or outputs of the model, which must stay")
    return changed


def extensions_digest() -> str:
    """Return a digest of the code of every package that extends edgec here.

    A version number does not change while a package is worked on.
    """
    digest = hashlib.sha256()
    for group in GROUPS:
        for point in sorted(entry_points(group=group), key=_name):
            digest.update(f"{group} {point.name} {point.value}\n".encode())
            for file in _code(point):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _name(point: EntryPoint) -> str:
    return point.name


def _loaded(point: EntryPoint) -> Pass:
    origin = f"pass {point.name!r} = {point.value}"
    try:
        found = point.load()
    except (ImportError, AttributeError) as e:
        raise PassError(f"{origin} cannot be imported: {e}; upgrade or uninstall its package") from e
    if not callable(found):
        raise PassError(f"{origin}: expected a function, not {type(found).__name__}")
    return cast(Pass, found)


def _code(point: EntryPoint) -> Iterator[Path]:
    """Yield the files of an entry point's package, code and data, in a fixed order."""
    spec = find_spec(point.module.partition(".")[0])
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        files = (f for f in Path(folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        yield from sorted(files)
    if spec.submodule_search_locations is None and spec.origin is not None:
        yield Path(spec.origin)
