"""Where environments live: made, looked at, removed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.compiler.environments._process import run_group
from edgec.compiler.environments._pythons import find_python
from edgec.compiler.environments._table import Environment
from edgec.errors import ConversionError, MissingEnvironmentError, OutputError
from edgec.runtime._home import user_cache

Progress = Callable[[str], None]

MARKER = "edgec-environment.json"
_POLL_S = 0.2
_LOOK_S = 30.0
_TOLD = ("Collecting ", "Downloading ", "Using cached ", "Installing ", "Successfully ", "Building ")
_VERSIONS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
)


@dataclass(frozen=True, kw_only=True)
class EnvironmentState:
    """An environment on this machine.

    Attributes:
        environment: Which.
        status: ``ready``; ``missing``; ``outdated``, where this edgec wants other versions; ``broken``.
        problem: What is wrong with it; empty where nothing is.
        path: Where it is, or would be.
        python: Version of its interpreter; empty where it is missing.
        packages: Versions of what is installed in it, by name.
        size_bytes: Of its files.
    """

    environment: Environment
    status: str
    problem: str
    path: Path
    python: str = ""
    packages: dict[str, str]
    size_bytes: int = 0


class EnvironmentStore:
    """The environments in a directory; each is there whole or not at all.

    Args:
        directory: Made when something is installed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def python(self, environment: Environment) -> Path:
        """Return the interpreter of an environment that is ready.

        Raises:
            MissingEnvironmentError: It is not installed, or not fit for use.
        """
        state = self.state(environment)
        if state.status != "ready":
            raise MissingEnvironmentError(
                environment.name, environment.purpose, state.problem, environment.size_mb
            )
        return state.path / "bin" / "python"

    def state(self, environment: Environment) -> EnvironmentState:
        """Return what there is of an environment; its interpreter is asked, nothing is imported."""
        path = self.directory / environment.name

        def found(status: str, problem: str, marker: dict[str, Any] | None = None) -> EnvironmentState:
            facts = marker or {}
            return EnvironmentState(
                environment=environment,
                status=status,
                problem=problem,
                path=path,
                python=str(facts.get("python", "")),
                packages=dict(facts.get("packages", {})),
                size_bytes=int(facts.get("size_bytes", 0)),
            )

        if not path.exists():
            return found("missing", "it is not installed")
        try:
            marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
            packages, wanted = marker["packages"], tuple(marker["requirements"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            return found("broken", f"what was installed in it cannot be read: {e}")
        if wanted != environment.requirements:
            return found("outdated", "this edgec wants other versions in it", marker)
        here = _versions(path / "bin" / "python")
        if here is None:
            return found("broken", "its interpreter does not start: was its Python removed?", marker)
        if here != packages:
            changed = sorted(n for n in packages.keys() | here.keys() if packages.get(n) != here.get(n))
            return found("broken", f"its packages are not what was installed: {', '.join(changed)}", marker)
        return found("ready", "", marker)

    def installed(self, environment: Environment) -> str:
        """Return what was written down when an environment was installed; empty where it was not."""
        try:
            return (self.directory / environment.name / MARKER).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def install(self, environment: Environment, *, progress: Progress, timeout_s: float) -> EnvironmentState:
        """Make an environment, anew if it is there; it replaces what was there only once it works.

        Args:
            environment: Which.
            progress: Told what pip does, a line at a time.
            timeout_s: For all of it.

        Raises:
            ConversionError: No fitting interpreter is here, or pip fails.
            OutputError: The directory cannot be written.
        """
        python = find_python(environment.pythons, f"the environment {environment.name!r}")
        with self._locked():
            aside = Path(tempfile.mkdtemp(prefix=f".{environment.name}-", dir=self.directory))
            try:
                self._fill(aside, python, environment, progress, time.monotonic() + timeout_s)
                self._publish(aside, environment.name)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return self.state(environment)

    def remove(self, environment: Environment) -> bool:
        """Remove an environment; return whether there was one.

        Raises:
            OutputError: It cannot be removed.
        """
        path = self.directory / environment.name
        if not path.exists():
            return False
        with self._locked():
            aside = Path(tempfile.mkdtemp(prefix=f".{environment.name}-", dir=self.directory))
            os.rename(path, aside / "old")
            shutil.rmtree(aside)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory, and clear what an interrupted run left in it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left in self.directory.glob(".*-*"):
                    shutil.rmtree(left, ignore_errors=True)
                yield
        except OSError as e:
            raise OutputError(
                f"environments cannot be kept in {self.directory}: {e.strerror or e}; say where, with --home"
            ) from e

    def _fill(
        self, path: Path, python: Path, environment: Environment, progress: Progress, deadline: float
    ) -> None:
        progress(f"making an environment with {python}")
        bare = [] if environment.requirements else ["--without-pip"]
        _run([str(python), "-m", "venv", *bare, str(path)], path, progress, deadline, "venv")
        inner = path / "bin" / "python"
        pip = [str(inner), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        pip += ["--progress-bar", "off", "--prefer-binary", *environment.pip_options]
        if environment.requirements:
            _run([*pip, *environment.requirements], path, progress, deadline, "pip")
        progress(f"importing {', '.join(environment.imports)}")
        imports = "; ".join(f"import {name}" for name in environment.imports)
        _run([str(inner), "-I", "-c", imports], path, progress, deadline, environment.name)
        packages = _versions(inner)
        marker = {
            "name": environment.name,
            "requirements": list(environment.requirements),
            "python": _python_version(inner),
            "packages": packages,
            "size_bytes": sum(f.lstat().st_size for f in path.rglob("*") if not f.is_dir()),
        }
        (path / MARKER).write_text(json.dumps(marker, indent=2), encoding="utf-8")

    def _publish(self, aside: Path, name: str) -> None:
        path = self.directory / name
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.directory))
            os.rename(path, old / "old")
            os.rename(aside, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(aside, path)


def default_home() -> Path:
    """Return where edgec keeps what it can make again, if nothing else is said: ``~/.cache/edgec``.

    Raises:
        OutputError: The user has no home.
    """
    return user_cache("environments", "--home")


def _run(command: list[str], path: Path, progress: Progress, deadline: float, what: str) -> None:
    """Run a command whose output goes to a log in `path`, which `progress` is told of as it grows."""
    log = path / "install.log"
    with log.open("wb") as stream, _followed(log, progress):
        left = max(1.0, deadline - time.monotonic())
        code = run_group(command, stdout=stream, timeout_s=left, what=what, log=log)
    if code != 0:
        raise ConversionError(f"{what} failed (exit status {code}): {_complaint(log)}")


@contextmanager
def _followed(log: Path, progress: Progress) -> Iterator[None]:
    from threading import Event, Thread

    done = Event()

    def follow() -> None:
        with log.open("r", errors="replace") as file:
            while True:
                last = done.wait(_POLL_S)
                for line in file:
                    if line.lstrip().startswith(_TOLD):
                        progress(line.strip()[:160])
                if last:
                    return

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _complaint(log: Path) -> str:
    """Return what a log says went wrong: its errors, or else its last lines."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return " | ".join((errors or lines)[-3:]) or "it printed nothing"


def _versions(python: Path) -> dict[str, str] | None:
    """Return the packages that an interpreter sees; None where it does not start."""
    text = _asked(python, _VERSIONS)
    return None if text is None else json.loads(text)


def _python_version(python: Path) -> str:
    return _asked(python, "import platform; print(platform.python_version())") or ""


def _asked(python: Path, code: str) -> str | None:
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code], capture_output=True, timeout=_LOOK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None
