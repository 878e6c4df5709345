"""What names a source, and which source it names."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

from edgec.artifact.steps import Decode, Tokenize
from edgec.errors import SourceError
from edgec.runtime.streams._audio import SOUNDS, AudioWindows, Microphone
from edgec.runtime.streams._files import ARRAYS, IMAGES, Files
from edgec.runtime.streams._mqtt import SCHEMES as MQTT
from edgec.runtime.streams._mqtt import MqttSource, decode_json
from edgec.runtime.streams._source import Captured, Items, Source
from edgec.runtime.streams._video import Color, Video, is_address

_KNOWN = (
    "0 (a camera), /dev/video0, rtsp://..., http://..., mqtt://host/topic, mic, mic:DEVICE, - (samples of "
    "sound on standard input), or the path of a video, an image, a sound, a folder or a pattern"
)


def open_source(
    where: str | int | Path,
    session: object = None,
    *,
    realtime: bool = False,
    watch: bool = False,
    window: int | None = None,
    hop: int | None = None,
    rate: int = 16_000,
) -> Source:
    """Return the source that a text names; it is opened when a stream begins.

    * a number, ``/dev/video0``: a camera
    * ``rtsp://``, ``http://``, ``udp://`` ...: video over the network
    * ``mqtt://host/topic``, ``mqtts://``: messages
    * ``mic``, ``mic:plughw:1``: a microphone, ``-``: 16-bit samples on standard input
    * a path: a sound, an image, a folder of images and ``.npy`` arrays, a pattern, else a video

    Args:
        where: One of these.
        session: What will predict: its pipeline says which colors, and its inputs which arrays, it takes.
        realtime: Whether a video or a sound takes as long as it lasts.
        watch: Whether to wait for new files of a folder or a pattern.
        window: Samples of sound that a model takes; None for the last axis of its first input.
        hop: Samples from one window to the next; None for `window`.
        rate: Samples of sound per second.

    Raises:
        SourceError: Nothing is named so, or what is needed to read it is not said.
    """
    text = str(where)
    if text.isascii() and text.isdigit():
        return Video(int(text), color=_color(session))
    if is_address(text) or text.startswith("/dev/video"):
        return Video(text, color=_color(session))
    if text.startswith(tuple(f"{scheme}://" for scheme in MQTT)):
        return _mqtt(text, session)
    if text == "-" or text == "mic" or text.startswith("mic:") or Path(text).suffix.lower() in SOUNDS:
        return _sound(text, session, realtime, window, hop, rate)
    if Path(text).is_dir() or (glob.has_magic(text) and not Path(text).exists()):
        return Files(text, watch=watch)
    if not Path(text).exists():
        raise SourceError(f"there is no source {text!r}; expected {_KNOWN}")
    if Path(text).suffix.lower() in IMAGES + ARRAYS:
        return Files(text)
    return Video(text, color=_color(session), realtime=realtime)


def as_source(source: Source | str | int | Path | Iterable[Any], session: object) -> Source:
    """Return what is a source already, or make one: of what `open_source` understands, or an iterable.

    Raises:
        SourceError: It is none of these.
    """
    if isinstance(source, str | int | Path):
        return open_source(source, session)
    if isinstance(source, Source):
        return source
    if isinstance(source, Iterable) and not isinstance(source, Captured):
        return Items(source)
    raise SourceError(f"expected a source, an iterable, or {_KNOWN}; got {type(source).__name__}")


def _steps(session: object) -> tuple[Any, ...]:
    """Preprocessing of what predicts, where it says: of sessions and chains."""
    for holder in (getattr(session, "manifest", None), getattr(session, "spec", None), session):
        pipeline = getattr(holder, "pipeline", None)
        if pipeline is not None:
            return tuple(pipeline.preprocess)
    return ()


def _color(session: object) -> Color:
    colors = [step.color for step in _steps(session) if isinstance(step, Decode)]
    return cast("Color", colors[0]) if colors else "RGB"


def _mqtt(url: str, session: object) -> MqttSource:
    steps = _steps(session)
    try:
        if any(isinstance(step, Tokenize) for step in steps):
            return MqttSource(url, lambda payload: payload.decode("utf-8", "replace"))
        dtypes = {spec.name: spec.dtype for spec in getattr(session, "inputs", ())}
        if not dtypes or any(isinstance(step, Decode) for step in steps):
            return MqttSource(url)
        return MqttSource(url, decode_json(dtypes))
    except ValueError as e:
        raise SourceError(f"{e}, got {url[:8]}...") from e


def _sound(
    text: str, session: object, realtime: bool, window: int | None, hop: int | None, rate: int
) -> AudioWindows | Microphone:
    inputs = getattr(session, "inputs", ())
    size = window or (inputs[0].shape[-1] if inputs and inputs[0].shape else None)
    if not isinstance(size, int):
        raise SourceError("say how many samples of sound the model takes: window=512, --window 512")
    dtype: Literal["int16", "float32"] = "int16" if inputs and inputs[0].dtype == "int16" else "float32"
    if text.partition(":")[0] == "mic":
        device = text.partition(":")[2] or None
        return Microphone(size=size, hop=hop, rate=rate, dtype=dtype, device=device)
    audio = sys.stdin.buffer if text == "-" else text
    return AudioWindows(audio, size=size, hop=hop, rate=rate, dtype=dtype, realtime=realtime)
