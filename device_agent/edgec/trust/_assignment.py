"""What devices are told to run: targets of the image repository, and which of them are for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgec.artifact._fields import Fields, matching, natural, sequence, text
from edgec.errors import ManifestError, TrustError
from edgec.trust._metadata import DIRECTOR, IMAGE, name
from edgec.trust._terms import Terms

_SHA256 = matching(r"[0-9a-f]{64}", "a SHA-256 in hex")
_DIGEST = matching(r"sha256:[0-9a-f]{64}", "sha256: and a digest in hex")
PATH = matching(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}", "MODEL/FILE, as edgec publishes it"
)
_LOCATION = matching(
    r"targets/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[A-Za-z0-9][A-Za-z0-9_.+-]{0,299}", "targets/MODEL/FILE"
)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A patch that leads from an older artifact to the one it belongs to.

    Attributes:
        from_sha256: Digest of the file that it applies to.
        path: Where it is, relative to the repository's base URL or directory.
        length: Of the patch, in bytes.
        sha256: Of the patch.
        method: How it was made, as ``edgec.delta`` calls it.
    """

    from_sha256: str
    path: str
    length: int
    sha256: str
    method: str


@dataclass(frozen=True, kw_only=True)
class ChunkMap:
    """A file with the digests of an artifact's chunks, by which a damaged download is mended.

    Attributes:
        path: Where it is, relative to the repository's base URL or directory.
        length: In bytes.
        sha256: Of the file.
    """

    path: str
    length: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ImageTarget:
    """What the image repository says of an artifact.

    Attributes:
        path: ``kws/kws-3-rpi5.edgec``.
        length: In bytes.
        sha256: Of the file, in hex.
        model: Name of the model.
        version: Its author's name of the version.
        release: Number of the version within the model, from 1; larger is later.
        hardware: Names of the targets that it runs on: ``("rpi5",)``.
        content_digest: Of the artifact: ``sha256:5e8f...``.
        engine: What it needs: ``{"name": "onnxruntime", "version": ">=1.23", "device": "CPU", ...}``.
        rollback_floor: Releases below this one must not be installed any more.
        deltas: Patches that lead to it.
        chunks: The map of its chunks; None where there is none.
    """

    path: str
    length: int
    sha256: str
    model: str
    version: str
    release: int
    hardware: tuple[str, ...]
    content_digest: str
    engine: Mapping[str, str]
    rollback_floor: int
    deltas: tuple[Delta, ...] = ()
    chunks: ChunkMap | None = None

    @property
    def location(self) -> str:
        """Where the file is, relative to the repository's base URL or directory."""
        return location(self.path, self.sha256)

    def custom(self) -> dict[str, Any]:
        """Return what goes into the signed metadata besides length and digest."""
        chunks = {} if self.chunks is None else {"chunks": vars(self.chunks)}
        return chunks | {
            "kind": "artifact",
            "model": self.model,
            "version": self.version,
            "release": self.release,
            "hardware": list(self.hardware),
            "content_digest": self.content_digest,
            "engine": dict(self.engine),
            "rollback_floor": self.rollback_floor,
            "deltas": [_delta_document(delta) for delta in self.deltas],
        }


