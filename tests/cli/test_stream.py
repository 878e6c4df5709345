"""``edgec stream``: on real input, to its end or until somebody ends it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.runtime.streams.parts import WAIT_S, running_sum, with_gain

from edgec.artifact import Pipeline
from edgec.artifact.steps import Normalize, TopK
from edgec.cli import main_group
from edgec.errors import EdgecError, InputError, OutputError, SourceError
from edgec.runtime.streams import Video
from edgec.runtime.testing import tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, ["stream", *map(str, arguments)])


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.edgec")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    for number in range(5):
        np.save(folder / f"{number}.npy", np.full((1, 4), number, np.float32))
    return folder


def test_results_go_to_a_file_and_the_summary_to_the_terminal(
    artifact: Path, inbox: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    result = edgec(artifact, "--source", inbox, "--output", out)
    assert result.exit_code == 0, result.output
    assert "5 captured, 5 given, 0 dropped" in result.stderr
    assert "latency p50" in result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"{n}.npy" for n in range(5)]
    assert all(set(row["prediction"]) == {"y"} for row in rows)


def test_results_are_shown_where_they_go_nowhere_else(artifact: Path, inbox: Path) -> None:
    result = edgec(artifact, "--source", inbox)
    assert result.stdout.splitlines()[0].startswith('0.npy: {"y": [[')
    assert len(result.stdout.splitlines()) == 5


def test_one_json_object_at_the_end(artifact: Path, inbox: Path) -> None:
    np.save(inbox / "2.npy", np.zeros((1, 9), np.float32))
    result = edgec(artifact, "--source", inbox, "--json", "--on-error", "drop", "--deadline-ms", "60000")
    assert result.exit_code == 0, result.output
    shape = json.loads(result.stdout)
    assert (shape["captured"], shape["given"], shape["dropped"]["error"]) == (5, 4, 1)
    assert "InputError" in shape["last_error"] or "PipelineError" in shape["last_error"]
    assert set(shape["latency_ms"]) == {"p50", "p95", "p99"}


def test_sound_with_a_state(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(100)
        file.writeframes(np.full(20, 8192, "<i2").tobytes())
    model, out = running_sum(tmp_path / "sum.edgec"), tmp_path / "a.jsonl"
    result = edgec(
        model, "-s", tmp_path / "a.wav", "--rate", "100", "--state", "before=after", "--output", out
    )
    assert result.exit_code == 0, result.output
    last = json.loads(out.read_text().splitlines()[-1])
    assert last["prediction"] == {"total": [[2.5, 2.5]]}
    options: list[str | Path] = ["-s", tmp_path / "a.wav", "--rate", "100", "--output", out]
    result = edgec(model, *options, "--fixed", "before=1")
    assert result.exit_code == 0, result.output
    last = json.loads(out.read_text().splitlines()[-1])
    assert last["prediction"]["total"] == [[1.25, 1.25]]
    assert "no input 'nope'" in str(edgec(model, *options, "--fixed", "nope=1").exception)


def test_an_input_that_never_changes_leaves_the_pipeline_in(tmp_path: Path) -> None:
    pipeline = Pipeline(
        preprocess=(Normalize(scale=(0.5,), input="x"),), postprocess=(TopK(k=1, output="y"),)
    )
    model = with_gain(tmp_path / "gain.edgec", pipeline=pipeline)
    np.save(tmp_path / "a.npy", np.array([2, 6], np.float32))
    result = edgec(model, "--source", tmp_path / "a.npy", "--fixed", "gain=10")
    assert result.exit_code == 0, result.output
    prediction = json.loads(result.stdout.partition(": ")[2])
    assert (prediction["classes"], prediction["scores"]) == ([1], [30])


def test_a_state_leaves_the_pipeline_out_and_says_so(tmp_path: Path) -> None:
    pipeline = Pipeline(preprocess=(Normalize(scale=(0.5,), input="x"),))
    model = with_gain(tmp_path / "gain.edgec", pipeline=pipeline)
    np.save(tmp_path / "a.npy", np.array([2, 6], np.float32))
    result = edgec(model, "--source", tmp_path / "a.npy", "--state", "gain=used")
    assert result.exit_code == 0, result.output
    assert "without the pipeline of the artifact" in result.stderr


@pytest.mark.parametrize(
    ("dtype", "number", "expected"),
    [
        ("float16", "1e10", "a number from -65504 to 65504"),
        ("float16", "1e-30", "a number from -65504"),
        ("float32", "1e39", "a number from -3.40282e\\+38"),
        ("float32", "16777217", "a number from"),
        ("uint8", "300", "a whole number from 0 to 255"),
        ("uint8", "-1", "a whole number from 0 to 255"),
        ("int64", "1.5", "a whole number from"),
        ("int64", "1e30", "a whole number from"),
        ("int64", "9" * 30, "a whole number from"),
        ("bool", "2", "0 or 1"),
    ],
)
def test_a_number_that_its_type_does_not_hold_is_refused(
    tmp_path: Path, dtype: str, number: str, expected: str
) -> None:
    model = with_gain(tmp_path / "gain.edgec", dtype)
    np.save(tmp_path / "a.npy", np.zeros(2, np.float32))
    result = edgec(model, "--source", tmp_path / "a.npy", "--fixed", f"gain={number}")
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert re.search(f"gain: {dtype}.1. does not hold .*: expected {expected}", said), said


@pytest.mark.parametrize(
    ("dtype", "number"), [("float16", "0.1"), ("float16", "inf"), ("uint8", "255"), ("int64", "1e10")]
)
def test_a_number_that_its_type_holds_is_taken(tmp_path: Path, dtype: str, number: str) -> None:
    model = with_gain(tmp_path / "gain.edgec", dtype)
    np.save(tmp_path / "a.npy", np.zeros(2, np.float32))
    result = edgec(model, "--source", tmp_path / "a.npy", "--fixed", f"gain={number}")
    assert result.exit_code == 0, result.output


def test_an_input_that_nothing_feeds_names_the_state_it_may_be(tmp_path: Path, inbox: Path) -> None:
    model = running_sum(tmp_path / "sum.edgec")
    result = edgec(model, "--source", inbox, "--on-error", "drop")
    assert isinstance(result.exception, InputError)
    assert "--state before=total or --state before=after" in str(result.exception)
    scalar = with_gain(tmp_path / "gain.edgec", "uint8")
    assert "--state gain=used" in str(edgec(scalar, "--source", inbox).exception)


def test_a_chain_is_streamed_as_an_artifact_is(inbox: Path, artifact: Path, tmp_path: Path) -> None:
    chain = tmp_path / "one.chain.toml"
    chain.write_text(
        f'name = "one"\ninputs.x = {{ shape = [1, 4] }}\noutputs = {{ y = "run.y" }}\n'
        f'[[stages]]\nname = "run"\nartifact = "{artifact.name}"\ninputs = {{ x = "x" }}\n'
    )
    result = edgec(chain, "--source", inbox, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["given"] == 5
    assert edgec(chain, "--source", inbox, "--state", "a=b").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        (["--source", "nothing.mp4"], SourceError, "no source 'nothing.mp4'"),
        (["--source", "INBOX", "--state", "x=z"], InputError, "no output 'z'"),
        (["--source", "INBOX", "--output", "/no/such/folder/a.jsonl"], OutputError, "cannot write"),
    ],
)
def test_what_cannot_be_is_one_error(
    artifact: Path, inbox: Path, arguments: list[str], error: type[EdgecError], problem: str
) -> None:
    result = edgec(artifact, *[str(inbox) if a == "INBOX" else a for a in arguments])
    assert isinstance(result.exception, error)
    assert problem in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--source", "0", "--policy", "newest"],
        ["--source", "0", "--deadline-ms", "0"],
        ["--source", "0", "--state", "x"],
        ["--source", "0", "--fixed", "x"],
        ["--source", "0", "--fixed", "x=many"],
        ["--source", "0", "--output", "results.csv"],
    ],
)
def test_wrong_usage_exits_2(artifact: Path, arguments: list[str]) -> None:
    assert edgec(artifact, *arguments).exit_code == 2


def test_a_source_that_gives_nothing_before_the_time_is_over_is_an_error(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2", reason="the extra `vision` is not installed")
    monkeypatch.setattr("edgec.runtime.streams._open.Video", partial(Video, timeout_s=0.5))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtsp://user:secret@127.0.0.1:{silent.getsockname()[1]}/1"
        result = edgec(artifact, "--source", address, "--duration-s", "0.1")
    assert isinstance(result.exception, SourceError)
    assert "nothing came from the source: SourceError: rtsp://***@" in str(result.exception)
    assert "gives no video within 0.5 s" in str(result.exception)


def test_a_signal_ends_it_as_usual_before_anything_came(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_as_somebody_ends_it(_: Video) -> None:
        until = time.monotonic() + WAIT_S
        predicts = False
        while not predicts:  # then both threads have started, and the main one waits
            predicts = any(t.name == "edgec-predict" and t.is_alive() for t in threading.enumerate())
            assert time.monotonic() < until
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        raise SourceError("the camera is off", transient=True)

    monkeypatch.setattr(Video, "open", fail_as_somebody_ends_it)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = edgec(artifact, "--source", "rtsp://camera/1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 0, result.output
    assert "0 captured" in result.stderr
    assert "last error: SourceError: the camera is off" in result.stderr


def test_help_has_examples() -> None:
    help = edgec("--help").output
    for word in (
        "--source rtsp://camera/1",
        "mqtt://broker",
        "--deadline-ms 200",
        "--state state=next_state",
    ):
        assert word in help


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary(
    artifact: Path, inbox: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "edgec.cli", "stream", str(artifact), "--source", str(inbox), "--watch"]
    # Started from a shell in the background, SIGINT would be ignored.
    process = subprocess.Popen(
        [*command, "--output", str(out), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 120
    while not (out.exists() and len(out.read_text().splitlines()) == 5):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(ending)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(said)["given"] == 5


def test_an_image_is_annotated(tmp_path: Path, artifact: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="the extra `vision` is not installed")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    result = edgec(
        artifact, "--source", tmp_path / "a.png", "--on-error", "drop", "--annotate", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert "1 error" in result.stderr  # this model takes no images
    assert list((tmp_path / "out").iterdir()) == []
