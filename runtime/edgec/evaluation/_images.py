"""Data sets of images: a folder, with labels from sub-folders, a CSV, COCO JSON or YOLO text files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from edgec.errors import DataError
from edgec.evaluation._coco import CocoLabels, may_be_coco
from edgec.evaluation._dataset import Dataset, Sample, files_digest, named_label
from edgec.evaluation._reading import read_table
from edgec.evaluation._yolo import YoloLabels, yolo_file

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_WAYS = (
    "use one sub-folder per class, labels.csv with the columns file and label, COCO JSON, or YOLO .txt files"
)


class Labelling(Protocol):
    """Where the labels of images come from.

    Attributes:
        notes: What was assumed, in sentences.
    """

    notes: tuple[str, ...]

    def images(self) -> list[Path]:
        """Return the images that it labels, in a fixed order."""
        ...

    def label(self, image: Path) -> Any:
        """Return the label of one of them."""
        ...

    def files(self) -> list[Path]:
        """Return the files that hold the labels; none where the paths of the images do."""
        ...


class ImageDataset(Dataset):
    """Images of a folder; each sample is the path of one."""

    def __init__(
        self,
        folder: Path,
        labels: Path | None = None,
        *,
        need_labels: bool = False,
        classes: Sequence[str] = (),
    ) -> None:
        """List the images and read the labels; images are read by who uses them.

        Args:
            folder: Of the images.
            labels: A CSV, a COCO JSON or a folder of YOLO text files; None to look for them.
            need_labels: Whether there must be labels.
            classes: Names of the model's classes.

        Raises:
            DataError: There are no images, or the labels are missing, malformed or of other images.
        """
        self._folder = folder
        self._labelling = _find_labelling(folder, labels, classes)
        self.labelled = self._labelling is not None
        if self._labelling is None:
            if need_labels:
                raise DataError(f"the images in {folder} have no labels: {_WAYS}")
            self._images = list_images(folder)
        else:
            self._images = self._labelling.images()
            self.notes = self._labelling.notes
        if not self._images:
            raise DataError(
                f"{folder} holds no images: expected files that end in {', '.join(sorted(SUFFIXES))}"
            )

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(image) for image in self._images)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source} has {len(self)} samples, there is no number {index}")
        return self._sample(self._images[index])

    @property
    def source(self) -> str:
        return str(self._folder)

    @cached_property
    def digest(self) -> str:
        files = [(_relative(image, self._folder), image) for image in self._images]
        files += (
            [(f"labels {file.name}", file) for file in self._labelling.files()] if self._labelling else []
        )
        return files_digest(files)

    def _sample(self, image: Path) -> Sample:
        label = self._labelling.label(image) if self._labelling is not None else None
        return Sample(image, label, _relative(image, self._folder))


def list_images(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, sorted; hidden files and folders are left out.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        return sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    except OSError as e:
        raise DataError(f"cannot read {folder}: {e.strerror}") from e


def _find_labelling(folder: Path, labels: Path | None, classes: Sequence[str]) -> Labelling | None:
    if labels is not None:
        return _given_labelling(folder, labels, classes)
    if (folder / "labels.csv").is_file():
        return _CsvLabels(folder, folder / "labels.csv", classes)
    found = [path for path in sorted(folder.glob("*.json")) if may_be_coco(path)]
    if len(found) > 1:
        raise DataError(
            f"{folder} holds {len(found)} COCO JSON files: say which one has the labels, with --labels"
        )
    if found:
        return CocoLabels(folder, found[0], classes)
    images = list_images(folder)
    if any(yolo_file(image, folder).is_file() for image in images):
        return YoloLabels(folder, images, None)
    if images and all(image.parent != folder for image in images):
        return _FolderLabels(folder, images, classes)
    return None


def _given_labelling(folder: Path, labels: Path, classes: Sequence[str]) -> Labelling:
    if labels.is_dir():
        return YoloLabels(folder, list_images(folder), labels)
    if labels.suffix.lower() == ".csv":
        return _CsvLabels(folder, labels, classes)
    if labels.suffix.lower() == ".json":
        return CocoLabels(folder, labels, classes)
    raise DataError(
        f"labels {labels}: expected a .csv with the columns file and label, a COCO .json, "
        "or a folder of YOLO .txt files"
    )


class _FolderLabels:
    """The class of an image is the sub-folder it is in."""

    def __init__(self, folder: Path, images: list[Path], classes: Sequence[str]) -> None:
        self._folder, self._images = folder, images
        names = sorted({self._class_of(image) for image in images})
        if classes:
            self._numbers = {name: named_label(name, classes, str(folder)) for name in names}
        elif all(name.isdecimal() for name in names):
            self._numbers = {name: int(name) for name in names}
        else:
            self._numbers = {name: i for i, name in enumerate(names)}
            shown = ", ".join(f"{name} = {i}" for name, i in list(self._numbers.items())[:4])
            more = ", ..." if len(names) > 4 else ""
            self.notes = (f"classes are numbered in the order of their folders' names: {shown}{more}",)

    notes: tuple[str, ...] = ()

    def images(self) -> list[Path]:
        return self._images

    def label(self, image: Path) -> Any:
        return self._numbers[self._class_of(image)]

    def files(self) -> list[Path]:
        return []

    def _class_of(self, image: Path) -> str:
        return image.relative_to(self._folder).parts[0]


class _CsvLabels:
    """A CSV file with the columns `file`, relative to the folder, and `label`."""

    def __init__(self, folder: Path, path: Path, classes: Sequence[str]) -> None:
        self._path = path
        self._labels: dict[Path, Any] = {}
        for line, row in read_table(path):
            if set(row) != {"file", "label"}:
                raise DataError(
                    f"{path}: expected the columns file and label, got {', '.join(map(str, row))}"
                )
            image = folder / row["file"]
            if not image.is_file():
                raise DataError(
                    f"{path}, line {line}: there is no image {image}: paths are relative to {folder}"
                )
            if image in self._labels:
                raise DataError(f"{path}, line {line}: {row['file']} is labelled twice: leave one line out")
            self._labels[image] = named_label(row["label"], classes, f"{path}, line {line}")
        self.notes = _left_out(folder, self._labels)

    def images(self) -> list[Path]:
        return list(self._labels)

    def label(self, image: Path) -> Any:
        return self._labels[image]

    def files(self) -> list[Path]:
        return [self._path]


def _left_out(folder: Path, labelled: Mapping[Path, Any]) -> tuple[str, ...]:
    others = sum(image not in labelled for image in list_images(folder))
    return (f"{others} images that the labels do not name are left out",) if others else ()


def _relative(image: Path, folder: Path) -> str:
    return image.relative_to(folder).as_posix() if image.is_relative_to(folder) else image.as_posix()
