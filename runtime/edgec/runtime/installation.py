"""What is installed here of what edgec needs, and whether it fits together."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec

from edgec.errors import BackendUnavailableError, ManifestError
from edgec.runtime.backends import backend_names, get_backend
from edgec.runtime.backends._cuda import find_cuda
from edgec.runtime.backends._versions import is_in_line

_REQUIREMENT = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?", re.DOTALL
)
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_MACHINE = re.compile(r"platform_machine\s*==\s*['\"](\w+)['\"]")
_PYTHON = re.compile(r"python_version\s*([<>=!~]+)\s*['\"]([\d.]+)['\"]")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that another one needs.

    Attributes:
        package: Its name.
        line: Versions that will do, as a PEP 440 specifier; empty for any.
        extra: Extra that brings it; None where it is always needed.
        applies: Whether this Python on this machine needs it at all.
    """

    package: str
    line: str
    extra: str | None
    applies: bool

    @cached_property  # whole files of metadata are read for it
    def installed(self) -> str | None:
        """The version that is installed; None where none is."""
        found = find_package(self.package)
        return None if found is None else found.version

    @property
    def status(self) -> str:
        """``ok``, ``missing``, ``too old``, ``too new``, or ``not needed`` by this Python here."""
        if not self.applies:
            return "not needed"
        if self.installed is None:
            return "missing"
        if is_in_line(self.installed, self.line):
            return "ok"
        at_least = ",".join(c for c in self.line.split(",") if c.strip().startswith((">", "~=", "==")))
        return "too new" if is_in_line(self.installed, at_least) else "too old"


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two installed packages that do not fit together.

    Attributes:
        package: The one that asks.
        needs: What it asks for: ``numpy<2.6``.
        installed: The version that is there instead; None where nothing is.
    """

    package: str
    needs: str
    installed: str | None


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """An engine on this machine.

    Attributes:
        name: Of its backend.
        works: Whether it can be imported, and its driver works.
        devices: Where it can run models, as it names them.
        problem: What is missing; empty where nothing is.
    """

    name: str
    works: bool
    devices: tuple[str, ...]
    problem: str


def find_package(name: str) -> Distribution | None:
    """Return an installed distribution; None where there is none of this name."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def requirements(package: str = "edgec") -> list[Requirement]:
    """Return what an installed package requires, extras included, from its own metadata.

    An extra that only names others (``all``) is left out; so is what depends on another system than this.
    """
    found = find_package(package)
    return [] if found is None else list(_parsed(found))


def conflicts(package: str = "edgec") -> list[Conflict]:
    """Return what does not fit together among the packages that are installed of what `package` needs."""
    waiting, seen, found = [package], set[str](), list[Conflict]()
    while waiting:
        name = waiting.pop().lower()
        if name in seen:
            continue
        seen.add(name)
        for needed in requirements(name):
            version = needed.installed
            # Other packages' extras are nobody's need; of edgec's, what is not there is no conflict.
            if not needed.applies or (needed.extra is not None and (name != package or version is None)):
                continue
            waiting.append(needed.package)
            if version is None or not _fits(version, needed.line):
                found.append(
                    Conflict(package=name, needs=f"{needed.package}{needed.line}", installed=version)
                )
    return sorted(found, key=lambda c: (c.package, c.needs))


def engine_states() -> list[EngineState]:
    """Return every engine, and where it can run models on this machine."""
    return [_engine_state(name) for name in backend_names()]


def _engine_state(name: str) -> EngineState:
    if name == "tensorrt":  # the driver first: TensorRT crashes the process where there is none
        cuda = find_cuda()
        if not cuda.devices:
            return EngineState(name=name, works=False, devices=(), problem=cuda.problem)
        if find_spec(name) is None:
            problem = "its Python package is not installed: it comes with JetPack"
            return EngineState(name=name, works=False, devices=(), problem=problem)
        return EngineState(name=name, works=True, devices=("GPU",), problem="")
    try:
        backend = get_backend(name)
    except BackendUnavailableError as e:
        return EngineState(name=name, works=False, devices=(), problem=str(e))
    devices = getattr(backend, "devices", None)
    return EngineState(name=name, works=True, devices=tuple(devices()) if devices else (), problem="")


def _parsed(found: Distribution) -> Iterator[Requirement]:
    for text in found.requires or ():
        match = _REQUIREMENT.fullmatch(text.strip())
        if match is None:
            continue
        name, _, line, marker = match.groups()
        extra = _EXTRA.search(marker or "")
        python = _PYTHON.search(marker or "")
        machine = _MACHINE.search(marker or "")
        rest = _MACHINE.sub("", _PYTHON.sub("", _EXTRA.sub("", marker or "")))
        if re.sub(r"\band\b|[()\s]", "", rest) or (extra is not None and extra[1] == "all"):
            continue
        yield Requirement(
            package=name,
            line=",".join(sorted((c.strip() for c in line.split(",")), reverse=True)),
            extra=extra[1] if extra is not None else None,
            applies=(python is None or is_in_line(_python(), f"{python[1]}{python[2]}"))
            and (machine is None or machine[1] == platform.machine()),
        )


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _fits(version: str, line: str) -> bool:
    try:
        return is_in_line(version, line)
    except ManifestError:
        return True  # a specifier of a form that edgec does not write, such as ===
