"""Files and sound as sources."""

from __future__ import annotations

import io
import os
import sys
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.streams.parts import Clock, open_files, stream_threads

from edgec.errors import DataError, SourceError
from edgec.runtime.streams import AudioWindows, Captured, Microphone, Source, Stream, open_source
from edgec.runtime.streams._files import Files

RATE = 8000


class Nothing:
    """Predicts nothing, of anything."""

    def predict(self, sample: Any) -> dict[str, Any]:
        return {}


def read_all(source: Source) -> list[Captured]:
    stop, found = threading.Event(), []
    source.open()
    while (captured := source.read(stop)) is not None:
        found.append(captured)
    source.close()
    return found


# Files


def test_a_folder_gives_images_as_paths_and_arrays_as_arrays(tmp_path: Path) -> None:
    (tmp_path / "b.JPG").write_bytes(b"not looked at here")
    (tmp_path / "a.png").write_bytes(b"neither")
    (tmp_path / "notes.txt").write_text("no sample")
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "c.npy", np.arange(3))
    found = read_all(open_source(tmp_path))
    assert [f.name for f in found] == ["a.png", "b.JPG", "c.npy"]
    assert [f.sample for f in found[:2]] == [tmp_path / "a.png", tmp_path / "b.JPG"]
    np.testing.assert_array_equal(found[2].sample, np.arange(3))
    assert [f.name for f in read_all(open_source(f"{tmp_path}/*.txt"))] == ["notes.txt"]
    assert [f.name for f in read_all(open_source(tmp_path / "a.png"))] == ["a.png"]


def test_a_file_with_magic_in_its_name_is_that_file(tmp_path: Path) -> None:
    for name in ("a[1].png", "a1.png"):
        (tmp_path / name).write_bytes(b"")
    assert [f.name for f in read_all(open_source(tmp_path / "a[1].png"))] == ["a[1].png"]


def test_a_folder_with_nothing_in_it_or_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file of .*png"):
        Files(tmp_path).open()
    with pytest.raises(SourceError, match="no file that fits"):
        Files(tmp_path / "*.png").open()
    with pytest.raises(SourceError, match="no such folder"):
        Files(tmp_path / "gone").open()


def test_an_array_that_is_none_or_would_run_code_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"text")
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(tmp_path / "c.npy", np.ones(2))
    with Stream(tmp_path, Nothing(), on_error="drop") as stream:
        assert [r.name for r in stream] == ["c.npy"]
        assert stream.statistics.dropped["source"] == 2
    with Stream(tmp_path, Nothing()) as stream, pytest.raises(DataError, match=r"a\.npy"):
        next(stream)


def test_watched_files_come_once_they_are_whole_and_again_when_replaced(tmp_path: Path) -> None:
    clock = Clock()
    source = Files(tmp_path, watch=True, poll_s=0, clock=clock)
    stop = threading.Event()
    source.open()  # of an empty folder
    half = tmp_path / "a.png"
    half.write_bytes(b"1")
    looks: list[list[str]] = []

    def look() -> list[str]:
        source._look(settled=False)
        names = []
        while source._found:
            found = source.read(stop)
            assert found is not None
            assert found.captured_s == clock.now
            names.append(found.name)
        return names

    looks.append(look())  # seen, perhaps still growing
    half.write_bytes(b"12")
    looks.append(look())  # it was
    looks.append(look())  # not any more
    looks.append(look())
    half.write_bytes(b"123")
    looks.append(look())
    clock.pass_s(5)
    looks.append(look())
    half.unlink()
    looks.append(look())
    half.write_bytes(b"123")
    looks += [look(), look()]
    assert looks == [[], [], ["a.png"], [], [], ["a.png"], [], [], ["a.png"]]
    assert not source.live


def test_a_watched_folder_feeds_a_stream_until_it_is_closed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(1))
    with Stream(Files(tmp_path, watch=True, poll_s=0.002), Nothing()) as stream:
        assert next(stream).name == "a.npy"
        np.save(tmp_path / "b.npy", np.zeros(1))
        assert next(stream).name == "b.npy"
    assert stream_threads() == []


