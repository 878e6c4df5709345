"""Power cuts, simulated: updates are recorded, and what a cut may leave of the record is tried.

    python -m tests.device_agent.power_cut

Recorded is everything that an update does to the directory of models: files made, renames, links, removals,
and what was synced when. A cut at some point leaves what was synced before it, and of the rest any part:
names of a directory that was not synced yet in any combination (bounded), files that were not synced empty or
half there. The database is as it was at its last commit, which SQLite guarantees, or gone altogether.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tests.device_agent.kill_driver import (
    MEMORY,
    SCENARIOS,
    Scenario,
    check_ended,
    check_killed,
    install,
    update,
)

from edgec.device_agent._store import Store

_ALL_COMBINATIONS = 4


@dataclass(eq=False)
class Node:
    """A file, link or directory: what it holds as far as it was synced, and what it will hold when it is.

    Attributes:
        kind: ``file``, ``link`` or ``directory``.
        synced: The content that a cut leaves for certain; None for a file never synced.
        coming: The content that it has at last, of which a cut may leave the first half.
    """

    kind: str
    synced: bytes | None = None
    coming: bytes = b""


@dataclass(frozen=True)
class Naming:
    """A change of names: from now on there is `node` at `path`, or nothing; and nothing at `gone`."""

    path: str
    node: Node | None
    gone: str | None = None

    @property
    def directories(self) -> set[str]:
        """Where it must be synced: in any of these."""
        return {os.path.dirname(self.path)}


@dataclass(frozen=True)
class Synced:
    """A file's content, or a directory's names, are durable from now on."""

    path: str
    node: Node | None = None
    content: bytes = b""


@dataclass(frozen=True)
class Committed:
    """The files beside the models are durable as they are now: database and reports."""

    files: dict[str, bytes]


Operation = Naming | Synced | Committed


@dataclass
class Recorder:
    """What an update did, and the names as they are."""

    root: Path
    start: dict[str, Node] = field(default_factory=dict)
    names: dict[str, Node] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in sorted((self.root / "models").rglob("*")):
            kind = "link" if path.is_symlink() else "directory" if path.is_dir() else "file"
            content = b""
            if kind == "file":
                content = path.read_bytes()
            elif kind == "link":
                content = os.readlink(path).encode()
            self.start[str(path)] = Node(kind, content, content)
        self.names = dict(self.start)
        self.commit()

    def commit(self) -> None:
        """Note the files beside the models."""
        paths = [self.root / "reports.log", *(self.root / "agent").glob("updates.db*")]
        # The index of the log is made again from the log.
        kept = [p for p in paths if p.exists() and not p.name.endswith("-shm")]
        self.operations.append(Committed({str(p.relative_to(self.root)): p.read_bytes() for p in kept}))

    def name(self, path: str, node: Node | None, gone: str | None = None) -> None:
        """Note a change of names."""
        if gone is not None:
            self.names.pop(gone, None)
        if node is None:
            self.names.pop(path, None)
        else:
            self.names[path] = node
        self.operations.append(Naming(path, node, gone))

    def sync(self, path: str) -> None:
        """Note that a file or directory is durable."""
        if os.path.isdir(path):
            self.operations.append(Synced(path))
        elif path in self.names:
            content = Path(path).read_bytes()
            self.names[path].coming = content
            self.operations.append(Synced(path, self.names[path], content))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what is done meanwhile below the models."""
        models = str(self.root / "models")
        real = {
            name: getattr(os, name) for name in ("open", "fsync", "replace", "symlink", "unlink", "mkdir")
        }
        write = Store._write

        def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            new = flags & os.O_CREAT and not os.path.lexists(path)
            descriptor: int = real["open"](path, flags, *rest, **options)
            if new and os.fspath(path).startswith(models):
                self.name(os.fspath(path), Node("file"))
            return descriptor

        def synced(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            real["fsync"](descriptor)
            if path.startswith(models):
                self.sync(path)

        def replaced(source: Any, target: Any) -> None:
            real["replace"](source, target)
            if os.fspath(target).startswith(models):
                self.name(os.fspath(target), self.names[os.fspath(source)], os.fspath(source))

        def linked(target: Any, path: Any, *rest: Any, **options: Any) -> None:
            real["symlink"](target, path, *rest, **options)
            text = os.fspath(target).encode()
            self.name(os.fspath(path), Node("link", text, text))

        def unlinked(path: Any, **options: Any) -> None:
            real["unlink"](path, **options)
            if os.fspath(path).startswith(models):
                self.name(os.fspath(path), None)

        def made(path: Any, *rest: Any, **options: Any) -> None:
            real["mkdir"](path, *rest, **options)
            if os.fspath(path).startswith(models):
                self.name(os.fspath(path), Node("directory", b""))

        def written(store: Store, statements: Any) -> bool:
            result = write(store, statements)
            self.commit()
            return result

        hooks = {
            "open": opened,
            "fsync": synced,
            "replace": replaced,
            "symlink": linked,
            "unlink": unlinked,
            "mkdir": made,
        }
        try:
            for name, hook in hooks.items():
                setattr(os, name, hook)
            Store._write = written  # type: ignore[method-assign, assignment]
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            Store._write = write  # type: ignore[method-assign]


@dataclass(frozen=True)
class Disk:
    """What a cut leaves: the content of files, None for directories, text for links; relative to the root."""

    entries: tuple[tuple[str, bytes | str | None], ...]

    @property
    def digest(self) -> str:
        """What tells disks apart."""
        return hashlib.sha256(repr(self.entries).encode()).hexdigest()

    def make(self, root: Path, *, database: bool) -> None:
        """Put it into an empty directory."""
        for name, content in self.entries:
            path = root / name
            if not database and path.name.startswith("updates.db"):
                continue
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            elif path.parent.is_dir() or path.name.startswith(("updates.db", "reports.log")):
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, str):
                    path.symlink_to(content)
                else:
                    path.write_bytes(content)


