"""A new version comes by a patch where one fits, and whole where anything is wrong with that."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zstandard", reason="patches need the extra agent")
pytest.importorskip("detools", reason="patches need the extra agent")
pytest.importorskip("tuf", reason="targets need the extra agent")

from tests.device_agent.transfers import limits

from edgec.delta import ChunkMap, make_delta
from edgec.device_agent._fetch_update import Updated, fetch_update
from edgec.device_agent._line import Cancel
from edgec.device_agent._sources import DirectorySource, Source
from edgec.errors import TransferError
from edgec.trust import ChunkMap as MapFile
from edgec.trust import Delta, ImageTarget

OLD = random.Random(1).randbytes(120_000)
NEW = OLD[:60_000] + b"retrained" + OLD[60_000:]


@dataclass
class Repository:
    """A directory with a target, a patch to it, and the map of its chunks; and a device's files."""

    folder: Path
    target: ImageTarget
    current: Path
    out: Path

    def sources(self, path: str) -> Sequence[Source]:
        """Return the repository."""
        return [DirectorySource(self.folder, path)]

    def update(self, **options: Any) -> Updated:
        """Update the device."""
        arguments: dict[str, Any] = {"limits": limits(), **options}
        return fetch_update(self.target, self.current, self.sources, self.out, **arguments)

    def only_the_update(self) -> bool:
        """Return whether the device has the new version, the old one, and nothing else."""
        names = sorted(os.listdir(self.out.parent))
        return names == ["current", "next"] and self.out.read_bytes() == NEW


def promise(path: Path) -> dict[str, Any]:
    """What metadata promises of a file."""
    data = path.read_bytes()
    return {"path": path.name, "length": len(data), "sha256": sha256(data).hexdigest()}


def patch_file(path: Path) -> Delta:
    """What metadata says of a patch that begins at the version here."""
    return Delta(from_sha256=sha256(OLD).hexdigest(), method="bsdiff", **promise(path))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    folder, device = tmp_path / "repository", tmp_path / "device"
    folder.mkdir()
    device.mkdir()
    (device / "current").write_bytes(OLD)
    target = ImageTarget(
        path="m/new",
        length=len(NEW),
        sha256=sha256(NEW).hexdigest(),
        model="m",
        version="2",
        release=2,
        hardware=("cpu",),
        content_digest="",
        engine={},
        rollback_floor=0,
    )
    place = folder / target.location
    place.parent.mkdir(parents=True)
    place.write_bytes(NEW)
    assert make_delta(device / "current", place, folder / "patch", level=3) is not None
    (folder / "chunks").write_bytes(ChunkMap.of_file(place).to_bytes())
    target = replace(
        target, deltas=(patch_file(folder / "patch"),), chunks=MapFile(**promise(folder / "chunks"))
    )
    return Repository(folder, target, device / "current", device / "next")


def test_a_patch_is_taken_where_one_fits(repository: Repository) -> None:
    updated = repository.update()
    assert (updated.method, updated.requests, updated.notes) == ("delta", 1, ())
    assert updated.received == repository.target.deltas[0].length < len(NEW) / 10
    assert repository.only_the_update()


def test_what_is_there_is_not_fetched(repository: Repository) -> None:
    repository.update()
    assert repository.update() == Updated(path=repository.out, method="present", received=0, requests=0)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def without_patch(repository: Repository, change: Callable[[Path], None]) -> None:
    """Take the patch away, and change the map."""
    (repository.folder / "patch").unlink()
    change(repository.folder / "chunks")


BROKEN: dict[str, Callable[[Repository], None]] = {
    "no version here": lambda r: r.current.unlink(),
    "another version here": lambda r: damage(r.current),
    "no patch there": lambda r: (r.folder / "patch").unlink(),
    "a damaged patch there": lambda r: damage(r.folder / "patch"),
    "a map that is damaged": lambda r: without_patch(r, damage),
    "no map": lambda r: without_patch(r, Path.unlink),
}


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_is_wrong_with_the_patch_the_full_file_follows(repository: Repository, name: str) -> None:
    BROKEN[name](repository)
    if not repository.current.exists():
        repository.current.write_bytes(b"")
    updated = repository.update()
    assert updated.method == "full"
    assert len(NEW) <= updated.received < 2 * len(NEW)
    assert repository.only_the_update()


def test_a_patch_to_other_bytes_is_found_out(repository: Repository) -> None:
    (repository.folder / "other").write_bytes(NEW.replace(b"retrained", b"poisoned!"))
    patch = repository.folder / "patch"
    assert make_delta(repository.current, repository.folder / "other", patch, level=3) is not None
    repository.target = replace(repository.target, deltas=(patch_file(patch),))
    updated = repository.update()
    assert updated.method == "full"
    assert "another file than the one promised" in updated.notes[0]
    assert repository.only_the_update()


def test_after_a_patch_failed_a_restart_goes_on_with_the_full_file(repository: Repository) -> None:
    damage(repository.folder / "patch")
    cancel = Cancel()
    seen: list[int] = []

    def stop(here: int, total: int) -> None:
        seen.append(here)
        cancel.set()

    with pytest.raises(TransferError) as caught:
        repository.update(cancel=cancel, progress=stop)
    assert caught.value.reason == "cancelled"
    updated = repository.update()
    assert (updated.method, updated.notes) == ("full", ())
    assert updated.received < len(NEW) + 100
    assert repository.only_the_update()


def test_a_cancelled_patch_is_kept(repository: Repository) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(TransferError) as caught:
        repository.update(cancel=cancel)
    assert caught.value.reason == "cancelled"
    assert not repository.out.exists()
    assert repository.update().method == "delta"
    assert repository.only_the_update()
