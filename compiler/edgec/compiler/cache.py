"""Results of earlier builds, found again by all that shaped them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import diskcache

from edgec.artifact import Pipeline, atomic_write
from edgec.compiler.environments import EnvironmentStore, get_environment
from edgec.compiler.extensions import extensions_digest
from edgec.compiler.figures import tool_versions
from edgec.compiler.model import SourceModel
from edgec.compiler.options import CompileOptions
from edgec.compiler.report import ArtifactInfo
from edgec.compiler.samples import Samples
from edgec.errors import OutputError
from edgec.runtime.benchmark import this_machine
from edgec.targets import Target, host_features

_SIZE_LIMIT_BYTES = 4 << 30  # the least recently used go first
_PACKAGES = ("edgec.compiler", "edgec.runtime", "edgec.artifact", "edgec.evaluation")


class BuildCache:
    """Artifacts and their figures, by key, in a directory.

    Raises:
        OutputError: The directory cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._cache = diskcache.Cache(
                str(directory), size_limit=_SIZE_LIMIT_BYTES, eviction_policy="least-recently-used"
            )
        except (OSError, diskcache.Timeout) as e:
            raise OutputError(
                f"the cache {directory} cannot be used ({e}): give --cache-dir or --no-cache"
            ) from e

    def fetch(self, key: str, path: Path) -> ArtifactInfo | None:
        """Write the artifact of a key to `path` and return its figures; None where there is none."""
        info: Any = self._cache.get(f"{key}.json")
        artifact: Any = self._cache.get(f"{key}.edgec", read=True)
        if info is None or artifact is None:
            return None
        with artifact, atomic_write(path) as file:
            shutil.copyfileobj(artifact, file)
        found: ArtifactInfo = json.loads(info)
        found["path"] = str(path)
        found["decisions"].append(
            "taken from the cache, figures included: an earlier build had the same model, data, options, "
            "tools and machine"
        )
        return found

    def store(self, key: str, path: Path, info: ArtifactInfo) -> None:
        """Keep an artifact and its figures; a cache that is full keeps nothing, which does no harm."""
        try:
            with path.open("rb") as artifact:
                self._cache.set(f"{key}.edgec", artifact, read=True)
            self._cache.set(f"{key}.json", json.dumps(info))
        except (OSError, diskcache.Timeout):
            return

    def close(self) -> None:
        """Close the cache's index."""
        self._cache.close()


def build_key(
    source: SourceModel,
    target: Target,
    pipeline: Pipeline | None,
    samples: Samples,
    metric: str | None,
    options: CompileOptions,
    name: str,
) -> str:
    """Return the digest of all that shapes an artifact and its figures."""
    machine = this_machine()
    parts: Mapping[str, Any] = {
        "source": source.sha256,
        "origin": None if source.origin is None else dict(source.origin.tools),
        "target": target.to_dict(),
        "pipeline": None if pipeline is None else pipeline.to_dict(),
        "pipeline_files": _file_digests(pipeline),
        "calibration": None if samples.calibration is None else samples.calibration.digest,
        "evaluation": None if samples.evaluation is None else samples.evaluation.digest,
        "metric": metric,
        "options": {**options.to_dict(), "measure_s": options.measure_s},
        "name": name,
        "version": options.version,
        "inputs_stay": options.inputs_stay,
        "tools": tool_versions(),
        "environments": _installed(options),
        "edgec": _own_digest(),
        "extensions": extensions_digest(),
        "machine": [machine.cpu, machine.cores, machine.arch, sorted(host_features())],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _installed(options: CompileOptions) -> str:
    """Return what is installed beside edgec that a build may go through."""
    if options.environments is None:
        return ""
    return EnvironmentStore(options.environments).installed(get_environment("onnx2tf"))


def _file_digests(pipeline: Pipeline | None) -> dict[str, str]:
    if pipeline is None:
        return {}
    return {name: hashlib.sha256(pipeline.read_source(name)).hexdigest() for name in pipeline.files}


@lru_cache(maxsize=1)
def _own_digest() -> str:
    """Return a digest of edgec's own code: a version number does not change while it is worked on."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(files(package)))
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
