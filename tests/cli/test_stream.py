"""``edgec stream``: on real input, to its end or until somebody ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.runtime.streams.parts import running_sum

from edgec.cli import main_group
from edgec.errors import EdgecError, InputError, OutputError, SourceError
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
