"""Steps on images. An image is uint8[h, w, c] until a step says otherwise."""

from __future__ import annotations

from edgec.artifact.steps._step import Step, key, numbers, one_of, text, whole

MAX_SIDE = 16384
"""Longest side of an image that a step may ask for, in pixels."""

MAX_PIXELS = 1 << 26
"""Most pixels of an image that a step may ask for: as float32 of three channels they are 768 MiB."""


class InputStep(Step, step=""):
    """A step of `preprocess`; `input` names the model input it prepares."""

    input: str | None = key(
        text(), "Model input that the step prepares; needed where there are several.", default=None
    )


class Decode(InputStep, step="decode"):
    """Read an image: a path, the bytes of an encoded file, or an array uint8[h, w, c].

    The orientation that a photo's EXIF data asks for is applied. An array is taken as it is: its
    channels must already be in the order that `color` names.
    """

    color: str = key(one_of("RGB", "BGR", "GRAY"), "Order of the channels it gives.", default="RGB")


class Resize(InputStep, step="resize"):
    """Scale an image to a size.

    `stretch` ignores the aspect ratio, `letterbox` keeps it and pads, `cover` keeps it and cuts what
    stands out.
    """

    width: int = key(whole(1, MAX_SIDE), "Width of the result in pixels.")
    height: int = key(whole(1, MAX_SIDE), "Height of the result in pixels.")
    mode: str = key(
        one_of("stretch", "letterbox", "cover"), "What happens to the aspect ratio.", default="stretch"
    )
    interpolation: str = key(
        one_of("nearest", "linear", "cubic", "area"), "As OpenCV defines it.", default="linear"
    )
    pad: tuple[float, ...] = key(
        numbers(4, 0, 255), "Value of the padding, one or one per channel (`letterbox`).", default=(114.0,)
    )
    align: str = key(
        one_of("center", "top-left"),
        "Where the image lies within the padding (`letterbox`).",
        default="center",
    )

    def validate(self) -> None:
        _bounded_area(self, self.width, self.height)


class Crop(InputStep, step="crop"):
    """Cut out the centre of an image."""

    width: int = key(whole(1, MAX_SIDE), "Width of the result in pixels.")
    height: int = key(whole(1, MAX_SIDE), "Height of the result in pixels.")

    def validate(self) -> None:
        _bounded_area(self, self.width, self.height)


class Color(InputStep, step="color"):
    """Change the order of the channels."""

    order: str = key(one_of("RGB", "BGR", "GRAY"), "Order of the channels it gives.")


class Layout(InputStep, step="layout"):
    """Change the order of the axes of an image; `N` adds a batch axis of size 1."""

    order: str = key(one_of("NHWC", "NCHW", "HWC", "CHW"), "Order of the axes it gives.")


def _bounded_area(step: Step, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise step.refuse(f"expected at most {MAX_PIXELS} pixels, got {width} x {height}")