def cuts(recorder: Recorder, chance: random.Random) -> Iterator[Disk]:
    """Yield what cuts after each operation may leave."""
    names = dict(recorder.start)
    contents: dict[Node, bytes] = {node: node.synced or b"" for node in names.values()}
    pending: list[Naming] = []
    files: dict[str, bytes] = {}
    for operation in recorder.operations:
        if isinstance(operation, Committed):
            files = operation.files
        elif isinstance(operation, Naming):
            pending.append(operation)
        elif operation.node is not None:
            contents[operation.node] = operation.content
        else:
            for naming in [p for p in pending if operation.path in p.directories]:
                apply(names, naming)
                pending.remove(naming)
        for subset in subsets(pending, chance):
            left = dict(names)
            for naming in subset:
                apply(left, naming)
            for half in (False, True):
                yield disk(recorder.root, left, contents, files, half=half)


def apply(names: dict[str, Node], naming: Naming) -> None:
    """Change names."""
    if naming.gone is not None:
        names.pop(naming.gone, None)
    if naming.node is None:
        names.pop(naming.path, None)
    else:
        names[naming.path] = naming.node


def subsets(pending: list[Naming], chance: random.Random) -> Iterator[list[Naming]]:
    """Yield which of the changes of names that were not synced are there after all."""
    if len(pending) <= _ALL_COMBINATIONS:
        masks = list(product((False, True), repeat=len(pending)))
    else:
        masks = [tuple(i < n for i in range(len(pending))) for n in range(len(pending) + 1)]
        masks += [tuple(chance.random() < 0.5 for _ in pending) for _ in range(8)]
    for mask in masks:
        yield [p for p, there in zip(pending, mask, strict=True) if there]


def disk(
    root: Path, names: dict[str, Node], contents: dict[Node, bytes], files: dict[str, bytes], *, half: bool
) -> Disk:
    """Return a disk with these names, and files never synced empty or half there."""
    entries: dict[str, bytes | str | None] = dict(files)
    for path, node in names.items():
        name = os.path.relpath(path, root)
        if node.kind == "directory":
            entries[name] = None
        elif node.kind == "link":
            entries[name] = (node.synced or b"").decode()
        else:
            entries[name] = contents.get(node, node.coming[: len(node.coming) // 2] if half else b"")
    return Disk(tuple(sorted(entries.items(), key=lambda e: (e[0].count("/"), e[0]))))


def record(directory: Path, scenario: Scenario) -> Recorder:
    """Record an update that nothing disturbs."""
    root = Path(tempfile.mkdtemp(dir=directory))
    install(root, scenario)
    recorder = Recorder(root)
    with recorder.recording():
        update(root, scenario)
    return recorder


def replay(directory: Path, scenario: Scenario, left: Disk, *, database: bool) -> None:
    """Look at what a cut left, start an agent on it, and look again."""
    root = Path(tempfile.mkdtemp(dir=directory))
    left.make(root, database=database)
    (root / "models").mkdir(exist_ok=True)
    check_killed(root, scenario)
    update(root, scenario)
    check_ended(root, scenario, deaths=1)
    shutil.rmtree(root)


def run(directory: Path, limit: int, chance: random.Random) -> tuple[int, int, list[str]]:
    """Try distinct disks that cuts may leave.

    Returns:
        How many there are, how many were tried, and what went wrong.
    """
    every: dict[tuple[str, str], Disk] = {}
    for name, scenario in SCENARIOS.items():
        for left in cuts(record(directory, scenario), chance):
            every[name, left.digest] = left
    chosen = chance.sample(sorted(every), min(limit, len(every)))
    problems = []
    for number, (name, digest) in enumerate(chosen):
        database = number % 4 != 0
        try:
            replay(directory, SCENARIOS[name], every[name, digest], database=database)
        except AssertionError as e:
            problems.append(
                f"{name} with{'' if database else 'out'} database: {e} {every[name, digest].entries}"
            )
    return len(every), len(chosen), problems


def main() -> int:
    """Run, and say what was seen; 1 where a device was not what it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replays", type=int, default=10**9, help="how many disks are tried; all by default")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn by chance")
    parser.add_argument("--directory", type=Path, default=MEMORY, help="where devices are made")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        there, tried, problems = run(Path(directory), options.replays, random.Random(options.seed))
    seconds = time.perf_counter() - began
    print(
        f"{tried} of {there} disks that a power cut may leave, in {seconds:.0f} s: {len(problems)} problems"
    )
    print(*problems[:10], sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
