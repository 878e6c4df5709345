"""Whether the engine that an artifact needs is on this device, in the version that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata

from edgec.device_agent._actions import WorkFailedError

# Packages that bring an engine; where it is another's, its own loader says what is missing.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
}


def check_engine(engine: Mapping[str, str]) -> None:
    """Refuse an artifact before its download where its engine is not here, or another version of it."""
    _check(engine["name"], engine["version"])


# What is here once stays, as far as this is to save a download; what is not is looked for each time. Where an
# engine goes while the agent runs, the trial of the artifact says so.
@lru_cache(maxsize=64)
def _check(name: str, wanted: str) -> None:
    from edgec.runtime.backends._versions import is_in_line

    packages = _PACKAGES.get(name)
    if packages is None:
        return
    versions = {package: version for package in packages if (version := _version(package)) is not None}
    if not versions:
        raise WorkFailedError("engine", f"it needs {name}: run  pip install 'edgec[{name}]'")
    if not any(is_in_line(version, wanted) for version in versions.values()):
        here = ", ".join(f"{package} {version}" for package, version in versions.items())
        raise WorkFailedError("engine", f"it needs {name} {wanted}, and here is {here}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
