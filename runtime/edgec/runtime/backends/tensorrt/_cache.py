"""Engines that were built on this device, kept on its disk.

An engine is two files: ``KEY.plan``, as TensorRT serialized it, and ``KEY.json``, which says for what it
was built and has its digest. The second one is written last, so that an engine without it is none. A
directory serves many artifacts and versions; whoever may write to it may run code in its readers.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgec.artifact import atomic_write
from edgec.errors import OutputError
from edgec.runtime._home import user_cache

_FORMAT = 1
_MAX_SIDECAR = 1 << 20
_BUILDING = ".building-"
_PARTIAL = (".edgec-", ".partial")
_LOCK = ".lock"


def default_cache_dir() -> Path:
    """Return where engines are kept if nothing else is said: ``~/.cache/edgec/engines``.

    Raises:
        OutputError: The user has no home.
    """
    return user_cache("engines", "--cache-dir") / "engines"


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What an engine is valid for; it runs nowhere else.

    Attributes:
        artifact: Content digest of the artifact.
        tensorrt: Version of TensorRT.
        compute_capability: Of the GPU.
        cuda: Newest CUDA that the driver can run.
        system: Operating system and architecture: ``Linux-aarch64``.
        build: Profiles, configuration and DLA core.
    """

    artifact: str
    tensorrt: str
    compute_capability: str
    cuda: str
    system: str
    build: Mapping[str, Any]

    @property
    def stem(self) -> str:
        """Name of its files: the artifact, so that people find it, and everything."""
        everything = json.dumps(asdict(self), sort_keys=True)
        return (
            f"{self.artifact.rpartition(':')[2][:16]}-{sha256(everything.encode('ascii')).hexdigest()[:16]}"
        )

    @property
    def timing_stem(self) -> str:
        """Name of the cache of timings, which engines of all artifacts share."""
        level = self.build["config"]["optimization_level"]
        shared = [self.tensorrt, self.compute_capability, self.cuda, self.system, level]
        return f"timing-{sha256(json.dumps(shared).encode('ascii')).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class StoredEngine:
    """An engine in the cache, as it was when it was looked up.

    Attributes:
        plan: What TensorRT serialized.
        facts: What was said of it when it was stored.
    """

    plan: bytes
    facts: Mapping[str, Any]


@dataclass
class EngineCache:
    """A directory of engines.

    Attributes:
        directory: It is made when something is stored.
        problem: Why the last `find` found nothing; empty where it did.
    """

    directory: Path
    problem: str = field(default="", init=False)

    def plan_path(self, key: EngineKey) -> Path:
        """Return where the engine of that key is, or would be."""
        return self.directory / f"{key.stem}.plan"

    def find(self, key: EngineKey) -> StoredEngine | None:
        """Return the engine of that key; None where there is none that is whole, and `problem` says why."""
        plan, sidecar = self.plan_path(key), self._sidecar(key)
        try:
            facts = _read_facts(sidecar)
            if facts["key"] != json.loads(json.dumps(asdict(key))):
                raise ValueError("it was built for something else")
            data = plan.read_bytes()
            if len(data) != facts["size_bytes"] or sha256(data).hexdigest() != facts["sha256"]:
                raise ValueError("its bytes are not those that were stored")
        except FileNotFoundError:
            self.problem = f"none for this artifact, device and version of TensorRT is in {self.directory}"
            return None
        except OSError as e:
            self.problem = f"{plan} cannot be read: {e.strerror or e}"
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as e:  # RecursionError: deeply nested JSON
            self.problem = f"{plan} is damaged: {e}"
            return None
        self.problem = ""
        return StoredEngine(plan=data, facts=facts)

    def newest(self, keys: list[EngineKey]) -> EngineKey:
        """Return the key whose engine was stored or asked for last; the first one where none is there."""
        return max(keys, key=lambda k: _modified(self._sidecar(k)))  # the first one of equals

    def store(self, key: EngineKey, plan: bytes, facts: Mapping[str, Any]) -> Path:
        """Keep an engine, whole or not at all; one of the same key is replaced.

        Raises:
            OutputError: It cannot be written; nothing is left behind.
        """
        path = self.plan_path(key)
        self.remove(key)  # a plan under the sidecar of another one would be taken for damaged
        try:
            with atomic_write(path) as file:
                file.write(plan)
            stored = {
                "format": _FORMAT,
                "key": asdict(key),
                "sha256": sha256(plan).hexdigest(),
                "size_bytes": len(plan),
                **facts,
            }
            with atomic_write(self._sidecar(key)) as file:
                file.write(json.dumps(stored, indent=2, allow_nan=False).encode("ascii") + b"\n")
        except BaseException:
            self.remove(key)
            raise
        return path

    def touch(self, key: EngineKey) -> None:
        """Make an engine the `newest` one."""
        with suppress(OSError):  # of another user: it stays as it is
            os.utime(self._sidecar(key))

    def remove(self, key: EngineKey) -> None:
        """Remove an engine, if it is there.

        Raises:
            OutputError: It cannot be removed.
        """
        _unlink(self._sidecar(key))
        _unlink(self.plan_path(key))

    def read_timings(self, key: EngineKey) -> bytes:
        """Return what TensorRT measured of kernels before; empty where that is not kept."""
        try:
            return (self.directory / f"{key.timing_stem}.cache").read_bytes()
        except OSError:
            return b""

    def store_timings(self, key: EngineKey, timings: bytes) -> None:
        """Keep what TensorRT measured of kernels.

        Raises:
            OutputError: It cannot be written; what was there before still is.
        """
        with atomic_write(self.directory / f"{key.timing_stem}.cache") as file:
            file.write(timings)

    @contextmanager
    def building(self, waiting: Callable[[], None]) -> Iterator[Path]:
        """Be the only one that builds into this cache; what an interrupted build left is removed.

        Args:
            waiting: Called once where another process builds, before it is waited for.

        Yields:
            An empty directory that is removed afterwards.

        Raises:
            OutputError: The directory cannot be made or written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise OutputError(f"cannot write to the cache {self.directory}: {e.strerror or e}") from e
        try:
            _lock(lock, waiting)
            self._sweep()
            scratch = self.directory / f"{_BUILDING}{os.getpid()}"
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        finally:
            os.close(lock)  # which unlocks it; so does the end of the process

    def _sidecar(self, key: EngineKey) -> Path:
        return self.directory / f"{key.stem}.json"

    def _sweep(self) -> None:
        # Nobody else builds here now, so whoever began these is gone.
        for path in self.directory.iterdir():
            if path.name.startswith(_BUILDING):
                shutil.rmtree(path, ignore_errors=True)
                continue
            partial = path.name.startswith(_PARTIAL[0]) and path.name.endswith(_PARTIAL[1])
            if partial or (path.suffix == ".plan" and not path.with_suffix(".json").exists()):
                path.unlink(missing_ok=True)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise OutputError(f"cannot remove {path}: {e.strerror or e}") from e


def _lock(descriptor: int, waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _read_facts(sidecar: Path) -> dict[str, Any]:
    with sidecar.open("rb") as file:
        text = file.read(_MAX_SIDECAR + 1)
    if len(text) > _MAX_SIDECAR:
        raise ValueError(f"{sidecar.name} is too large")
    facts = json.loads(text)
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise ValueError(f"{sidecar.name} is not of this version of edgec")
    return facts


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
