"""Data sets in one .npz file: arrays by input name, one sample per index of their first axis."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import DataError
from edgec.evaluation._dataset import Dataset, Sample, file_digest
from edgec.evaluation._tensors import Fit, check_finite, check_names, with_batch

LABELS = "labels"


class _Member:
    """One array of the file, read row by row: mapped where it is stored, streamed where it is compressed.

    Attributes:
        dtype: Element type.
        shape: The first axis is that of the samples.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._path, self._info = path, info
        self.name = info.filename.removesuffix(".npy")
        where = f"{path}: array {self.name!r}"
        if info.flag_bits & 1:
            raise DataError(f"{where} is encrypted: save it again with numpy.savez")
        with archive.open(info) as file:
            self.shape, self._fortran, self.dtype = _header(file, where)
            self._start = file.tell()
        if self.dtype.hasobject:
            raise DataError(f"{where} holds Python objects, which are not read: save it as plain numbers")
        if self.dtype.kind not in "fiubU":
            raise DataError(f"{where} is {self.dtype}, expected numbers: save it as plain numbers")
        if (
            min(self.shape, default=0) < 0
            or self._start + prod(self.shape) * self.dtype.itemsize != info.file_size
        ):
            raise DataError(f"{where} is cut off or damaged: save it again")
        if not self.shape:
            raise DataError(
                f"{where} is a single value, expected one per sample: give it a first axis of samples"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self) -> Iterator[NDArray[Any]]:
        """Yield the row of each sample."""
        if self._info.compress_type == zipfile.ZIP_STORED or self._fortran:
            yield from self._array()
        else:
            yield from self._stream()

    def _array(self) -> NDArray[Any]:
        if self._info.compress_type != zipfile.ZIP_STORED:
            # Column by column and compressed: no row can be read before all are.
            with np.load(self._path, allow_pickle=False) as loaded:
                array: NDArray[Any] = loaded[self.name]
                return array
        if not prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        offset = self._data_offset() + self._start
        mapped: NDArray[Any] = np.memmap(
            self._path, self.dtype, "r", offset, self.shape, "F" if self._fortran else "C"
        )
        return mapped

    def _data_offset(self) -> int:
        # The local header repeats the name with an extra field of its own length.
        with self._path.open("rb") as file:
            file.seek(self._info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return self._info.header_offset + 30 + int(name) + int(extra)

    def _stream(self) -> Iterator[NDArray[Any]]:
        size = prod(self.shape[1:]) * self.dtype.itemsize
        with zipfile.ZipFile(self._path) as archive, archive.open(self._info) as file:
            file.read(self._start)
            for _ in range(len(self)):
                row = file.read(size)
                yield np.frombuffer(row, self.dtype).reshape(self.shape[1:])


class NpzDataset(Dataset):
    """Samples from a .npz file."""

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec] | None = None,
        *,
        raw: bool = False,
        need_labels: bool = False,
        classes: Sequence[str] = (),
    ) -> None:
        """Read the headers and check them; the values are read in iterating.

        Args:
            path: Of the file.
            inputs: What the model takes; None to leave names, dtypes and shapes unchecked.
            raw: Whether a pipeline prepares the samples: each is then a row of every array, as it is.
                Else each is the model's inputs, as a batch of 1.
            need_labels: Whether an array `labels` must be there.
            classes: Names of the model's classes; labels that are names become their indices.

        Raises:
            DataError: The file is no .npz, or its arrays are not what was asked for.
        """
        self._path, self._classes = path, classes
        with _translated(path), zipfile.ZipFile(path) as archive:
            members = [_Member(path, archive, info) for info in archive.infolist()]
        self._labels = next((m for m in members if m.name == LABELS), None)
        self._members = [m for m in members if m.name != LABELS]
        self.labelled = self._labels is not None
        self._check(members, need_labels)
        if inputs is not None:
            check_names([m.name for m in self._members], inputs, str(path))
        specs = {spec.name: spec for spec in inputs or () if not raw}
        self._fits = {m.name: _row_fit(m, specs.get(m.name), path) for m in self._members}
        self.notes = tuple(fit.note for fit, _ in self._fits.values() if fit is not None and fit.note)

    def __len__(self) -> int:
        return len(self._members[0])

    def __iter__(self) -> Iterator[Sample]:
        with _translated(self._path):
            labels = iter(self._labels.rows() if self._labels is not None else ())
            for i, rows in enumerate(zip(*(m.rows() for m in self._members), strict=True)):
                yield Sample(self._data(rows, str(i)), self._label(next(labels, None), i), str(i))

    @property
    def source(self) -> str:
        return str(self._path)

    @cached_property
    def digest(self) -> str:
        return file_digest(self._path)

    def _check(self, members: list[_Member], need_labels: bool) -> None:
        path = self._path
        if not self._members:
            raise DataError(f"{path} holds no arrays of inputs: save them by input name with numpy.savez")
        if need_labels and self._labels is None:
            raise DataError(
                f"{path} has no array 'labels', it has {', '.join(repr(m.name) for m in members)}: "
                "add one, with a label per sample"
            )
        if len({m.name for m in members}) < len(members):
            raise DataError(f"{path} has two arrays of one name: save it with numpy.savez")
        if len({len(m) for m in members}) > 1:
            sizes = ", ".join(f"{m.name!r} {len(m)}" for m in members)
            raise DataError(f"{path} has arrays of different numbers of samples ({sizes}): make them equal")
        if not len(members[0]):
            raise DataError(f"{path} is empty, its arrays have 0 samples: give at least one")
        for member in self._members:
            if member.dtype.kind == "U":
                raise DataError(
                    f"{path}: array {member.name!r} holds text, expected numbers: give text as .jsonl or .csv"
                )

    def _data(self, rows: Sequence[NDArray[Any]], sample: str) -> Any:
        data = {}
        for member, row in zip(self._members, rows, strict=True):
            fit, shape = self._fits[member.name]
            # Mapped rows are copied: what a caller keeps must not change with the file.
            row = np.array(row)
            if fit is None:
                check_finite(row, f"{self._path}: {member.name!r}, sample {sample},")
                data[member.name] = row
            else:
                data[member.name] = fit(row, sample).reshape(shape)
        return data

    def _label(self, label: NDArray[Any] | None, index: int) -> Any:
        if label is None:
            return None
        value: Any = np.array(label)
        if value.ndim:
            return value
        value = value.item()
        if isinstance(value, str) and self._classes:
            if value not in self._classes:
                raise DataError(
                    f"{self._path}: label {value!r} of sample {index} is none of the model's labels: "
                    "use its labels or class numbers"
                )
            return self._classes.index(value)
        return value


def _row_fit(member: _Member, spec: TensorSpec | None, path: Path) -> tuple[Fit | None, tuple[int, ...]]:
    if spec is None:
        return None, member.shape[1:]
    where = f"{path}: array {member.name!r}"
    return Fit(spec, member.dtype, where), with_batch(member.shape[1:], spec, where)


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError) as e:
        raise DataError(f"{where} is no numpy array: {e}") from e
    return shape, fortran, dtype


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, UnicodeDecodeError,
    ) as e:  # fmt: skip
        raise DataError(f"{path} is no sound .npz file ({e}): save it with numpy.savez") from e
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}") from e
