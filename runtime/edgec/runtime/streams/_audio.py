"""Sound as a source: windows over files, pipes, microphones and arrays."""

from __future__ import annotations

import os
import select
import subprocess
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgec.errors import SourceError
from edgec.runtime.streams._source import Captured

Sound = NDArray[np.float32]

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_BLOCK = 4096
_WAIT_S = 0.1


class AudioWindows:
    """Windows over a sequence of samples, mono, each `hop` after the one before: [size].

    A window is as old as its last sample. A file ends with a window that is filled up with zeros, so that
    every sample is in one.

    Attributes:
        name: For messages.
        live: Whether what is not read in time is lost.
        lost: Always 0.
    """

    def __init__(
        self,
        audio: str | Path | BinaryIO | Iterable[Any],
        *,
        size: int,
        rate: int,
        hop: int | None = None,
        lead: int = 0,
        dtype: Literal["float32", "int16"] = "float32",
        realtime: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a source; nothing is opened yet.

        Args:
            audio: Path of a ``.wav`` (or ``.flac``, ``.ogg``, where soundfile is installed); a binary file or
                pipe of 16-bit little-endian samples, as ``arecord -t raw -f S16_LE`` writes them; or an
                iterable of arrays of any length: of integers, or floats from -1 to 1, [n] or [n, channels].
            size: Samples of a window.
            rate: Samples per second; a file has to have it.
            hop: Samples from one window to the next; None for `size`.
            lead: Zeros before the first sample, for models that look back.
            dtype: Of a window: ``float32`` from -1 to 1, or ``int16``.
            realtime: Whether a file takes as long as it lasts, as a microphone would.
            clock: Monotonic, in seconds; that of the stream.

        Raises:
            ValueError: A number is below 1, or `lead` below 0.
        """
        hop = size if hop is None else hop
        if min(size, hop, rate) < 1 or lead < 0:
            raise ValueError(
                f"expected size, hop and rate of at least 1 and a lead of at least 0, got {size}, {hop}, "
                f"{rate} and {lead}"
            )
        self._audio = audio
        self._size, self._hop, self._rate, self._lead = size, hop, rate, lead
        self._int16 = dtype == "int16"
        self._is_pipe = not isinstance(audio, str | Path) and hasattr(audio, "read")
        self._realtime = realtime and not self._is_pipe
        self._clock = clock
        self._stop = Event()
        self._windows: Iterator[tuple[int, Sound]] = iter(())
        self._start = 0.0
        self.name = str(audio) if isinstance(audio, str | Path) else "the sound"
        self.live = self._is_pipe or self._realtime
        self.lost = 0

    def open(self) -> None:
        """Begin to read.

        Raises:
            SourceError: The file cannot be read, or has another rate.
        """
        self._start = self._clock()
        self._windows = _windows(self._blocks(), self._size, self._hop, self._lead)

    def read(self, stop: Event) -> Captured | None:
        """Wait for the next window.

        Raises:
            SourceError: The sound cannot be read.
        """
        self._stop = stop
        found = None if stop.is_set() else next(self._windows, None)
        if found is None or stop.is_set():
            return None
        end, window = found
        if self._realtime:
            due_s = self._start + (end - self._lead) / self._rate - self._clock()
            if due_s > 0 and stop.wait(due_s):
                return None
        begin_s = max(0.0, (end - self._size - self._lead) / self._rate)
        sample = np.clip(np.round(window * 32768), -32768, 32767).astype(np.int16) if self._int16 else window
        return Captured(sample=sample, name=f"{begin_s:.3f} s", captured_s=self._clock())

    def close(self) -> None:
        """Close what was opened; a pipe that was given stays open."""
        self._windows = iter(())

    def _blocks(self) -> Iterator[Sound]:
        if isinstance(self._audio, str | Path):
            return _read_file(Path(self._audio), self._rate)
        if self._is_pipe:
            return read_pcm(cast("BinaryIO", self._audio), lambda: self._stop.is_set())
        return map(_mono, cast("Iterable[Any]", self._audio))


class Microphone:
    """Windows of what a microphone hears, through a program that writes samples: ``arecord``.

    Attributes:
        name: For messages.
        live: True.
        lost: Always 0; arecord says on standard error when it had to drop samples.
    """

    def __init__(
        self,
        *,
        size: int,
        rate: int,
        hop: int | None = None,
        lead: int = 0,
        dtype: Literal["float32", "int16"] = "float32",
        device: str | None = None,
        command: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a source; nothing is started yet.

        Args:
            size: Samples of a window.
            rate: Samples per second.
            hop: Samples from one window to the next; None for `size`.
            lead: Zeros before the first sample.
            dtype: Of a window.
            device: Of ALSA, as ``arecord -L`` lists them: ``plughw:1``; None for the default.
            command: Another program that writes 16-bit little-endian mono samples of this rate.
            clock: Monotonic, in seconds; that of the stream.
        """
        chosen = () if device is None else ("-D", device)
        recorder = ("arecord", "-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", str(rate), *chosen)
        self._command = tuple(command or recorder)
        self._make = partial(AudioWindows, size=size, rate=rate, hop=hop, lead=lead, dtype=dtype, clock=clock)
        self._process: subprocess.Popen[bytes] | None = None
        self._windows: AudioWindows | None = None
        self.name = "the microphone" if device is None else f"the microphone {device}"
        self.live = True
        self.lost = 0

    def open(self) -> None:
        """Start the program.

        Raises:
            SourceError: It is not installed.
        """
        try:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        except OSError as e:
            raise SourceError(
                f"{self.name}: cannot start {self._command[0]}: {e.strerror}; arecord comes with alsa-utils"
            ) from e
        assert self._process.stdout is not None
        self._windows = self._make(self._process.stdout)
        self._windows.open()

    def read(self, stop: Event) -> Captured | None:
        """Wait for the next window.

        Raises:
            SourceError: The program has ended.
        """
        assert self._windows is not None
        assert self._process is not None
        found = self._windows.read(stop)
        if found is None and not stop.is_set():
            raise SourceError(
                f"{self.name}: {self._command[0]} has ended with status {self._process.wait()}",
                transient=True,
            )
        return found

    def close(self) -> None:
        """End the program."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read_pcm(pipe: BinaryIO, stopped: Callable[[], bool]) -> Iterator[Sound]:
    """Yield samples of a file or pipe of 16-bit little-endian ones, until it ends or `stopped` says so."""
    odd = b""
    while not stopped():
        data = _read_some(pipe)
        if data is None:
            continue
        if not data:
            return
        data = odd + data
        whole = len(data) // 2 * 2
        odd = data[whole:]
        yield _mono(np.frombuffer(data[:whole], "<i2"))


def _read_some(pipe: BinaryIO) -> bytes | None:
    """Return what there is; nothing at the end; None where there was nothing for a while."""
    try:
        number = pipe.fileno()
    except (OSError, AttributeError):  # in memory
        return pipe.read(2 * _BLOCK)
    try:
        if not select.select([number], [], [], _WAIT_S)[0]:
            return None
        return os.read(number, 2 * _BLOCK)
    except OSError as e:
        raise SourceError(f"the sound cannot be read: {e.strerror}") from e


def _windows(blocks: Iterator[Sound], size: int, hop: int, lead: int) -> Iterator[tuple[int, Sound]]:
    """Yield windows, and where each ends, `lead` included."""
    waiting = np.zeros(lead, np.float32)
    begin, covered = 0, lead  # of the sequence: where `waiting` begins, and up to where it was given out
    gap = 0  # samples between two windows that are yet to come
    for block in blocks:
        passed = min(gap, len(block))
        gap -= passed
        waiting = np.concatenate([waiting, block[passed:]])
        while len(waiting) >= size:
            covered = begin + size
            yield covered, waiting[:size].copy()
            gap = max(0, hop - len(waiting))
            waiting, begin = waiting[hop:], begin + hop
    if len(waiting) and begin + len(waiting) > covered:
        yield begin + size, np.pad(waiting, (0, size - len(waiting)))


def _mono(block: Any) -> Sound:
    array = np.asarray(block)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
        raise SourceError(
            f"expected sound as an array [n] or [n, channels], got {array.dtype}{list(array.shape)}"
        )
    if array.dtype.kind == "u":
        half = 2.0 ** (8 * array.dtype.itemsize - 1)
        scaled = (array.astype(np.float32) - half) / half
    elif array.dtype.kind == "i":
        scaled = array.astype(np.float32) / 2.0 ** (8 * array.dtype.itemsize - 1)
    else:
        scaled = array.astype(np.float32)
    return np.asarray(scaled if scaled.ndim == 1 else scaled.mean(axis=1), np.float32)


def _read_file(path: Path, rate: int) -> Iterator[Sound]:
    try:
        file = wave.open(str(path), "rb")  # noqa: SIM115 - closed by who reads it
    except OSError as e:
        raise SourceError(f"{path}: {e.strerror}") from e
    except (wave.Error, EOFError) as e:
        return _read_other(path, rate, e)
    _check_rate(path, file.getframerate(), rate, file.close)
    return _read_wave(file)


def _read_wave(file: wave.Wave_read) -> Iterator[Sound]:
    with file:
        channels, width = file.getnchannels(), file.getsampwidth()
        while data := file.readframes(_BLOCK):
            yield _mono(_integers(data, width).reshape(-1, channels))


def _integers(data: bytes, width: int) -> NDArray[Any]:
    """Return PCM as integers: 8 bits are unsigned, 24 become the upper ones of 32."""
    if width != 3:
        return np.frombuffer(data, {1: "u1", 2: "<i2", 4: "<i4"}[width])
    padded = np.zeros((len(data) // 3, 4), np.uint8)
    padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return padded.view("<i4")


def _read_other(path: Path, rate: int, problem: Exception) -> Iterator[Sound]:
    """Read with soundfile, where it is there, what the standard library cannot."""
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as e:  # OSError: without libsndfile
        raise SourceError(
            f"{path} is no PCM .wav ({problem}): convert it, or install soundfile for other kinds"
        ) from e
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as e:
        raise SourceError(f"{path}: {e.error_string}") from e
    _check_rate(path, file.samplerate, rate, file.close)
    return _read_soundfile(file)


def _read_soundfile(file: Any) -> Iterator[Sound]:
    with file:
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            yield _mono(block)


def _check_rate(path: Path, found: int, wanted: int, close: Callable[[], None]) -> None:
    if found != wanted:
        close()
        raise SourceError(
            f"{path} has {found} samples per second, {wanted} were expected: convert it, for instance with  "
            f"sox {path.name} -r {wanted} converted.wav"
        )
