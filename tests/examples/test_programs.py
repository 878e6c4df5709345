"""The example programs run as they stand, on what they make themselves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from examples.alarm.generate import RATE_HZ, WINDOW, pieces, write_wav
from tests.models.sources import Source

from edgec.compiler import CompileOptions, compile_model

EXAMPLES = Path(__file__).parents[2] / "examples"
ALARM = EXAMPLES / "alarm" / "alarm.onnx"


def run(program: str, *arguments: str | Path, folder: Path) -> str:
    command = [sys.executable, EXAMPLES / program, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, compiled for this machine."""
    folder = tmp_path_factory.mktemp("demo")
    compile_model(
        EXAMPLES / "digits" / "digits.onnx",
        ["cpu"],
        folder,
        pipeline=EXAMPLES / "digits" / "pipeline.toml",
        options=CompileOptions(precision="fp32", measure_s=0.1),
    )
    (path,) = folder.glob("*.edgec")
    return path


@pytest.mark.slow
def test_the_camera_loop_reads_what_it_filmed(artifact: Path, tmp_path: Path) -> None:
    options = ["--annotate", str(tmp_path / "seen.avi"), "--deadline-ms", "5000"]
    said = run("camera_loop.py", "--artifact", artifact, *options, folder=tmp_path)
    assert re.findall(r": a (\d),", said) == list("012345")
    counts = re.search(r"(\d+) frames, (\d+) read", said)
    assert counts is not None
    captured, read = int(counts[1]), int(counts[2])
    assert captured == 60
    assert 6 <= read <= 60
    assert (tmp_path / "seen.avi").stat().st_size > 10_000


@pytest.mark.slow
def test_the_audio_stream_hears_the_alarms_of_a_recording(tmp_path: Path) -> None:
    (piece,) = pieces(1, 120.0, seed=5)
    write_wav(tmp_path / "house.wav", piece.sound)
    said = run("audio_stream.py", tmp_path / "house.wav", "--folder", tmp_path, folder=tmp_path)
    heard = np.zeros(len(piece.alarm), np.bool_)
    for second, word in re.findall(r"([\d.]+) s: the smoke alarm (sounds|is over)", said):
        heard[round(float(second) * RATE_HZ / WINDOW) :] = word == "sounds"
    alarm = piece.alarm > 0
    assert alarm.mean() > 0.1
    assert heard[alarm].mean() > 0.7  # it is told a second late, for it is averaged over one
    assert (~heard)[~alarm & piece.sure].mean() > 0.9
    assert "120.0 s of sound" in said
    again = run("audio_stream.py", "--folder", tmp_path, folder=tmp_path)  # compiled before; sound of its own
    assert "the smoke alarm sounds" in again


@pytest.mark.slow
def test_the_alarm_detector_is_as_good_as_its_readme_says() -> None:
    model = Source(ALARM)
    hits, sure = {True: 0, False: 0}, {True: 0, False: 0}
    for piece in pieces(6, 90.0, seed=11):
        state = np.zeros((1, 32), np.float32)
        for number, window in enumerate(piece.sound.reshape(-1, 1, WINDOW)):
            outputs = model.run({"window": window, "state": state})
            state = outputs["next_state"]
            if piece.sure[number]:
                alarm = bool(piece.alarm[number])
                sure[alarm] += 1
                hits[alarm] += (outputs["alarm"].item() > 0.5) == alarm
    assert hits[True] / sure[True] > 0.85
    assert hits[False] / sure[False] > 0.95
    assert ALARM.stat().st_size < 100_000


@pytest.mark.slow
def test_a_batch_goes_on_where_it_was_killed(artifact: Path, tmp_path: Path) -> None:
    import cv2

    images = np.load(EXAMPLES / "digits" / "evaluation.npz")
    (tmp_path / "images").mkdir()
    for number in range(1000):
        cv2.imwrite(str(tmp_path / "images" / f"{number:03}.png"), images["image"][number % 500])
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    arguments = [str(tmp_path / "images"), "--artifact", str(artifact), "--output", str(out), "--jobs", "1"]
    command = [sys.executable, str(EXAMPLES / "batch.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 20_000):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    said = run("batch.py", *arguments, folder=tmp_path)
    before = re.search(r"1000 files done, (\d+) of them before, 0 failed", said)
    assert before is not None, said
    assert 0 < int(before[1]) < 1000
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [int(row["classes"][0]) == images["labels"][n % 500] for n, row in enumerate(rows)]
    assert len(rows) == 1000
    assert np.mean(right) > 0.98
    assert not journal.exists()


@pytest.mark.slow
def test_a_served_model_answers_and_the_server_ends(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    right = re.search(
        r"(\d+) of 20 are right", run("serve_and_call.py", "--artifact", artifact, folder=tmp_path)
    )
    assert right is not None
    assert int(right[1]) >= 19


@pytest.mark.slow
@pytest.mark.parametrize("program", ["camera_loop.py", "audio_stream.py", "batch.py", "serve_and_call.py"])
def test_every_program_says_how_it_is_called(program: str, tmp_path: Path) -> None:
    assert f"python examples/{program}" in run(program, "--help", folder=tmp_path)