def test_a_watched_folder_that_goes_away_is_an_error_that_may_pass(tmp_path: Path) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    source = Files(folder, watch=True, poll_s=0)
    source.open()
    folder.rmdir()
    with pytest.raises(SourceError) as caught:
        source.read(threading.Event())
    assert caught.value.transient


# Sound


def tone(samples: int) -> NDArray[np.int16]:
    return (20_000 * np.sin(np.arange(samples) / 7)).astype(np.int16)


def write_wav(path: Path, frames: bytes, *, width: int = 2, channels: int = 1, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return path


def expected_windows(sound: NDArray[Any], size: int, hop: int, lead: int = 0) -> list[NDArray[Any]]:
    """Windows, the plain way: until every sample is in one, those in gaps between windows left out."""
    sound = np.concatenate([np.zeros(lead, sound.dtype), sound])
    windows, start, covered = [], 0, lead
    while start + size <= len(sound):
        windows.append(sound[start : start + size])
        covered = start + size
        start += hop
    if len(sound) > max(covered, start):
        windows.append(np.pad(sound[start:], (0, start + size - len(sound))))
    return windows


@pytest.mark.parametrize("samples", [1, 99, 100, 101, 4096, 10_000, 12_345])
@pytest.mark.parametrize(("size", "hop", "lead"), [(100, 100, 0), (100, 40, 0), (100, 160, 0), (96, 64, 32)])
def test_windows_cover_a_file_exactly(tmp_path: Path, samples: int, size: int, hop: int, lead: int) -> None:
    sound = tone(samples)
    path = write_wav(tmp_path / "a.wav", sound.tobytes())
    found = read_all(AudioWindows(path, size=size, hop=hop, lead=lead, rate=RATE, dtype="int16"))
    wanted = expected_windows(sound, size, hop, lead)
    assert len(found) == len(wanted)
    for captured, window in zip(found, wanted, strict=True):
        assert captured.sample.dtype == np.int16
        np.testing.assert_array_equal(captured.sample, window)


def test_windows_say_where_they_begin_and_are_floats_within_one(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.array([-32768, 0, 16384, 32767], "<i2").tobytes(), rate=2)
    first, second = read_all(AudioWindows(path, size=2, rate=2))
    assert (first.name, second.name) == ("0.000 s", "1.000 s")
    assert first.sample.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([first.sample, second.sample]), [-1, 0, 0.5, 32767 / 32768])


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_pcm_is_read_and_channels_are_mixed(tmp_path: Path, width: int) -> None:
    left, right = np.array([0.5, -0.25, 0.0]), np.array([0.0, -0.25, 1 / 128])
    top = 2 ** (8 * width - 1)
    frames = (np.stack([left, right], 1) * top).astype(np.int64).reshape(-1)
    if width == 1:
        data = (frames + 128).astype(np.uint8).tobytes()
    else:
        data = b"".join(int(f).to_bytes(width, "little", signed=True) for f in frames)
    path = write_wav(tmp_path / "a.wav", data, width=width, channels=2)
    (window,) = read_all(AudioWindows(path, size=3, rate=RATE))
    np.testing.assert_allclose(window.sample, (left + right) / 2, atol=1e-7)


def test_iterables_of_blocks_of_any_length_and_kind(tmp_path: Path) -> None:
    sound = tone(1000)
    blocks: list[Any] = np.split(sound, [1, 5, 5, 700])
    found = read_all(AudioWindows(blocks, size=128, rate=RATE, dtype="int16"))
    np.testing.assert_array_equal(np.concatenate([f.sample for f in found])[:1000], sound)
    stereo = read_all(AudioWindows([np.array([[1.0, 0.0]])], size=1, rate=RATE))
    assert stereo[0].sample.tolist() == [0.5]
    with pytest.raises(SourceError, match=r"\[n\] or \[n, channels\]"):
        read_all(AudioWindows([np.zeros((1, 1, 1))], size=1, rate=RATE))


