"""Environments of their own: made whole or not at all, and asked through a process."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgec.compiler.environments import (
    ENVIRONMENTS,
    Environment,
    EnvironmentStore,
    call_worker,
    get_environment,
)
from edgec.errors import CompileError, ConversionError, MissingEnvironmentError, OutputError

HERE = "{}.{}".format(*sys.version_info[:2])
BARE = Environment(
    name="bare", purpose="holds nothing", pythons=(HERE,), requirements=(), imports=("json",), size_mb=1
)
PYTHON = Path(sys.executable)


def worker(directory: Path, code: str) -> Path:
    path = directory / "worker.py"
    path.write_text(code)
    return path


def install(store: EnvironmentStore, environment: Environment = BARE) -> list[str]:
    told: list[str] = []
    store.install(environment, progress=told.append, timeout_s=120)
    return told


def test_an_environment_is_made_used_and_removed(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path / "environments")
    assert store.state(BARE).status == "missing"
    told = install(store)
    assert told[0].startswith("making an environment with ")
    state = store.state(BARE)
    assert (state.status, state.problem, state.packages) == ("ready", "", {})
    assert state.python.startswith(HERE)
    assert state.size_bytes > 0
    echo = worker(
        tmp_path,
        "import importlib.util, sys\n"
        "def handle(request):\n"
        "    print('chatter')\n"
        "    found = importlib.util.find_spec('edgec') is not None\n"
        "    return {'got': request, 'edgec': found, 'in': sys.prefix}\n",
    )
    answer = call_worker(store.python(BARE), echo, {"n": [1, "ä"]}, timeout_s=60, what="echo")
    assert answer.result == {"got": {"n": [1, "ä"]}, "edgec": False, "in": str(state.path)}
    assert store.remove(BARE)
    assert not store.remove(BARE)
    assert sorted(p.name for p in store.directory.iterdir()) == [".lock"]


def test_what_is_missing_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        MissingEnvironmentError, match=r"edgec doctor --install bare  \(about 1 MB\)"
    ) as caught:
        EnvironmentStore(tmp_path).python(BARE)
    assert caught.value.environment == "bare"


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"needs Python 3\.99 or 3\.98, and there is no such interpreter"
    ):
        install(EnvironmentStore(tmp_path), replace(BARE, pythons=("3.99", "3.98")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_cannot_be_made_leaves_what_was_there(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path)
    install(store)
    with pytest.raises(ConversionError, match=r"bare failed .*No module named 'no_such_module'"):
        install(store, replace(BARE, imports=("no_such_module",)))
    assert store.state(BARE).status == "ready"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "bare"]


@pytest.mark.slow
def test_other_requirements_and_damage_are_found(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path)
    install(store)
    assert store.state(replace(BARE, requirements=("numpy==1.0",))).status == "outdated"
    (tmp_path / "bare" / "bin" / "python").unlink()
    assert store.state(BARE).problem.startswith("its interpreter does not start")
    (tmp_path / "bare" / "edgec-environment.json").write_text('{"name"')
    assert store.state(BARE).status == "broken"


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--home"):
        install(EnvironmentStore(tmp_path / "file" / "environments"))


def test_an_exception_of_the_worker_is_its_answer(tmp_path: Path) -> None:
    path = worker(tmp_path, "def handle(request):\n    raise KeyError('no such layer')\n")
    answer = call_worker(PYTHON, path, {}, timeout_s=60, what="it")
    assert (answer.result, answer.error_type, answer.message) == (None, "KeyError", "'no such layer'")
    assert "KeyError: 'no such layer'" in answer.last_lines


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, sys\nprint('last words', flush=True)\nos._exit(3)",
            r"it crashed \(exit status 3\).*last words",
        ),
        ("import os\nos.kill(os.getpid(), 11)", r"it crashed \(SIGSEGV\)"),
        ("def handle(request):\n    return {'big': 'x' * 5_000_000}", "more than 4 MiB"),
        ("def handle(request):\n    return ['list']", "neither a result nor an error"),
    ],
)
def test_crashes_and_nonsense_are_errors(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        call_worker(PYTHON, worker(tmp_path, code), {}, timeout_s=60, what="it")


def test_a_worker_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "def handle(request):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    open(request['pid'], 'w').write(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    pid = tmp_path / "pid"
    for timeout_s in (0.6, 6.0, 60.0):  # on a busy machine it may not have come that far
        with pytest.raises(ConversionError, match=rf"it took longer than {timeout_s:g} s"):
            call_worker(PYTHON, worker(tmp_path, code), {"pid": str(pid)}, timeout_s=timeout_s, what="it")
        if pid.exists() and pid.read_text():
            break
    child, end = int(pid.read_text()), time.monotonic() + 60
    while _runs(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        # A zombie that nobody has waited for yet runs no more.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="it cannot be started"):
        call_worker(tmp_path / "python", worker(tmp_path, ""), {}, timeout_s=60, what="it")


def test_the_table_pins_what_it_names() -> None:
    assert set(ENVIRONMENTS) == {"onnx2tf", "tf2onnx", "torch"}
    for environment in ENVIRONMENTS.values():
        assert all("==" in requirement for requirement in environment.requirements)
    with pytest.raises(CompileError, match="there are onnx2tf, tf2onnx, torch"):
        get_environment("jax")


@pytest.mark.slow
def test_pip_installs_what_is_asked_for_and_says_what_is_wrong(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            "tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    tiny = replace(
        BARE,
        requirements=("tiny==1.0",),
        imports=("tiny",),
        pip_options=("--no-index", "--find-links", str(tmp_path)),
    )
    store = EnvironmentStore(tmp_path / "environments")
    told = install(store, tiny)
    assert "Successfully installed tiny-1.0" in told
    assert store.state(tiny).packages["tiny"] == "1.0"
    with pytest.raises(ConversionError, match=r"pip failed .*No matching distribution found for tiny==2\.0"):
        install(store, replace(tiny, requirements=("tiny==2.0",)))
    assert store.state(tiny).status == "ready"
    marker = json.loads((store.directory / "bare" / "edgec-environment.json").read_text())
    assert marker["requirements"] == ["tiny==1.0"]
    assert os.access(store.python(tiny), os.X_OK)