@dataclass(frozen=True, kw_only=True)
class AssignedTarget:
    """An artifact that this device is told to run; image repository and director agree on it.

    Attributes:
        model: Name of the model.
        path: In the image repository: ``kws/kws-3-rpi5.edgec``.
        length: In bytes.
        sha256: Of the file, in hex.
        custom: What the image repository says of it.
        terms: On which the director has it taken up.
    """

    model: str
    path: str
    length: int
    sha256: str
    custom: ImageTarget
    terms: Terms = field(default_factory=Terms)

    @property
    def location(self) -> str:
        """Where the file is, relative to the repository's base URL or directory."""
        return location(self.path, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """All that the director wants a device to run.

    Attributes:
        device: Id of the device.
        epoch: Number of the assignment; it only grows, also when older content comes back.
        targets: One per model, by name of the model.
        expires: When the first of the metadata behind it expires, in seconds since 1970.
    """

    device: str
    epoch: int
    targets: tuple[AssignedTarget, ...]
    expires: float

    def target(self, model: str) -> AssignedTarget | None:
        """Return what is assigned for `model`; None where nothing is."""
        return next((target for target in self.targets if target.model == model), None)


@dataclass(frozen=True, kw_only=True)
class DeviceBundle:
    """An assignment as it travels: what the message says, and the signed metadata behind it.

    Attributes:
        device: Id of the device.
        epoch: Number of the assignment.
        targets: By name of the model; path, length and sha256 are what the message repeats.
        metadata: Files by their names in the repository, for `DeviceTrust.update`.
    """

    device: str
    epoch: int
    targets: Mapping[str, ImageTarget]
    metadata: Mapping[str, bytes] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of the metadata, names included."""
        return sum(len(file) + len(data) for file, data in self.metadata.items())

    def texts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the metadata of director and image repository by bare file name, as a message has it."""
        director, image = (
            {
                file.rpartition("/")[2]: data.decode()
                for file, data in self.metadata.items()
                if file.startswith(f"{kind}/")
            }
            for kind in (DIRECTOR, IMAGE)
        )
        return director, image


def bundle_files(device: str, director: Mapping[str, str], image: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of a message by their names in the repository, for `DeviceTrust.update`.

    Args:
        device: Id of the device that the message came to.
        director: Text by bare file name, as `DeviceBundle.texts` gave it.
        image: The same of the image repository.
    """
    files = {f"{IMAGE}/{file}": content.encode() for file, content in image.items()}
    for file, content in director.items():
        folder = DIRECTOR if file.endswith(".root.json") else f"{DIRECTOR}/{device}"
        files[f"{folder}/{file}"] = content.encode()
    return files


def location(path: str, sha256: str) -> str:
    """Return where a target's file is, relative to the repository's base URL or directory."""
    folder, _, file = path.rpartition("/")
    return f"targets/{folder}/{sha256}.{file}"


def image_target(target: Any) -> ImageTarget:
    """Read the image repository's entry of an artifact.

    Args:
        target: A ``tuf.api.metadata.TargetFile``.

    Raises:
        TrustError: It is malformed, or no artifact (``reason`` ``malformed``).
    """
    where = f"target {target.path:.80}"
    try:
        PATH(target.path, where)
        fields = Fields(target.unrecognized_fields.get("custom"), f"{where}, custom")
        engine = Fields(fields.need("engine", _mapping), f"{where}, custom.engine")
        return ImageTarget(
            path=target.path,
            length=natural(target.length, f"{where}, length"),
            sha256=_SHA256(target.hashes.get("sha256"), f"{where}, hashes.sha256"),
            model=fields.need("model", name),
            version=fields.need("version", text),
            release=fields.need("release", natural),
            hardware=fields.need("hardware", sequence(text, least=1, most=256)),
            content_digest=fields.need("content_digest", _DIGEST),
            engine={key: engine.need(key, text) for key in ("name", "version", "device", "precision")},
            rollback_floor=fields.need("rollback_floor", natural),
            deltas=fields.need("deltas", sequence(_delta, most=64)),
            chunks=fields.may("chunks", _chunk_map, None),
        )
    except ManifestError as e:
        raise TrustError(str(e), "malformed") from e


def is_artifact(target: Any) -> bool:
    """Whether an entry of the image repository is an artifact, and no file that comes with one."""
    custom = target.unrecognized_fields.get("custom")
    return isinstance(custom, dict) and custom.get("kind") == "artifact"


def _mapping(value: object, where: str) -> object:
    return value


def _delta_document(delta: Delta) -> dict[str, Any]:
    return {
        "from": delta.from_sha256,
        "path": delta.path,
        "length": delta.length,
        "sha256": delta.sha256,
        "method": delta.method,
    }


def _chunk_map(value: object, where: str) -> ChunkMap:
    fields = Fields(value, where)
    return ChunkMap(
        path=fields.need("path", _LOCATION),
        length=fields.need("length", natural),
        sha256=fields.need("sha256", _SHA256),
    )


def _delta(value: object, where: str) -> Delta:
    fields = Fields(value, where)
    return Delta(
        from_sha256=fields.need("from", _SHA256),
        path=fields.need("path", _LOCATION),
        length=fields.need("length", natural),
        sha256=fields.need("sha256", _SHA256),
        method=fields.need("method", text),
    )
