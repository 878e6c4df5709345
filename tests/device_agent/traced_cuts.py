"""Power cuts below SQLite: what a process asks of the kernel is recorded, and disks left by a cut are tried.

    python -m tests.device_agent.traced_cuts outbox --replays 200

strace writes down every file made, write, sync, rename and removal of a process that works in a directory,
and what that process has been promised by then ("``put`` has returned"). A cut after any of these leaves what
was synced before it, and of the rest any part: writes of a file in any combination, the last one half; names
of a directory that was not synced, in any combination. On each such disk the promises must hold.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,open,creat,close,write,pwrite64,ftruncate,fsync,fdatasync,rename,unlink,mkdir,lseek"
_LINE = re.compile(r"^(?:\d+ +)?(?P<call>\w+)\((?P<args>.*)\) += (?P<result>-?\d+)")
_PROMISE = b"promised "


@dataclass(eq=False)
class Node:
    """A file or directory: what is synced of it, and the changes since: a place and bytes, or a length."""

    directory: bool = False
    synced: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Naming:
    """From now on `node` is at `path`, or nothing is; and nothing at `gone`."""

    path: str
    node: Node | None
    gone: str = ""


@dataclass
class Traced:
    """A disk as a trace leads through it: what is synced, and what is on the way."""

    root: str
    names: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    waiting: list[Naming] = field(default_factory=list)
    open: dict[int, tuple[str, Node, int]] = field(default_factory=dict)
    promises: list[str] = field(default_factory=list)

    def take(self, call: str, args: list[str], result: int) -> bool:
        """Follow one call; return whether it changed what a cut would leave."""
        if result < 0:
            return False
        taken: Callable[[list[str], int], bool] | None = getattr(self, f"_{call}", None)
        return taken is not None and taken(args, result)

    def _openat(self, args: list[str], result: int) -> bool:
        path, flags = _text(args[1]), args[2]
        self.open.pop(result, None)
        if not path.startswith(self.root):
            return False
        node, new = self.names.get(path), False
        if node is None:
            node, new = Node(directory="O_CREAT" not in flags), "O_CREAT" in flags
            self._name(Naming(path, node) if new else Naming(path, None), quiet=not new)
        self.open[result] = (path, node, 0)
        if "O_TRUNC" in flags:
            node.since.append((0, None))
        return new

    def _close(self, args: list[str], result: int) -> bool:
        self.open.pop(int(args[0]), None)
        return False

    def _write(self, args: list[str], result: int) -> bool:
        number, data = int(args[0]), _bytes(args[1])
        if number == 2 and data.startswith(_PROMISE):
            self.promises.append(data.removeprefix(_PROMISE).decode().strip())
        if number not in self.open:
            return False
        path, node, at = self.open[number]
        node.since.append((at, data[:result]))
        self.open[number] = (path, node, at + result)
        return True

    def _lseek(self, args: list[str], result: int) -> bool:
        if int(args[0]) in self.open:
            path, node, _ = self.open[int(args[0])]
            self.open[int(args[0])] = (path, node, result)
        return False

    def _pwrite64(self, args: list[str], result: int) -> bool:
        if int(args[0]) in self.open:
            self.open[int(args[0])][1].since.append((int(args[3]), _bytes(args[1])[:result]))
        return int(args[0]) in self.open

    def _ftruncate(self, args: list[str], result: int) -> bool:
        if int(args[0]) in self.open:
            self.open[int(args[0])][1].since.append((int(args[1]), None))
        return int(args[0]) in self.open

    def _fsync(self, args: list[str], result: int) -> bool:
        if int(args[0]) not in self.open:
            return False
        path, node, _ = self.open[int(args[0])]
        if os.path.isdir(path):
            for naming in [n for n in self.waiting if os.path.dirname(n.path) == path]:
                _apply(self.synced, naming)
                self.waiting.remove(naming)
        else:
            node.synced, node.since = _written(node.synced, node.since), []
        return True

    _fdatasync = _fsync

    def _rename(self, args: list[str], result: int) -> bool:
        source, target = map(_text, args)
        if source in self.names:
            self._name(Naming(target, self.names[source], source))
        return target.startswith(self.root)

    def _unlink(self, args: list[str], result: int) -> bool:
        path = _text(args[0])
        if path in self.names:
            self._name(Naming(path, None))
        return path.startswith(self.root)

    def _mkdir(self, args: list[str], result: int) -> bool:
        path = _text(args[0])
        if path.startswith(self.root):
            self._name(Naming(path, Node(directory=True)))
        return path.startswith(self.root)

    def _name(self, naming: Naming, *, quiet: bool = False) -> None:
        if not quiet:
            _apply(self.names, naming)
            self.waiting.append(naming)

    def left(self, chance: random.Random, times: int) -> Iterator[dict[str, bytes | None]]:
        """Yield what a cut now may leave, by path: content of files, None for directories."""
        for turn in range(times):
            share = (0.0, 1.0)[turn] if turn < 2 else chance.random()
            names = dict(self.synced)
            for naming in self.waiting:
                if chance.random() < share:
                    _apply(names, naming)
            found: dict[str, bytes | None] = {}
            for path, node in names.items():
                kept = [change for change in node.since if chance.random() < share]
                if kept and turn % 2 and kept[-1][1] is not None:
                    at, data = kept[-1]
                    kept[-1] = (at, (data or b"")[: len(data or b"") // 2])
                found[os.path.relpath(path, self.root)] = (
                    None if node.directory else _written(node.synced, kept)
                )
            yield found


def _apply(names: dict[str, Node], naming: Naming) -> None:
    names.pop(naming.gone, None)
    if naming.node is None:
        names.pop(naming.path, None)
    else:
        names[naming.path] = naming.node


def _written(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    whole = bytearray(content)
    for at, data in changes:
        if data is None:
            del whole[at:]
            whole.extend(bytes(max(0, at - len(whole))))
        else:
            whole.extend(bytes(max(0, at - len(whole))))
            whole[at : at + len(data)] = data
    return bytes(whole)


def _bytes(argument: str) -> bytes:
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def _text(argument: str) -> str:
    return os.fsdecode(_bytes(argument))


@dataclass(frozen=True)
class Cut:
    """A disk that a cut may leave, and what had been promised before it."""

    files: dict[str, bytes | None]
    promises: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What tells disks apart."""
        return hashlib.sha256(repr((sorted(self.files.items()), self.promises)).encode()).hexdigest()

    def make(self, root: Path) -> None:
        """Put it into an empty directory."""
        for name, content in sorted(self.files.items()):
            path = root / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            elif path.parent.is_dir():
                path.write_bytes(content)


