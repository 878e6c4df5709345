"""Listen for smoke alarms with a recurrent network, 80 ms at a time; its state goes from window to window.

python examples/audio_stream.py                sound that is made here
python examples/audio_stream.py kitchen.wav    16 bits, 8000 samples per second
python examples/audio_stream.py mic            a microphone, through arecord
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the sound that is made here

from examples.alarm.generate import RATE_HZ, WINDOW, scenes, write_wav  # noqa: E402

from edgec.errors import EdgecError  # noqa: E402
from edgec.runtime import load  # noqa: E402
from edgec.runtime.streams import Recurrent, Stream, open_source  # noqa: E402


def build(folder: Path) -> Path:
    """Compile the model for this machine, unless that was done before."""
    found = sorted(folder.glob("alarm-cpu-*.edgec"))
    if not found:
        options = ["--target", "cpu", "--precision", "fp32", "--output", str(folder)]
        command = [
            sys.executable,
            "-m",
            "edgec.cli",
            "compile",
            str(ROOT / "examples/alarm/alarm.onnx"),
            *options,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = sorted(folder.glob("alarm-cpu-*.edgec"))
    return found[0]


def make_sound(path: Path) -> Path:
    """A minute in a house: alarms, other things that beep, noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, scenes(np.random.default_rng(1), 60.0).sound)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", nargs="?", help="a .wav, mic, mic:DEVICE, or - for samples on standard input"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="for the compiled model")
    arguments = parser.parse_args()
    where = arguments.source or make_sound(arguments.folder / "alarm.wav")
    with load(build(arguments.folder)) as session:
        detector = Recurrent(session, state={"state": "next_state"})
        source = open_source(where, session, window=WINDOW, rate=RATE_HZ)
        # Nothing is dropped: the state is that of a whole sequence.
        with Stream(source, detector, policy="block") as stream:
            sounding = False
            scores: deque[float] = deque(maxlen=12)  # of the last second
            try:
                for result in stream:
                    scores.append(result.prediction["alarm"].item())
                    heard = sum(scores) > 0.5 * len(scores)
                    if heard != sounding:
                        print(
                            f"{result.name}: the smoke alarm {'sounds' if heard else 'is over'}", flush=True
                        )
                    sounding = heard
            except KeyboardInterrupt:
                pass
            done = stream.statistics
    seconds = done.given * WINDOW / RATE_HZ
    print(
        f"{seconds:.1f} s of sound in {done.seconds:.1f} s, {done.latency_ms.quantile(0.5):.3f} ms per window"
    )


if __name__ == "__main__":
    try:
        main()
    except EdgecError as e:
        sys.exit(str(e))
