"""Preprocessing of images, with OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Color, Crop, Decode, Layout, Resize
from edgec.errors import PipelineError
from edgec.runtime._opencv import opencv
from edgec.runtime.pipeline._plan import Array, Frame, Operation, Planner, Value, expect

_WHAT = "image preprocessing"
_CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}
_AXES = {"HWC": (0, 1, 2), "CHW": (2, 0, 1)}


def read_image(sample: Any, color: str) -> Array:
    """Return an image as uint8[h, w, c].

    Args:
        sample: A path, the bytes of an encoded file, or an array, which is returned as it is.
        color: Order of the channels: ``RGB``, ``BGR`` or ``GRAY``.

    Raises:
        PipelineError: It cannot be read, is no image, or an array of another shape or dtype.
    """
    if isinstance(sample, np.ndarray):
        return _checked_image(sample, color)
    if isinstance(sample, str | Path):
        return _decode(_read(Path(sample)), color, str(sample))
    if isinstance(sample, bytes | bytearray | memoryview):
        return _decode(np.frombuffer(sample, np.uint8), color, f"{len(sample)} bytes")
    raise PipelineError(
        f"decode: expected the path of an image, its bytes or an array uint8[h, w, c], "
        f"got {type(sample).__name__}"
    )


def _checked_image(image: Array, color: str) -> Array:
    channels = _CHANNELS[color]
    if channels == 1 and image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise PipelineError(
            f"decode: expected an image as uint8[h, w, {channels}] ({color}), "
            f"got {image.dtype}{list(image.shape)}"
        )
    return image


def _read(path: Path) -> Array:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as e:
        raise PipelineError(f"decode: cannot read {path}: {e.strerror or e}") from e


def _decode(encoded: Array, color: str, what: str) -> Array:
    cv2 = opencv(_WHAT)
    if not encoded.size:
        raise PipelineError(f"decode: {what} is empty, expected an encoded image such as JPEG or PNG")
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE if color == "GRAY" else cv2.IMREAD_COLOR)
    except cv2.error as e:
        raise PipelineError(f"decode: {what} cannot be decoded: {e.err}") from e
    if image is None:
        raise PipelineError(f"decode: {what} is no image that OpenCV can read, expected JPEG, PNG, BMP ...")
    if color == "GRAY":
        return np.asarray(image)[..., None]
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if color == "RGB" else image)


def plan_decode(step: Decode, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    expect(value == Value(), "decode must be the first step of its input")
    color = step.color
    return (lambda sample, _: read_image(sample, color)), Value(
        "uint8", (None, None, _CHANNELS[color]), "HWC", color
    )


def plan_resize(step: Resize, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    channels = _image_channels(step.step, value)
    expect(
        value.dtype in ("uint8", "float32"),
        f"resize takes images of uint8 or float32, here they are {value.dtype}: move it before `dtype`",
    )
    expect(
        len(step.pad) in (1, channels),
        f"resize: pad has {len(step.pad)} values, the image has {channels} channels",
    )
    size = (step.width, step.height)
    mode = {"stretch": _stretch, "letterbox": _letterbox, "cover": _cover}[step.mode]
    return mode(step), value._replace(shape=(size[1], size[0], channels))


def _interpolate(step: Resize) -> Callable[[Array, int, int, Frame], Array]:
    name = f"INTER_{step.interpolation.upper()}"

    def scale(image: Array, width: int, height: int, frame: Frame) -> Array:
        frame.scaled(width, height)
        if image.shape[:2] == (height, width):
            return image
        cv2 = opencv(_WHAT)
        scaled = cv2.resize(image, (width, height), interpolation=getattr(cv2, name))
        # OpenCV drops a last axis of size 1.
        return np.asarray(scaled).reshape(height, width, image.shape[2])

    return scale


def _stretch(step: Resize) -> Operation:
    scale, width, height = _interpolate(step), step.width, step.height
    return lambda image, frame: scale(image, width, height, frame)


def _letterbox(step: Resize) -> Operation:
    scale, width, height, centred = _interpolate(step), step.width, step.height, step.align == "center"
    pad = step.pad * 4 if len(step.pad) == 1 else step.pad

    def letterbox(image: Array, frame: Frame) -> Array:
        factor = min(width / image.shape[1], height / image.shape[0])
        inner_width = max(1, min(width, round(image.shape[1] * factor)))
        inner_height = max(1, min(height, round(image.shape[0] * factor)))
        left = (width - inner_width) // 2 if centred else 0
        top = (height - inner_height) // 2 if centred else 0
        inner = scale(image, inner_width, inner_height, frame)
        frame.moved(left, top, width, height)
        if (inner_width, inner_height) == (width, height):
            return inner
        cv2 = opencv(_WHAT)
        padded = cv2.copyMakeBorder(
            inner,
            top,
            height - inner_height - top,
            left,
            width - inner_width - left,
            cv2.BORDER_CONSTANT,
            value=pad,
        )
        return np.asarray(padded).reshape(height, width, image.shape[2])

    return letterbox


def _cover(step: Resize) -> Operation:
    scale, width, height = _interpolate(step), step.width, step.height

    def cover(image: Array, frame: Frame) -> Array:
        factor = max(width / image.shape[1], height / image.shape[0])
        outer_width = max(width, round(image.shape[1] * factor))
        outer_height = max(height, round(image.shape[0] * factor))
        # A strip of 1 x 100000 pixels would ask for gigabytes.
        expect(
            outer_width * outer_height <= 64 * width * height + (1 << 20),
            f"resize: an image of {image.shape[1]} x {image.shape[0]} pixels is too long and thin to cover "
            f"{width} x {height}",
        )
        return _cut(scale(image, outer_width, outer_height, frame), width, height, frame)

    return cover


def plan_crop(step: Crop, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    channels = _image_channels(step.step, value)
    width, height = step.width, step.height
    assert value.shape is not None
    for have, want, name in ((value.shape[0], height, "height"), (value.shape[1], width, "width")):
        expect(have is None or have >= want, f"crop: {name} {want} of an image that is {have}")

    def crop(image: Array, frame: Frame) -> Array:
        if image.shape[0] < height or image.shape[1] < width:
            raise PipelineError(
                f"crop: expected an image of at least {width} x {height} pixels, got {image.shape[1]} x "
                f"{image.shape[0]}: add a `resize` step before it"
            )
        return _cut(image, width, height, frame)

    return crop, value._replace(shape=(height, width, channels))


def _cut(image: Array, width: int, height: int, frame: Frame) -> Array:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    frame.moved(-left, -top, width, height)
    return image[top : top + height, left : left + width]


def plan_color(step: Color, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    _image_channels(step.step, value)
    assert value.shape is not None
    before, order = value.color or step.order, step.order
    expect(
        value.dtype in ("uint8", "float32"),
        f"color takes images of uint8 or float32, here they are {value.dtype}: move it before `dtype`",
    )

    def convert(image: Array, _: Frame) -> Array:
        return convert_color(image, before, order)

    after = value._replace(shape=(*value.shape[:2], _CHANNELS[step.order]), color=step.order)
    return (convert if value.color != step.order else _nothing), after


def convert_color(image: Array, before: str, order: str) -> Array:
    """Return an image [h, w, c] with its channels in another order: ``RGB``, ``BGR`` or ``GRAY``."""
    cv2 = opencv(_WHAT)
    converted = cv2.cvtColor(image, getattr(cv2, f"COLOR_{before}2{order}"))
    return np.asarray(converted).reshape(*image.shape[:2], -1)


def plan_layout(step: Layout, value: Value, _: TensorSpec) -> tuple[Operation, Value]:
    # An array that no `decode` read is taken as HWC too.
    expect(value.layout in (None, "HWC"), f"layout: the image is {value.layout} already")
    expect(
        value.shape is None or len(value.shape) == 3,
        f"layout: expected an image [h, w, c], here it is {value}",
    )
    axes = _AXES[step.order.lstrip("N")]
    batch = step.order.startswith("N")
    # Only what `decode` read is an image for certain, and OpenCV at hand.
    split = value.layout == "HWC" and axes == _AXES["CHW"] and value.dtype in ("uint8", "float32")

    def arrange(image: Array, _: Frame) -> Array:
        expect(image.ndim == 3, f"layout: expected an image [h, w, c], got {list(image.shape)}")
        if split and image.shape[2] > 1:
            arranged = _planes(image)
        else:
            arranged = np.ascontiguousarray(image.transpose(axes))
        return arranged[None] if batch else arranged

    shape = value.shape or (None, None, None)
    arranged = tuple(shape[axis] for axis in axes)
    return arrange, value._replace(shape=(1, *arranged) if batch else arranged, layout=step.order)


def _planes(image: Array) -> Array:
    """Return an image [h, w, c] as [c, h, w]; OpenCV takes a sixth of the time of numpy's transposition."""
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), image.dtype)
    # Of a part of an image OpenCV splits row by row, which takes up to ten times as long as this copy.
    opencv(_WHAT).split(np.ascontiguousarray(image), list(planes))
    return planes


def _image_channels(name: str, value: Value) -> int:
    expect(value.layout is not None, f"{name} takes an image: put a `decode` step first")
    expect(
        value.layout == "HWC",
        f"{name} takes an image [h, w, c], here it is {value.layout}: move it before `layout`",
    )
    assert value.shape is not None
    channels = value.shape[2]
    assert channels is not None
    return channels


def _nothing(value: Any, _: Frame) -> Any:
    return value


PLANNERS: dict[type, Planner] = {
    Decode: plan_decode,
    Resize: plan_resize,
    Crop: plan_crop,
    Color: plan_color,
    Layout: plan_layout,
}
