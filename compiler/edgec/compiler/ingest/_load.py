"""Load a model of any framework that is known, each converted once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from edgec.compiler.environments import EnvironmentStore, default_home, get_environment
from edgec.compiler.ingest._comparison import compare, figures_of
from edgec.compiler.ingest._kinds import Request, Taken, find_framework
from edgec.compiler.model import SourceModel, load_model
from edgec.compiler.origin import Origin
from edgec.errors import OutputError

# Framework -> module with `take`, and the environment that it works in.
_READERS = {
    "TFLite": ("litert", "tf2onnx"),
    "Keras": ("keras", "tf2onnx"),
    "SavedModel": ("keras", "tf2onnx"),
    "PyTorch": ("torch", "torch"),
}
_FORMAT = 1  # of what is kept; another one is made anew
_KEPT = 32  # models; the ones longest unused go
_ORIGIN = "origin.json"


def load_source(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    home: Path | None = None,
    reuse: bool = True,
    timeout_s: float = 1800.0,
    progress: Callable[[str], None] = lambda _: None,
) -> SourceModel:
    """Load a model: ONNX as it is, TFLite, Keras, SavedModel and programs of torch.export as ONNX.

    What was converted is kept in `home`, and found again by the content of the source and the tools.

    Args:
        path: The file, or the directory of a SavedModel.
        shapes: Sizes to pin, by name of the input.
        home: Where environments are and conversions are kept; ``~/.cache/edgec`` if None.
        reuse: Whether a conversion that was kept will do.
        timeout_s: For the conversion.
        progress: Told what is going on.

    Raises:
        ModelError: It is missing, damaged, or of a kind that cannot be read.
        MissingEnvironmentError: What reads its framework is not installed.
        UnsupportedModelError: Its framework or converter refuses it.
        ConversionError: The converter crashes, or takes too long.
        ParityError: The converter made another model of it.
        OutputError: `home` cannot be written.
    """
    framework = find_framework(path)
    if framework is None:
        return load_model(path, shapes)
    directory = home if home is not None else default_home()
    store = EnvironmentStore(directory / "environments")
    environment = store.state(get_environment(_READERS[framework][1]))
    digest = content_digest(path)
    key = _key(digest, shapes or {}, environment.packages)
    kept = directory / "ingest" / key
    name = f"{path.stem}.onnx"
    if reuse and (found := _kept(kept, name, path, digest, shapes)) is not None:
        progress(f"{path.name} was converted before")
        return found
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    except OSError as e:
        raise OutputError(
            f"conversions cannot be kept in {kept.parent}: {e.strerror or e}; say where, with --home"
        ) from e
    try:
        request = Request(
            source=path,
            output=scratch / name,
            shapes=shapes or {},
            store=store,
            timeout_s=timeout_s,
            progress=progress,
        )
        _convert(request, framework, digest)
        _publish(scratch, kept)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = _kept(kept, name, path, digest, shapes)
    if found is None:
        raise OutputError(f"the conversion was written to {kept}, and cannot be read back: is the disk full?")
    return found


def _convert(request: Request, framework: str, digest: str) -> None:
    reader = import_module(f"edgec.compiler.ingest.{_READERS[framework][0]}")
    taken: Taken = reader.take(request)
    source = load_model(request.output)
    request.progress(f"comparing the ONNX model with {framework} on {len(taken.inputs)} made-up inputs")
    sentence, parity = compare(source, taken)
    origin = Origin(
        framework=framework,
        file=request.source.name,
        sha256=digest,
        tools=taken.tools,
        comparison=f"on {len(taken.inputs)} made-up inputs {sentence}",
        samples=len(taken.inputs),
        outputs=figures_of(parity),
    )
    (request.output.parent / _ORIGIN).write_text(json.dumps(origin.to_dict()), encoding="utf-8")


def _kept(
    directory: Path, name: str, path: Path, digest: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> SourceModel | None:
    try:
        origin = Origin.from_dict(json.loads((directory / _ORIGIN).read_text(encoding="utf-8")))
        os.utime(directory)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    model = directory / name
    if not model.is_file():
        return None
    return replace(load_model(model, shapes), sha256=digest, origin=replace(origin, file=str(path)))


def _publish(scratch: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    try:
        os.rename(scratch, kept)
    except OSError as e:
        if not kept.is_dir():  # another process may have been quicker
            raise OutputError(f"{kept} cannot be written: {e.strerror or e}") from e
    others = sorted(kept.parent.glob("[0-9a-f]*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in others[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _key(digest: str, shapes: Mapping[str, tuple[int, ...]], packages: Mapping[str, str]) -> str:
    parts = [_FORMAT, digest, sorted((n, list(s)) for n, s in shapes.items()), sorted(packages.items())]
    workers = Path(__file__).parents[1] / "environments" / "workers"
    parts += [f.read_text(encoding="utf-8") for f in sorted(workers.glob("*.py"))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a directory, of the names and content of all its files."""
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
