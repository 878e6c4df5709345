"""One request to a worker in another environment, and its answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.errors import ConversionError

HOST = Path(__file__).with_name("host.py")
_LARGEST_ANSWER = 4 << 20
_LOG_TAIL = 16 << 10
_LAST_LINES = 3
# Of frameworks: no chatter, no GPU, the same numbers in each run.
_SETTINGS = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker answers.

    Attributes:
        result: Its result; None where it failed.
        error_type: Name of the exception that it failed with; empty where it did not.
        message: What the exception says.
        last_lines: The last lines that it printed, for a message.
    """

    result: dict[str, Any] | None
    error_type: str = ""
    message: str = ""
    last_lines: str = ""


def call_worker(
    python: Path, worker: Path, request: Mapping[str, Any], *, timeout_s: float, what: str
) -> Answer:
    """Run a worker under another Python, and return its answer.

    The worker runs in a session of its own, which is killed whole when it takes too long, and when this
    process is interrupted.

    Args:
        python: The environment's interpreter.
        worker: Its module, which has ``handle(request)``; it can import what that environment has.
        request: For JSON; arrays go by paths of ``.npz`` files.
        timeout_s: How long it may take.
        what: What it does, for messages: ``tf2onnx``.

    Raises:
        ConversionError: It does not start, crashes, takes too long, or answers nonsense.
    """
    with tempfile.TemporaryDirectory(prefix="edgec-") as scratch:
        answer, log = Path(scratch) / "answer.json", Path(scratch) / "log"
        order = {"worker": str(worker.resolve()), "request": dict(request), "answer": str(answer)}
        with log.open("wb") as stream:
            code = run_group(
                [str(python), "-I", str(HOST)],
                stdout=stream,
                stdin=json.dumps(order).encode(),
                timeout_s=timeout_s,
                what=what,
                log=log,
            )
        tail = last_lines(log)
        if code != 0 or not answer.is_file():
            raise ConversionError(f"{what} crashed ({_end(code)}){tail}")
        return _parsed(answer, what, tail)


def run_group(
    command: Sequence[str],
    *,
    stdout: Any,
    stdin: bytes = b"",
    timeout_s: float,
    what: str,
    log: Path,
) -> int:
    """Run a command in a process group of its own; return its exit status.

    Raises:
        ConversionError: It cannot be started, or takes too long.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | _SETTINGS
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as e:
        raise ConversionError(f"{what} cannot be started: {e.strerror or e}: {command[0]}") from e
    with _killed_in_the_end(process):
        try:
            process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired as e:
            raise ConversionError(f"{what} took longer than {timeout_s:g} s{last_lines(log)}") from e
    return process.returncode


@contextmanager
def _killed_in_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        # The group: what the worker started must go too, whether the worker is still there or not.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_lines(log: Path) -> str:
    """Return the end of a log as the end of a message; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"; its last lines: {' | '.join(lines[-_LAST_LINES:])}" if lines else ""


def _parsed(path: Path, what: str, tail: str) -> Answer:
    if path.stat().st_size > _LARGEST_ANSWER:
        raise ConversionError(f"{what} answers with more than {_LARGEST_ANSWER >> 20} MiB")
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConversionError(f"{what} answers no JSON: {e}{tail}") from e
    match answer:
        case {"result": dict(result)}:
            return Answer(result=result)
        case {"error": {"type": str(kind), "message": str(message)}}:
            return Answer(result=None, error_type=kind, message=message, last_lines=tail)
        case _:
            raise ConversionError(f"{what} answers neither a result nor an error{tail}")


def _end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
