"""A repository that attacks its devices: files in memory, forged with whatever keys are stolen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.errors import TrustError
from edgec.runtime.testing import onnxruntime_spec
from edgec.trust import (
    Assignment,
    DeviceTrust,
    DirectorRepository,
    ImageRepository,
    KeyRing,
    Lifetimes,
    generate_key,
    open_repositories,
)
from edgec.trust._metadata import meta_file
from edgec.trust._tuf import CryptoSigner, Metadata

# 2026-01-01 00:00 UTC.
START = 1767225600.0
DAY = 86400.0
KEYS = (
    ("root-1", "root"), ("root-2", "root"), ("root-3", "root"),
    ("targets-1", "targets"), ("targets-2", "targets"),
    ("online", "online"), ("director", "director"),
)  # fmt: skip
DEVICE = "dev-1"
OTHER = "dev-2"
Mutation = Callable[[Any], None]


@dataclass
class Clock:
    """A clock that stands until it is set."""

    now: float = START

    def __call__(self) -> float:
        return self.now


def artifact(path: Path, version: str, *, model: str = "tiny", target: str = "cpu-x86_64") -> Path:
    """Write an artifact with one member, which no engine could load: metadata is all that is looked at."""
    spec = TensorSpec("x", "float32", (1, 4))
    manifest = Manifest(
        model=model,
        model_version=version,
        target=target,
        engine=onnxruntime_spec(weights=False),
        inputs=(spec,),
        outputs=(TensorSpec("y", "float32", (1, 3)),),
        provenance={"tool": "test"},
    )
    return pack(path, manifest, {"model.onnx": f"{model} {version} {target}".encode()})


@dataclass
class Publisher:
    """Both repositories on a directory, with all keys and a clock of their own."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    lifetimes: Lifetimes = field(default_factory=Lifetimes)

    @property
    def repo(self) -> Path:
        return self.folder / "repo"

    @property
    def keys_folder(self) -> Path:
        return self.folder / "keys"

    def ring(self, *folders: Path) -> KeyRing:
        return KeyRing(folders or (self.keys_folder,))

    def open(self, keys: KeyRing | None = None) -> tuple[ImageRepository, DirectorRepository]:
        return open_repositories(self.repo, keys or self.ring(), lifetimes=self.lifetimes, clock=self.clock)

    @property
    def image(self) -> ImageRepository:
        return self.open()[0]

    @property
    def director(self) -> DirectorRepository:
        return self.open()[1]

    def publish(self, version: str, **more: Any) -> str:
        """Publish a version of the model and put it in force; return its path."""
        image = self.image
        target = image.publish(artifact(self.folder / f"{version}.edgec", version, **more))
        image.release()
        return target.path

    def files(self) -> dict[str, bytes]:
        """Return all metadata that a web server would serve, by name."""
        return {
            str(path.relative_to(self.repo)): path.read_bytes()
            for kind in ("image", "director")
            for path in sorted((self.repo / kind).rglob("*.json"))
        }

    def root(self, kind: str) -> bytes:
        return (self.repo / kind / "1.root.json").read_bytes()

    def device(self, folder: Path, device_id: str = DEVICE, **more: Any) -> DeviceTrust:
        """Return the trust of a device that was provisioned with the first roots."""
        options: dict[str, Any] = {"hardware": {"cpu-x86_64"}, "clock": self.clock, **more}
        return DeviceTrust(
            folder,
            device_id=device_id,
            image_root=self.root("image"),
            director_root=self.root("director"),
            **options,
        )

    def signers(self, *names: str) -> list[Any]:
        ring = self.ring()
        return ring.signers([ring.named(name).keyid for name in names])


def make_publisher(folder: Path) -> Publisher:
    """Make a repository with two versions of a model, the first of them assigned to two devices."""
    for name, role in KEYS:
        generate_key(folder / "keys", name, role)
    publisher = Publisher(folder)
    image, director = publisher.open()
    image.initialise(targets_threshold=2)
    director.initialise()
    image.release()
    director.release()
    for version in ("1", "2"):
        image.publish(artifact(folder / f"{version}.edgec", version))
    image.release()
    for device in (DEVICE, OTHER):
        director.assign(device, {"tiny": "tiny/tiny-1-cpu-x86_64.edgec"})
    return publisher


def copied(publisher: Publisher, folder: Path) -> Publisher:
    """Return a copy with a clock of its own."""
    shutil.copytree(publisher.folder, folder)
    return Publisher(folder)


def path_of(version: str) -> str:
    return f"tiny/tiny-{version}-cpu-x86_64.edgec"


def strange_signer() -> Any:
    """Return a key that nobody has ever named."""
    return CryptoSigner.generate_ed25519()


def forged(data: bytes, signers: Sequence[Any], mutate: Mutation | None = None) -> bytes:
    """Return metadata that was changed and then signed by `signers` alone."""
    metadata = Metadata.from_bytes(data)
    if mutate is not None:
        mutate(metadata.signed)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return bytes(metadata.to_bytes())


def named(files: Mapping[str, bytes], folder: str, role: str) -> str:
    """Return the name of the newest file of a role; devices' folders are ``director/DEVICE``."""
    if role == "timestamp":
        return f"{folder}/timestamp.json"
    found = [
        name
        for name in files
        if name.rpartition("/")[0] == folder and name.rpartition("/")[2].partition(".")[2] == f"{role}.json"
    ]
    return max(found, key=lambda name: int(name.rpartition("/")[2].partition(".")[0]))


def rechained(
    files: Mapping[str, bytes],
    folder: str,
    signers: Mapping[str, Sequence[Any]],
    mutations: Mapping[str, Mutation],
) -> dict[str, bytes]:
    """Return `files` with the chain of a folder forged: each role changed, signed, pinned by the next.

    Args:
        files: By name.
        folder: ``image`` or ``director/DEVICE``.
        signers: Who signs each of ``targets``, ``snapshot`` and ``timestamp``; others are kept.
        mutations: What is done to a role before it is signed.
    """
    result = dict(files)
    entries: dict[str, Any] = {}
    for role in ("targets", "snapshot", "timestamp"):
        old = named(files, folder, role)
        metadata = Metadata.from_bytes(result[old])
        if role == "snapshot":
            metadata.signed.meta.update(entries)
        if role == "timestamp":
            metadata.signed.snapshot_meta = entries["snapshot.json"]
        if role in signers:
            metadata.signed.version += 1
            mutations.get(role, lambda signed: None)(metadata.signed)
            metadata.signatures.clear()
            for signer in signers[role]:
                metadata.sign(signer, append=True)
            result[named_version(folder, role, metadata)] = metadata.to_bytes()
        data = result[named_version(folder, role, metadata)]
        entries[f"{role}.json"] = meta_file(metadata.signed.version, data)
    return result


def named_version(folder: str, role: str, metadata: Any) -> str:
    return (
        f"{folder}/{role}.json" if role == "timestamp" else f"{folder}/{metadata.signed.version}.{role}.json"
    )


def refused(device: DeviceTrust, source: Any, *reasons: str) -> TrustError:
    """Check that an update is refused for one of `reasons`, and that nothing was taken over from it."""
    before = device.epoch
    with pytest.raises(TrustError) as caught:
        device.update(source)
    assert caught.value.reason in reasons, caught.value
    assert device.epoch == before
    return caught.value


def versions(assignment: Assignment) -> list[str]:
    return [target.custom.version for target in assignment.targets]
