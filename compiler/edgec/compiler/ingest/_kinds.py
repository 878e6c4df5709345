"""What a file is, by what it holds where that tells, else by its name; and who reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.environments import EnvironmentStore
from edgec.errors import ModelError

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be taken over.

    Attributes:
        source: The file or directory.
        output: Where the ONNX model goes.
        shapes: Sizes to pin, by name of the input.
        store: Where environments are.
        timeout_s: For the conversion.
        progress: Told what is going on.
    """

    source: Path
    output: Path
    shapes: Mapping[str, tuple[int, ...]]
    store: EnvironmentStore
    timeout_s: float
    progress: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a reader made.

    Attributes:
        tools: Versions of what converted it.
        inputs: Samples, by names of the ONNX model.
        outputs: What the framework computes on each.
        rounds: Whether the framework computes more coarsely than the ONNX model says: in int8 where that has
            floats.
    """

    tools: Mapping[str, str]
    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]
    rounds: bool = False


def find_framework(path: Path) -> str | None:
    """Return the framework that a file or directory is of; None for what can only be ONNX.

    Raises:
        ModelError: It is of a kind that cannot be taken over; what to do instead is said.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return "SavedModel" if (path / "saved_model.pb").is_file() else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] == b"TFL3" or suffix in (".tflite", ".lite"):
        return "TFLite"
    if suffix in (".keras", ".h5", ".hdf5") or head == b"\x89HDF\r\n\x1a\n":
        return "Keras"
    if head[:4] == b"PK\x03\x04" or suffix in (".pt2", ".pt", ".pth"):
        return _torch(path, suffix)
    if suffix == ".pb":
        raise ModelError(
            f"{path} is a frozen TensorFlow graph, which does not say what its inputs are: give the "
            "directory of the SavedModel that it was made from"
        )
    return None


_EXPORT = (
    "export it in Python with  torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"
    "  and give model.pt2, or write ONNX with torch.onnx.export(..., dynamo=True)"
)


def _torch(path: Path, suffix: str) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
            files = set(archive.namelist())
    except zipfile.BadZipFile as e:
        if suffix == ".pt2" or not _is_pickle(path):
            raise ModelError(f"{path} is cut off or corrupt: no archive of PyTorch ({e})") from e
        raise ModelError(
            f"{path} is a pickle of an old PyTorch, and loading one runs code that is in it: {_EXPORT}"
        ) from e
    if (
        any(name.startswith("models/") for name in names | files)
        or "serialized_exported_program.json" in files
    ):
        return "PyTorch"
    if "data.pkl" in names and ("constants.pkl" in names or any(n.startswith("code/") for n in names)):
        raise ModelError(
            f"{path} is TorchScript, which PyTorch's exporter to ONNX no longer takes: {_EXPORT}"
        )
    if "data.pkl" in names:
        raise ModelError(
            f"{path} holds weights or a pickled module, not a program: loading the latter runs code that is "
            f"in it, and weights have no graph: {_EXPORT}"
        )
    if suffix in (".pt2", ".pt", ".pth"):
        raise ModelError(f"{path} is an archive, but none that PyTorch wrote: {_EXPORT}")
    return None


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2)[:1] == b"\x80"
