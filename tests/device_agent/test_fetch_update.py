"""A new version comes by a patch where one fits, and whole where anything is wrong with that."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zstandard", reason="patches need the extra agent")
pytest.importorskip("detools", reason="patches need the extra agent")

from tests.device_agent.transfers import limits

from edgec.delta import FileRef, Offers, Patch, make_delta
from edgec.device_agent._chunk_map import ChunkMap
from edgec.device_agent._fetch_update import Updated, fetch_update
from edgec.device_agent._line import Cancel
from edgec.device_agent._sources import DirectorySource, Source
from edgec.errors import TransferError

OLD = random.Random(1).randbytes(120_000)
NEW = OLD[:60_000] + b"retrained" + OLD[60_000:]


@dataclass
class Repository:
    """A directory with a target, a patch to it, and the map of its chunks; and a device's files."""

    folder: Path
    target: FileRef
    offers: Offers
    current: Path
    out: Path

    def sources(self, path: str) -> Sequence[Source]:
        """Return the repository."""
        return [DirectorySource(self.folder, path)]

    def update(self, **options: Any) -> Updated:
        """Update the device."""
        arguments: dict[str, Any] = {"limits": limits(), **options}
        return fetch_update(self.target, self.offers, self.current, self.sources, self.out, **arguments)

    def only_the_update(self) -> bool:
        """Return whether the device has the new version, the old one, and nothing else."""
        names = sorted(os.listdir(self.out.parent))
        return names == ["current", "next"] and self.out.read_bytes() == NEW


def ref(path: Path) -> FileRef:
    data = path.read_bytes()
    return FileRef(path=path.name, length=len(data), sha256=sha256(data).hexdigest())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    folder, device = tmp_path / "repository", tmp_path / "device"
    folder.mkdir()
    device.mkdir()
    (device / "current").write_bytes(OLD)
    (folder / "new").write_bytes(NEW)
    assert make_delta(device / "current", folder / "new", folder / "patch", level=3) is not None
    (folder / "chunks").write_bytes(ChunkMap.of_file(folder / "new").to_bytes())
    patch = Patch(old_sha256=sha256(OLD).hexdigest(), file=ref(folder / "patch"))
    offers = Offers(patches=(patch,), chunks=ref(folder / "chunks"))
    return Repository(folder, ref(folder / "new"), offers, device / "current", device / "next")


def test_a_patch_is_taken_where_one_fits(repository: Repository) -> None:
    updated = repository.update()
    assert (updated.method, updated.requests, updated.notes) == ("delta", 1, ())
    assert updated.received == repository.offers.patches[0].file.length < len(NEW) / 10
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
    digest = sha256(OLD).hexdigest()
    repository.offers = Offers(patches=(Patch(old_sha256=digest, file=ref(patch)),))
    updated = repository.update()
    assert updated.method == "full"
    assert "another file than the one promised" in updated.notes[0]
    assert repository.only_the_update()


def test_after_a_patch_failed_a_restart_goes_on_with_the_full_file(repository: Repository) -> None:
    damage(repository.folder / "patch")
    cancel = Cancel()
    (repository.folder / "new").write_bytes(NEW)
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


def test_offers_are_read_from_signed_metadata(repository: Repository) -> None:
    custom = {"hardware": "x", **repository.offers.to_custom()}
    assert Offers.from_custom(custom) == repository.offers
    assert Offers.from_custom({}) == Offers()
    good = custom["deltas"][0]
    bad: list[Any] = [
        None, 5, {}, [], {**good, "path": ""}, {**good, "path": "x" * 600}, {**good, "length": -1},
        {**good, "length": True}, {**good, "length": 2**63}, {**good, "sha256": "zz"}, {**good, "from": None},
        {**good, "from": "0" * 63},
    ]  # fmt: skip
    assert Offers.from_custom({"deltas": [*bad, good], "chunks": bad}).patches == repository.offers.patches
    assert Offers.from_custom({"deltas": 7, "chunks": 7}) == Offers()
    assert len(Offers.from_custom({"deltas": [good] * 1000}).patches) == 64
