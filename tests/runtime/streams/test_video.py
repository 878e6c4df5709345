"""Video files, video over the network, and what is drawn on it. Frames carry their own number."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.streams.parts import Clock, open_files, stream_threads
from tests.runtime.streams.rtsp import rtsp_camera

from edgec.errors import OutputError, SourceError
from edgec.runtime.streams import (
    Captured,
    ImageSink,
    JsonlSink,
    Reconnect,
    Stream,
    Video,
    VideoSink,
    annotation_sink,
    open_sink,
    open_source,
)

cv2 = pytest.importorskip("cv2", reason="the extra `vision` is not installed")

WIDTH, HEIGHT, BLOCK = 128, 64, 32
BACKGROUND = (200, 120, 40)  # blue, green, red


def frame(number: int) -> NDArray[np.uint8]:
    """A picture with a number in it, as 8 squares, black or white."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    picture[:] = BACKGROUND
    for bit in range(8):
        y, x = divmod(bit, WIDTH // BLOCK)
        picture[y * BLOCK + 4 : (y + 1) * BLOCK - 4, x * BLOCK + 4 : (x + 1) * BLOCK - 4] = 255 * (
            number >> bit & 1
        )
    return picture


class ReadsNumber:
    """Predicts the number in a picture, and a box around its first square."""

    def predict(self, sample: Any) -> dict[str, Any]:
        centres = sample[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].mean(axis=2) > 127
        number = int((centres.reshape(-1) << np.arange(8)).sum())
        box = np.array([[4, 4, BLOCK - 4, BLOCK - 4]], np.float32)
        return {"number": number, "boxes": box, "labels": [""]}  # words would cover the numbers


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "numbers.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20, (WIDTH, HEIGHT))
    for number in range(40):
        writer.write(frame(number))
    writer.release()
    return path


def test_every_frame_of_a_file_comes_once_and_in_order(video: Path) -> None:
    files = open_files()
    with Stream(video, ReadsNumber()) as stream:
        results = list(stream)
    assert [r.prediction["number"] for r in results] == list(range(40))
    assert [r.name for r in results[:2]] == ["frame 0", "frame 1"]
    assert stream.statistics.dropped == {"source": 0, "queue": 0, "deadline": 0, "error": 0}
    assert open_files() <= files


@pytest.mark.parametrize(
    ("color", "expected"), [("RGB", BACKGROUND[::-1]), ("BGR", BACKGROUND), ("GRAY", None)]
)
def test_samples_have_the_order_of_colors_asked_for_and_pictures_bgr(
    video: Path, color: Any, expected: Any
) -> None:
    source = Video(video, color=color)
    source.open()
    captured = source.read(threading.Event())
    source.close()
    assert captured is not None
    assert captured.picture is not None
    assert np.abs(captured.picture[1, 1].astype(int) - BACKGROUND).max() < 12
    if expected is None:
        assert captured.sample.shape == (HEIGHT, WIDTH, 1)
    else:
        assert np.abs(captured.sample[1, 1].astype(int) - expected).max() < 12


def test_a_file_in_real_time_is_a_camera_that_ends(video: Path) -> None:
    clock = Clock()

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            clock.pass_s(timeout)
            return False

    source = Video(video, realtime=True, clock=clock)
    assert source.live
    source.open()
    times: list[float] = []
    while (captured := source.read(Stop())) is not None:
        times.append(captured.captured_s or 0.0)
    source.close()
    np.testing.assert_allclose(times, 100 + np.arange(40) / 20, atol=1e-6)


def test_what_is_no_video_or_not_there_is_an_error(tmp_path: Path) -> None:
    text = tmp_path / "text.avi"
    text.write_text("no video")
    for source in (Video(tmp_path / "gone.mp4"), Video(text), Video(57)):
        with (
            Stream(source, ReadsNumber()) as stream,
            pytest.raises(SourceError, match=re.escape(source.name)),
        ):
            next(stream)


def test_passwords_are_not_shown() -> None:
    source = open_source("rtsp://admin:secret@camera.local:554/live?channel=1")
    assert source.name == "rtsp://***@camera.local:554/live?channel=1"
    with pytest.raises(ValueError, match="expected a color"):
        Video(0, color="CMYK")  # type: ignore[arg-type]


class Camera(BaseHTTPRequestHandler):
    """Sends JPEGs as network cameras do, and hangs up after ten."""

    connections = 0
    pause = threading.Event()

    def do_GET(self) -> None:
        first = 10 * type(self).connections
        type(self).connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(first, first + 10):
            jpeg = cv2.imencode(".jpg", frame(number))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
            self.pause.wait(0.005)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def network_camera() -> Iterator[str]:
    handler = type("OneCamera", (Camera,), {"connections": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_network_camera_that_hangs_up_is_called_again() -> None:
    with (
        network_camera() as address,
        Stream(address, ReadsNumber(), policy="block", reconnect=Reconnect(first_s=0.01)) as stream,
    ):
        numbers: list[int] = []
        while len(numbers) < 25:
            numbers.append(next(stream).prediction["number"])
        done = stream.statistics
    assert numbers == sorted(set(numbers))
    assert done.reconnects >= 2
    assert "gives no more frames" in done.last_error
    assert stream_threads() == []


@pytest.mark.slow
def test_an_rtsp_camera_that_hangs_up_is_called_again() -> None:
    with (
        rtsp_camera(lambda number: frame(number % 256), 40, cv2) as address,
        Stream(address, ReadsNumber(), policy="block", reconnect=Reconnect(first_s=0.01)) as stream,
    ):
        numbers: list[int] = []
        while len(numbers) < 50:
            numbers.append(next(stream).prediction["number"])
        done = stream.statistics
    assert numbers == sorted(set(numbers))
    assert done.reconnects >= 1
    assert stream_threads() == []


def test_a_network_camera_that_is_gone_ends_the_stream_with_an_error() -> None:
    with network_camera() as address:
        stream = Stream(address, ReadsNumber(), policy="block", reconnect=Reconnect(attempts=1, first_s=0))
        next(stream)
    with stream, pytest.raises(SourceError, match=re.escape(address)):
        list(stream)


def test_predictions_are_drawn_on_a_video(video: Path, tmp_path: Path) -> None:
    sink = annotation_sink(tmp_path / "drawn.mp4")
    assert isinstance(sink, VideoSink)
    with Stream(video, ReadsNumber()) as stream:
        stream.run(sink)
    sink.close()
    assert sink.frames == 40
    with Stream(Video(tmp_path / "drawn.mp4", color="BGR"), ReadsNumber()) as drawn:
        results = list(drawn)
    assert [r.prediction["number"] for r in results] == list(range(40))
    edge = results[0].sample[BLOCK - 4, 10:20].astype(int).mean(axis=0)
    assert np.abs(edge - BACKGROUND).max() > 30  # a line, where there was background


def test_predictions_are_drawn_on_images(video: Path, tmp_path: Path) -> None:
    sink = annotation_sink(tmp_path / "drawn")
    assert isinstance(sink, ImageSink)
    pictures = [Captured(sample=frame(n), picture=frame(n), name=f"../../{n}.png") for n in range(3)]
    with Stream(pictures, ReadsNumber()) as stream:
        stream.run(sink)
    names = sorted(p.name for p in (tmp_path / "drawn").iterdir())
    assert names == ["000000-0.jpg", "000001-1.jpg", "000002-2.jpg"]
    assert not np.array_equal(cv2.imread(str(tmp_path / "drawn" / names[0])), frame(0))
    np.testing.assert_array_equal(pictures[0].picture, frame(0))  # the source's own is not drawn on


class Classifies:
    """Says what it was told."""

    def predict(self, sample: Any) -> dict[str, Any]:
        return {"classes": np.array([3]), "scores": np.array([0.75], np.float32), "labels": ["three"]}


def test_a_class_is_written_on_pictures_that_are_paths_or_bytes(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), frame(0))
    data = (tmp_path / "a.png").read_bytes()
    sink = ImageSink(tmp_path / "drawn", suffix=".png")
    with Stream([tmp_path / "a.png", data, 7], Classifies()) as stream:
        stream.run(sink)
    assert sink.frames == 2
    one, other = (cv2.imread(str(p)) for p in sorted((tmp_path / "drawn").iterdir()))
    np.testing.assert_array_equal(one, other)
    assert (one != frame(0)).any()


def test_results_are_lines_of_json_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with JsonlSink(path) as sink, Stream([1, 2], Classifies()) as stream:
        sink(next(stream))
        (line,) = path.read_text().splitlines()  # while it is open
    row = json.loads(line)
    assert row["prediction"] == {"classes": [3], "scores": [0.75], "labels": ["three"]}
    assert set(row) == {"index", "name", "captured_at", "age_ms", "latency_ms", "missed", "prediction"}


def test_results_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    for where in (tmp_path / "gone" / "a.jsonl", tmp_path / "a.csv", "mqtt://"):
        with pytest.raises(OutputError, match="cannot write"):
            open_sink(str(where))
    with pytest.raises(OutputError, match="expected a video"):
        VideoSink(tmp_path / "a.txt")
    broken = VideoSink(tmp_path / "gone" / "a.avi")
    with Stream([Captured(sample=1, picture=frame(1))], Classifies()) as stream, pytest.raises(OutputError):
        stream.run(broken)