def test_a_pipe_gives_windows_as_they_come_and_stops_when_told() -> None:
    reading, writing = os.pipe()
    sound = tone(300)
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb", buffering=0) as end:
        source = AudioWindows(pipe, size=100, rate=RATE, dtype="int16")
        assert source.live
        with Stream(source, Nothing(), policy="block") as stream:
            end.write(sound.tobytes()[:201])  # an odd byte stays for the next
            np.testing.assert_array_equal(next(stream).sample, sound[:100])
            end.write(sound.tobytes()[201:400])
            np.testing.assert_array_equal(next(stream).sample, sound[100:200])
        assert stream_threads() == []  # though the pipe is open and silent
        assert not pipe.closed


def test_samples_in_memory_are_a_pipe_that_ends() -> None:
    found = read_all(AudioWindows(io.BytesIO(tone(250).tobytes()), size=100, rate=RATE, dtype="int16"))
    assert len(found) == 3


def test_a_recorder_is_started_read_and_ended() -> None:
    program = "import sys,time; sys.stdout.buffer.write(bytes(range(200))); sys.stdout.flush(); time.sleep(9)"
    files = open_files()
    source = Microphone(size=50, rate=RATE, dtype="int16", command=[sys.executable, "-c", program])
    with Stream(source, Nothing(), policy="block") as stream:
        first, second = next(stream), next(stream)
        process = source._process
        assert process is not None
    wanted = np.frombuffer(bytes(range(200)), "<i2")
    np.testing.assert_array_equal(np.concatenate([first.sample, second.sample]), wanted)
    assert process.poll() is not None
    assert open_files() <= files


def test_a_recorder_that_ends_or_is_not_there_says_so() -> None:
    ends = Microphone(size=50, rate=RATE, command=[sys.executable, "-c", "raise SystemExit(3)"])
    with Stream(ends, Nothing()) as stream, pytest.raises(SourceError, match="ended with status 3"):
        next(stream)
    with (
        Stream(Microphone(size=50, rate=RATE, command=["no-such-recorder"]), Nothing()) as stream,
        pytest.raises(SourceError, match="alsa-utils"),
    ):
        next(stream)


def test_sound_that_takes_as_long_as_it_lasts(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(800).tobytes())
    clock, waited = Clock(), []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waited.append(timeout)
            clock.pass_s(timeout)
            return False

    source = AudioWindows(path, size=200, rate=RATE, realtime=True, clock=clock)
    assert source.live
    source.open()
    times: list[float] = []
    while (captured := source.read(Stop())) is not None:
        times.append(captured.captured_s or 0.0)
    assert times == pytest.approx([100 + 0.025 * n for n in (1, 2, 3, 4)])
    assert len(waited) == 4


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: p / "gone.wav", "No such file"),
        (lambda p: write_wav(p / "a.wav", b"", rate=44_100), "44100 samples per second, 8000 were expected"),
    ],
)
def test_sound_that_cannot_be_read_says_why(tmp_path: Path, make: Any, problem: str) -> None:
    source = AudioWindows(make(tmp_path), size=10, rate=RATE)
    with pytest.raises(SourceError, match=problem):
        source.open()


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\x24\0\0\0WAVEfmt ", b"text" * 100, bytes(64)])
def test_what_is_no_sound_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.wav"):
        AudioWindows(path, size=10, rate=RATE).open()


def test_other_kinds_of_files_are_read_where_soundfile_is_there(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    sound = tone(5000)
    for name, kind in (("a.flac", None), ("float.wav", "FLOAT")):
        soundfile.write(tmp_path / name, sound / 32768, RATE, kind)
        found = read_all(AudioWindows(tmp_path / name, size=1000, rate=RATE, dtype="int16"))
        np.testing.assert_array_equal(np.concatenate([f.sample for f in found]), sound)


@pytest.mark.parametrize("numbers", [{"size": 0}, {"hop": 0}, {"rate": 0}, {"lead": -1}])
def test_wrong_numbers_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        AudioWindows([], **{"size": 10, "rate": RATE, **numbers})  # type: ignore[arg-type]


def test_sound_without_the_size_of_a_window_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--window"):
        open_source(write_wav(tmp_path / "a.wav", b""))


def test_a_stream_of_wav_waits_for_the_model(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(4000).tobytes())
    with Stream(open_source(path, window=100, rate=RATE), Nothing()) as stream:
        assert stream.run().given == 40
