"""Whether the engine that an artifact needs is on this device, in the version that it needs."""

from __future__ import annotations

from collections.abc import Mapping
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
    from edgec.runtime.backends._versions import is_in_line

    packages = _PACKAGES.get(engine["name"])
    if packages is None:
        return
    versions = {name: version for name in packages if (version := _version(name)) is not None}
    if not versions:
        raise WorkFailedError(
            "engine", f"it needs {engine['name']}: run  pip install 'edgec[{engine['name']}]'"
        )
    if not any(is_in_line(version, engine["version"]) for version in versions.values()):
        here = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise WorkFailedError("engine", f"it needs {engine['name']} {engine['version']}, and here is {here}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
