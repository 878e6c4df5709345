"""Read digits that a camera sees, as they change: ``make demo`` makes the model.

python examples/camera_loop.py                 a video that is made here, as fast as a camera
python examples/camera_loop.py 0               the first camera
python examples/camera_loop.py rtsp://camera/1 --deadline-ms 200 --annotate seen.mp4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgec.errors import EdgecError
from edgec.runtime import Session, load
from edgec.runtime.streams import Stream, annotation_sink, open_source

ROOT = Path(__file__).parents[1]


class DigitReader:
    """Finds nothing, but knows what the model expects: dark ground, and 16 shades of grey."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.manifest = session.manifest  # so that the stream knows which colors are wanted

    def predict(self, frame: Any) -> dict[str, Any]:
        return self._session.predict(frame // 16)


def make_video(path: Path) -> Path:
    """Film the first digits of the evaluation set, each for half a second at 20 frames per second."""
    images = np.load(ROOT / "examples/digits/evaluation.npz")["image"][:6]  # uint8[6, 8, 8, 1], up to 16
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (160, 160))
    for image in images:
        picture = cv2.resize(image * 15, (160, 160), interpolation=cv2.INTER_NEAREST)
        for _ in range(10):
            writer.write(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", help="number of a camera, a video file, rtsp://...")
    parser.add_argument("--artifact", default=next(iter((ROOT / "demo").glob("digits-cpu-*.edgec")), None))
    parser.add_argument(
        "--deadline-ms", type=float, default=500, help="older frames are dropped (default: 500)"
    )
    parser.add_argument("--annotate", metavar="VIDEO|DIR", help="write what was seen, with what was read")
    arguments = parser.parse_args()
    if arguments.artifact is None:
        sys.exit("there is no artifact: run  make demo  first, or name one with --artifact")
    where = arguments.source or make_video(ROOT / "demo/camera.avi")
    sinks = [annotation_sink(arguments.annotate)] if arguments.annotate else []
    with load(arguments.artifact) as session:
        reader = DigitReader(session)
        with Stream(
            open_source(where, reader, realtime=True), reader, deadline_ms=arguments.deadline_ms
        ) as stream:
            last = None
            try:
                for result in stream:
                    for sink in sinks:
                        sink(result)
                    digit = result.prediction["labels"][0]
                    if digit != last:
                        print(f"{result.name}: a {digit}, {result.age_ms:.0f} ms ago", flush=True)
                    last = digit
            except KeyboardInterrupt:
                pass
            finally:
                for sink in sinks:
                    sink.close()
            done = stream.statistics
    print(f"{done.captured} frames, {done.given} read, dropped: {dict(done.dropped)}")


if __name__ == "__main__":
    try:
        main()
    except EdgecError as e:
        sys.exit(str(e))
