"""Reading what the agent keeps on disk of a model, as any program may.

::

    MODELS/NAME/current.edgec -> a/model.edgec      what serves: a link that is replaced as a whole
    MODELS/NAME/a/model.edgec  a/slot.json          the artifact, and its digest as JSON
    MODELS/NAME/b/...                               the one before, or the one that is being installed
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from edgec.artifact._fields import Fields, natural
from edgec.errors import ArtifactError, ManifestError
from edgec.runtime._link_messages import DIGEST, FILE, MODEL

_LOOKS = 5
_MAX_NOTE = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class InstalledFile:
    """A whole artifact in a slot.

    Attributes:
        path: Of the file.
        file: The same within the model's directory: ``a/model.edgec``.
        digest: SHA-256 of the file in hex, as the agent has verified it.
    """

    path: Path
    file: str
    digest: str


class ModelDirectory:
    """What an agent has installed of one model. Reading needs no agent that runs, and no lock.

    Args:
        models: The agent's directory of models.
        model: Name of the model.

    Raises:
        ValueError: That is no name of a model.
    """

    def __init__(self, models: str | Path, model: str) -> None:
        try:
            self.model = MODEL(model, "model")
        except ManifestError as e:
            raise ValueError(str(e)) from e
        self.path = Path(models) / model

    def current(self) -> InstalledFile | None:
        """Return what serves; None for nothing."""
        for _ in range(_LOOKS):
            file = self._link()
            if file is None:
                return None
            try:
                found = self.slot(file)
            except ArtifactError:
                # Between two looks it may have been replaced; a slot that serves is never written to.
                if self._link() == file:
                    raise
                continue
            if self._link() == file:
                return found
        raise ArtifactError(
            f"{self.path / 'current.edgec'} changes all the time: is more than one agent here?"
        )

    def slot(self, file: str) -> InstalledFile:
        """Return what is in a slot.

        Args:
            file: ``a/model.edgec`` or ``b/model.edgec``.

        Raises:
            ArtifactError: There is nothing whole in it.
        """
        path = self.path / file
        try:
            with (path.parent / "slot.json").open("rb") as note:
                fields = Fields(json.loads(note.read(_MAX_NOTE)), "slot.json")
            length, digest = fields.need("length", natural), fields.need("digest", DIGEST)
            size = path.stat().st_size
        except (OSError, ValueError, RecursionError, ManifestError) as e:
            raise ArtifactError(f"{path} is not installed: {e}") from e
        if size != length:
            raise ArtifactError(f"{path} has {size} bytes, and was installed with {length}")
        return InstalledFile(path=path, file=file, digest=digest)

    def _link(self) -> str | None:
        try:
            target = os.readlink(self.path / "current.edgec")
        except FileNotFoundError:
            return None
        except OSError as e:
            raise ArtifactError(f"{self.path / 'current.edgec'} cannot be read: {e}") from e
        try:
            return FILE(target, "current.edgec")
        except ManifestError as e:
            raise ArtifactError(f"{self.path}: {e}") from e
