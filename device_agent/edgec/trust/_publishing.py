"""Publishing as one does it: an artifact with patches that lead to it, and who shall run which version."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgec.errors import TrustError
from edgec.trust._assignment import DeviceBundle, ImageTarget
from edgec.trust._director import DirectorRepository
from edgec.trust._image import DeltaFile, ImageRepository
from edgec.trust._terms import Terms

# Smaller artifacts have one chunk, or few: fetched again as a whole they cost less than a map.
_LEAST_MAPPED = 2**20


class MadeDelta(Protocol):
    """What `edgec.delta.make_delta` returns, as far as a publisher looks at it."""

    @property
    def old_sha256(self) -> str:
        """Digest of the file that the patch begins at."""
        ...

    @property
    def method(self) -> str:
        """How it was made."""
        ...


MakeDelta = Callable[[Path, Path, Path], MadeDelta | None]


def publish_artifact(
    image: ImageRepository,
    artifact: Path,
    *,
    make_delta: MakeDelta,
    make_map: Callable[[Path], bytes],
    hardware: Sequence[str] = (),
    deltas: int = 1,
) -> ImageTarget:
    """Stage an artifact with patches from the versions before it, and the map of its chunks.

    Args:
        image: Where to; `ImageRepository.release` puts it in force.
        artifact: Path of an ``.edgec`` file.
        make_delta: ``edgec.delta.make_delta``: given old, new and output, makes a patch where it is worth it.
        make_map: Returns the map of a file's chunks, ``edgec.delta.ChunkMap.of_file(path).to_bytes()``.
        hardware: Targets that it may run on; the one it was compiled for if empty.
        deltas: From how many earlier versions.

    Raises:
        ArtifactError: It is damaged.
        TrustError: Its names cannot be published, or this version is there already with other content.
        OutputError: A file cannot be written.
    """
    target = image.publish(artifact, hardware=hardware)
    runs_on, known = set(target.hardware), {delta.from_sha256 for delta in target.deltas}
    of_model = image.targets(target.model).values()
    older = [t for t in of_model if t.release < target.release and runs_on & set(t.hardware)]
    with tempfile.TemporaryDirectory(prefix="edgec-") as work:
        made = []
        for number, old in enumerate(older[-deltas:] if deltas else ()):
            out = Path(work, str(number))
            if old.sha256 not in known and (
                info := make_delta(image.directory / old.location, artifact, out)
            ):
                made.append(DeltaFile(from_sha256=info.old_sha256, path=out, method=info.method))
        chunks = None
        if target.chunks is None and target.length >= _LEAST_MAPPED:
            chunks = Path(work, "chunks")
            chunks.write_bytes(make_map(artifact))
        if not made and chunks is None:
            return target
        return image.publish(artifact, hardware=hardware, deltas=made, chunks=chunks)


def chosen_target(
    image: ImageRepository, wanted: str, hardware: set[str], *, below: int | None = None
) -> ImageTarget:
    """Return the artifact that a name means on this hardware.

    Args:
        image: What is published.
        wanted: ``MODEL`` for its newest version, ``MODEL=VERSION``, or a path.
        hardware: Targets that the device can run; empty where that is not known.
        below: Only releases before this one.

    Raises:
        TrustError: None fits, or several do (``reason`` ``assignment``).
    """
    published = image.targets()
    if wanted in published:
        return published[wanted]
    model, _, version = wanted.partition("=")
    of_model = [t for t in published.values() if t.model == model and (not version or t.version == version)]
    fitting = [
        t
        for t in of_model
        if (not hardware or hardware & set(t.hardware)) and (below is None or t.release < below)
    ]
    newest = [t for t in fitting if t.release == max(t.release for t in fitting)]
    if len(newest) == 1:
        return newest[0]
    known = ", ".join(t.path for t in newest or of_model or published.values()) or "none"
    problem = "several artifacts fit" if newest else "no artifact fits"
    raise TrustError(f"{wanted!r}: {problem}; name a path or the hardware. There is: {known}", "assignment")


def previous_target(
    image: ImageRepository, director: DirectorRepository, device: str, model: str, hardware: set[str]
) -> ImageTarget:
    """Return the newest artifact of `model` before the one that `device` is assigned.

    Raises:
        TrustError: It is assigned none, or there is none before it.
    """
    path = director.assigned(device)[1].get(model)
    now = image.targets().get(path or "")
    if now is None:
        raise TrustError(f"{device} is assigned no artifact of {model} to go back from", "assignment")
    return chosen_target(image, model, hardware or set(now.hardware), below=now.release)


def assign_also(
    director: DirectorRepository,
    device: str,
    models: Mapping[str, str],
    *,
    hardware: set[str] | None = None,
    terms: Mapping[str, Terms] | None = None,
    retry: Collection[str] = (),
) -> DeviceBundle:
    """Assign artifacts to a device beside what it is assigned of other models.

    Args:
        director: Signs.
        device: Its id.
        models: Path of an artifact, by name of the model.
        hardware: Targets that it can run, if known.
        terms: By name of the model, as of `DirectorRepository.assign`.
        retry: Names of models, likewise.

    Raises:
        TrustError: As `DirectorRepository.assign` raises it.
    """
    whole = {**director.assigned(device)[1], **models}
    return director.assign(device, whole, hardware=hardware, terms=terms, retry=retry)
