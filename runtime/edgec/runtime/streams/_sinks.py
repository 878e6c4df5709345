"""Where results go: lines of JSON, videos and images with predictions drawn on them; not MQTT, see `_mqtt`.

A sink is any function of a result; those here are closed too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.errors import OutputError
from edgec.runtime._opencv import opencv
from edgec.runtime.annotation import draw
from edgec.runtime.streams._results import StreamResult

VIDEOS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}


class Sink(Protocol):
    """Takes results, and is closed after the last."""

    def __call__(self, result: StreamResult, /) -> None:
        """Take one.

        Raises:
            OutputError: It cannot be written.
        """

    def close(self) -> None:
        """Write what is not written yet, and give back what is held; again, it does nothing."""


class JsonlSink:
    """Results as lines of JSON, each there as soon as the result is."""

    def __init__(self, path: str | Path) -> None:
        """Begin a file; one that is there is overwritten.

        Raises:
            OutputError: It cannot be written.
        """
        self._path = Path(path)
        try:
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
        except OSError as e:
            raise OutputError(f"cannot write {path}: {e.strerror}") from e

    def __call__(self, result: StreamResult) -> None:
        """Write one.

        Raises:
            OutputError: The disk is full.
        """
        try:
            self._file.write(json.dumps(result.to_dict(), allow_nan=False) + "\n")
        except OSError as e:
            raise OutputError(f"cannot write {self._path}: {e.strerror}") from e

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonlSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class VideoSink:
    """A video of the pictures, with the predictions drawn on them.

    Attributes:
        frames: Written so far; results without a picture are passed over.
    """

    def __init__(self, path: str | Path, *, fps: float = 25.0) -> None:
        """Begin a video; it has the size of the first picture, to which others are brought.

        Args:
            path: ``.mp4``, ``.mkv`` or ``.avi``.
            fps: At which it is played.

        Raises:
            MissingExtraError: OpenCV is not installed.
            OutputError: There is no video of such a name.
        """
        self._path = Path(path)
        if self._path.suffix.lower() not in VIDEOS:
            raise OutputError(f"cannot write {path}: expected a video that ends in {', '.join(VIDEOS)}")
        self._cv2 = opencv("writing video")
        self._fps = fps
        self._size: tuple[int, int] = (0, 0)
        self._writer: Any = None
        self.frames = 0

    def __call__(self, result: StreamResult) -> None:
        """Draw one.

        Raises:
            OutputError: The video cannot be written.
        """
        picture = picture_of(result)
        if picture is None:
            return
        drawn = drawn_on(picture, result.prediction)
        writer = self._writer or self._begin(drawn.shape[1], drawn.shape[0])
        if (drawn.shape[1], drawn.shape[0]) != self._size:
            drawn = self._cv2.resize(drawn, self._size)
        writer.write(drawn)
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def _begin(self, width: int, height: int) -> Any:
        self._size = width, height
        code = self._cv2.VideoWriter_fourcc(*VIDEOS[self._path.suffix.lower()])
        self._writer = self._cv2.VideoWriter(str(self._path), code, self._fps, self._size)
        if not self._writer.isOpened():
            raise OutputError(f"cannot write {self._path}: OpenCV cannot begin such a video there")
        return self._writer


class ImageSink:
    """Each picture as a file, with the prediction drawn on it: ``000017-porch.jpg``.

    Attributes:
        frames: Written so far; results without a picture are passed over.
    """

    def __init__(self, folder: str | Path, *, suffix: str = ".jpg") -> None:
        """Make the folder.

        Raises:
            MissingExtraError: OpenCV is not installed.
            OutputError: The folder cannot be made.
        """
        self._cv2 = opencv("writing images")
        self._folder, self._suffix = Path(folder), suffix
        self.frames = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"cannot make {folder}: {e.strerror}") from e

    def __call__(self, result: StreamResult) -> None:
        """Draw one.

        Raises:
            OutputError: It cannot be written.
        """
        picture = picture_of(result)
        if picture is None:
            return
        kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(result.name).stem)[:100]
        path = self._folder / f"{result.index:06}{'-' * bool(kept)}{kept}{self._suffix}"
        try:
            written = self._cv2.imwrite(str(path), drawn_on(picture, result.prediction))
        except self._cv2.error as e:
            raise OutputError(f"cannot write {path}: {e}") from e
        if not written:
            raise OutputError(f"cannot write {path}")
        self.frames += 1

    def close(self) -> None:
        """Do nothing: every image is there."""


def picture_of(result: StreamResult) -> NDArray[Any] | None:
    """Return what a result is drawn on, uint8[h, w, 3] in BGR: its picture, or what its sample encodes."""
    if result.picture is not None:
        return result.picture
    sample = result.sample
    if not isinstance(sample, Path | bytes):
        return None
    cv2 = opencv("reading images")
    if isinstance(sample, Path):
        return cv2.imread(str(sample), cv2.IMREAD_COLOR)  # type: ignore[no-any-return]
    return cv2.imdecode(np.frombuffer(sample, np.uint8), cv2.IMREAD_COLOR)  # type: ignore[no-any-return]


def drawn_on(picture: NDArray[Any], prediction: Mapping[str, Any]) -> NDArray[Any]:
    """Return a copy of a picture with a prediction on it; of a classification, the best class in words."""
    drawn = draw(picture, prediction)
    if "boxes" in prediction or not len(prediction.get("classes", ())):
        return drawn
    labels = prediction.get("labels")
    text = str(labels[0]) if labels else f"class {prediction['classes'][0]}"
    if "scores" in prediction:
        text += f" {float(prediction['scores'][0]):.2f}"
    cv2 = opencv("drawing on images")
    size = max(0.4, min(picture.shape[:2]) / 400)
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        place, line = (4, round(24 * size) + 4), max(1, round(width * size))
        cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, line, cv2.LINE_AA)
    return drawn


def open_sink(where: str) -> Sink:
    """Return the sink that a text names: ``mqtt://host/topic``, or the path of a ``.jsonl``.

    Raises:
        MissingExtraError: A package is missing.
        OutputError: It cannot be written there, or there is no such sink.
    """
    if where.startswith(("mqtt://", "mqtts://")):
        from edgec.runtime.streams._mqtt import MqttSink

        try:
            return MqttSink(where)
        except ValueError as e:
            raise OutputError(f"cannot write there: {e}") from e
    if not where.lower().endswith(".jsonl"):
        raise OutputError(f"cannot write {where}: expected a name that ends in .jsonl, or mqtt://host/topic")
    return JsonlSink(where)


def annotation_sink(where: str | Path) -> VideoSink | ImageSink:
    """Return the sink that draws where a path says: a video by its suffix, else a folder of images."""
    path = Path(where)
    return VideoSink(path) if path.suffix.lower() in VIDEOS else ImageSink(path)
