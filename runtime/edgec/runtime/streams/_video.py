"""Cameras, video files and streams over the network, through OpenCV."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any, Literal
from urllib.parse import urlsplit

from edgec.errors import SourceError
from edgec.runtime._opencv import opencv
from edgec.runtime.streams._source import Captured

Color = Literal["RGB", "BGR", "GRAY"]
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")


class Video:
    """Frames of a camera, a video file or an address: uint8[h, w, 3], GRAY uint8[h, w, 1].

    A frame is as old as OpenCV's word that it is there. What the camera, the network and the decoder held it
    back before is not known.

    Attributes:
        name: For messages; without the password of an address.
        live: Whether what is not read in time is lost.
        lost: Frames that could not be decoded.
    """

    def __init__(
        self,
        where: int | str | Path,
        *,
        color: Color = "RGB",
        realtime: bool = False,
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a source; nothing is opened yet.

        Args:
            where: Number of a camera, ``/dev/video0``, path of a file, or an address: ``rtsp://...``.
            color: Order of the channels of the samples; pictures are BGR.
            realtime: Whether a file takes as long as it lasts, as a camera would.
            timeout_s: How long to wait for an address, and for each of its frames.
            clock: Monotonic, in seconds; that of the stream.

        Raises:
            ValueError: There is no such color.
        """
        if color not in ("RGB", "BGR", "GRAY"):
            raise ValueError(f"expected a color of RGB, BGR or GRAY, got {color!r}")
        self._where = where if isinstance(where, int) else str(where)
        self._is_address = is_address(where)
        self._endless = isinstance(where, int) or self._is_address or str(where).startswith("/dev/")
        self._color = color
        self._realtime = realtime and not self._endless
        self._timeout_ms = int(timeout_s * 1e3)
        self._clock = clock
        self._capture: Any = None
        self._frames = 0
        self._start, self._per_frame_s = 0.0, 0.0
        self.name = f"camera {where}" if isinstance(where, int) else without_password(str(where))
        self.live = self._endless or self._realtime
        self.lost = 0

    def open(self) -> None:
        """Open it.

        Raises:
            MissingExtraError: OpenCV is not installed.
            SourceError: It cannot be opened.
        """
        self._cv2 = cv2 = opencv("video")
        if not self._endless and not Path(str(self._where)).is_file():
            raise SourceError(f"{self.name}: there is no such file")
        began = self._clock()
        if self._is_address:
            limit_ms = self._timeout_ms
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
            self._capture = cv2.VideoCapture(str(self._where), cv2.CAP_FFMPEG, limits)
        else:
            self._capture = cv2.VideoCapture(
                self._where if isinstance(self._where, int) else str(self._where)
            )
        if not self._capture.isOpened():
            raise SourceError(f"{self.name} {self._why_not(self._clock() - began)}", transient=self._endless)
        if self._endless:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver lets it: no old frames
        self._frames = 0
        self._start = self._clock()
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._per_frame_s = 1 / rate if rate > 0 else 1 / 25

    def read(self, stop: Event) -> Captured | None:
        """Wait for the next frame.

        Raises:
            SourceError: The camera or the address gives no more, or there is no frame in the file.
        """
        while not stop.is_set():
            if self._realtime:
                due_s = self._start + self._frames * self._per_frame_s - self._clock()
                if due_s > 0 and stop.wait(due_s):
                    return None
            if not self._capture.grab():
                self._check_end()
                return None
            captured_s = self._clock()
            self._frames += 1
            there, picture = self._capture.retrieve()
            if not there:
                self.lost += 1
                continue
            sample = self._colored(picture)
            name = f"frame {self._frames - 1}"
            return Captured(sample=sample, picture=picture, name=name, captured_s=captured_s)
        return None

    def close(self) -> None:
        """Give the camera, file or connection back."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _colored(self, picture: Any) -> Any:
        if self._color == "BGR":
            return picture
        if self._color == "RGB":
            return self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB)
        return self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2GRAY)[..., None]

    def _check_end(self) -> None:
        if self._endless:
            raise SourceError(f"{self.name} gives no more frames", transient=True)
        if not self._frames:
            raise SourceError(
                f"{self.name}: OpenCV finds no frame in it; expected a video such as .mp4 or .avi"
            )

    def _why_not(self, took_s: float) -> str:
        if self._is_address and took_s * 1e3 < self._timeout_ms:
            return (
                "cannot be opened, and says so at once: is it on, and are address, path and password right?"
            )
        if self._is_address:
            return f"gives no video within {self._timeout_ms / 1e3:g} s: is it on, and is the address right?"
        if self._endless:
            return "does not open: is it plugged in, may this user read it, does another program have it?"
        return "is no video that OpenCV can read, expected .mp4, .avi, .mkv ..."


def is_address(where: object) -> bool:
    """Whether something is the address of a video stream."""
    return isinstance(where, str) and where.partition("://")[0].lower() in SCHEMES and "://" in where


def without_password(address: str) -> str:
    """Return an address as it may be shown: without user and password."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()