def can_trace() -> bool:
    """Whether strace is here and may follow a process."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    tried = subprocess.run([strace, "-o", "/dev/null", "true"], check=False, capture_output=True)
    return tried.returncode == 0


def trace(work: list[str], log: Path) -> list[tuple[str, list[str], int]]:
    """Run a program, and return the calls by which it changed files, in order."""
    command = ["strace", "-f", "-xx", "-s", "1000000", "-o", str(log), "-e", f"trace={CALLS}", *work]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    calls = []
    for line in log.read_text().splitlines():
        assert "unfinished" not in line, f"two threads at once cannot be put in order: {line[:200]}"
        if (match := _LINE.match(line)) is not None:
            calls.append((match["call"], match["args"].split(", "), int(match["result"])))
    return calls


def cuts(
    calls: list[tuple[str, list[str], int]], root: Path, chance: random.Random, times: int = 4
) -> list[Cut]:
    """Return distinct disks that cuts between these calls may leave."""
    disk, found = Traced(str(root)), dict[str, Cut]()
    for call, args, result in calls:
        if disk.take(call, args, result):
            for left in disk.left(chance, times):
                cut = Cut(left, tuple(disk.promises))
                found[cut.digest] = cut
    return list(found.values())


def promise(text: str) -> None:
    """Say, from within a traced process, that something is durable by now."""
    os.write(2, _PROMISE + text.encode())


def run(
    work: list[str], root: Path, check: Callable[[Path, Cut], None], replays: int, seed: int
) -> tuple[int, int]:
    """Trace a program that works in a directory, and check disks that cuts may leave.

    Args:
        work: The program; it gets the directory as its last argument.
        root: An empty directory.
        check: Looks at what was left, in a directory of its own.
        replays: How many at most.
        seed: Of what is drawn by chance.

    Returns:
        How many disks there are, and how many were tried.
    """
    place, log = root / "traced", root / "log"
    place.mkdir()
    chance = random.Random(seed)
    every = cuts(trace([*work, str(place)], log), place, chance)
    chosen = chance.sample(every, min(replays, len(every)))
    for cut in chosen:
        left = Path(tempfile.mkdtemp(dir=root))
        cut.make(left)
        check(left, cut)
        shutil.rmtree(left)
    return len(every), len(chosen)


def main() -> None:
    """Try disks, and say how many."""
    from tests.device_agent.kill_driver import MEMORY
    from tests.device_agent.test_power_cuts import CASES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--replays", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not can_trace():
        print(f"{options.case}: not tried, for strace is not installed, or may not trace here")
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        work, check = CASES[options.case](Path(directory))
        there, tried = run(work, Path(directory), check, options.replays, options.seed)
    print(f"{options.case}: {tried} of {there} disks that a power cut may leave: the promises hold")


if __name__ == "__main__":
    main()
