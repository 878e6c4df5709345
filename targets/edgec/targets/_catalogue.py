"""Which targets there are, what else they are called, and where their files are.

Built-in targets are the files in ``data/``. Another distribution adds its own through an entry point
of the group ``edgec.targets``:

* ``acme = "acme_targets.data"``: a package; every ``NAME.toml`` in its folder is the target ``NAME``;
* ``acme-cam = "acme_targets:camera"``: a function; called without arguments it returns the TOML text
  of the target ``acme-cam``.

Built-in names come first and are read without looking at entry points.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.errors import TargetError, UnknownTargetError
from edgec.targets._host import host_arch
from edgec.targets._parse import merge, parse_target, parse_toml
from edgec.targets._target import Target

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_log = logging.getLogger(__name__)
ENTRY_POINTS = "edgec.targets"
_DATA = Path(__file__).parent / "data"
_MAX_BYTES = 1 << 20
_CPUS = {"x86_64": "cpu-x86_64", "aarch64": "cpu-arm64"}
# What a short name means unless somebody says more: the device or the toolchain that most have.
_ALIASES = {
    "x86_64": "cpu-x86_64",
    "amd64": "cpu-x86_64",
    "arm64": "cpu-arm64",
    "aarch64": "cpu-arm64",
    "raspberry-pi": "rpi5",
    "raspberry-pi-4": "rpi4",
    "raspberry-pi-5": "rpi5",
    "intel": "intel-cpu",
    "openvino": "intel-cpu",
    "jetson": "jetson-orin-nano-jp6",
    "jetson-orin-nano": "jetson-orin-nano-jp6",
    "jetson-agx-orin": "jetson-agx-orin-jp6",
    "jetson-thor": "jetson-thor-jp7",
    "tensorrt": "jetson-orin-nano-jp6",
    "ethos-u": "ethos-u55-128",
    "ethos-u55": "ethos-u55-128",
    "ethos-u65": "ethos-u65-256",
    "ethos-u85": "ethos-u85-256",
    "coral": "coral-edgetpu",
    "edgetpu": "coral-edgetpu",
    "litert": "npu-tflite",
    "npu": "npu-tflite",
    "tflite": "npu-tflite",
}
# These mean the CPU of the machine that asks.
_HOST_ALIASES = ("cpu", "onnxruntime")


# Problems of packages that were told of.
_told: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What a name on the command line turned out to be.

    Attributes:
        target: The target.
        asked: The name or path as it was given.
        note: Says which default was taken, or which file was read; None where the name was the target's own.
    """

    target: Target
    asked: str
    note: str | None


def load_target(name_or_path: str) -> Target:
    """Return a target by its name, an alias, or the path of a file.

    Raises:
        UnknownTargetError: There is none of this name.
        TargetError: The file cannot be read, or what it says is wrong.
    """
    return resolve_target(name_or_path).target


def resolve_target(name_or_path: str) -> Resolution:
    """Return a target by its name, an alias, or the path of a file, and say which it is.

    What ends in ``.toml`` or has a ``/`` in it is a path.

    Raises:
        UnknownTargetError: There is none of this name.
        TargetError: The file cannot be read, or what it says is wrong.
    """
    asked = name_or_path
    if _is_path(asked):
        target = _own_target(Path(asked))
        return Resolution(target=target, asked=asked, note=f"{asked!r} describes the target {target.name}")
    if asked in _HOST_ALIASES:
        name = _host_cpu(asked)
        note = f"{asked!r} is {name} (the CPU of this host)"
        return Resolution(target=_named(name), asked=asked, note=note)
    if asked in _ALIASES:
        name = _ALIASES[asked]
        note = f"{asked!r} is {name} (the documented default; 'edgec targets' lists them)"
        return Resolution(target=_named(name), asked=asked, note=note)
    return Resolution(target=_named(asked), asked=asked, note=None)


def target_names() -> list[str]:
    """Return the names of all targets, built in and installed, sorted.

    Raises:
        TargetError: An installed package offers a target that cannot be read or whose name is taken.
    """
    found, problems = _installed()
    if problems:
        raise TargetError("; ".join(problems))
    return sorted({*_builtin_names(), *found})


def alias_names() -> dict[str, str]:
    """Return what every alias stands for here, by alias; a host that no CPU target fits has no ``cpu``."""
    host = _CPUS.get(host_arch())
    own = {} if host is None else dict.fromkeys(_HOST_ALIASES, host)
    return dict(sorted({**_ALIASES, **own}.items()))


def meanings(alias: str) -> tuple[str, ...]:
    """Return the targets that an alias may stand for, whichever host says it; none of what is no alias."""
    if alias in _HOST_ALIASES:
        return tuple(sorted(_CPUS.values()))
    return (_ALIASES[alias],) if alias in _ALIASES else ()


def _is_path(name: str) -> bool:
    return name.endswith(".toml") or "/" in name or "\\" in name


def _host_cpu(asked: str) -> str:
    name = _CPUS.get(host_arch())
    if name is None:
        raise TargetError(
            f"{asked!r} is the CPU of this host, a {host_arch()}, for which there is no target: "
            f"name one of {', '.join(sorted(_CPUS.values()))}, or the path of a .toml file of your own"
        )
    return name


@lru_cache(maxsize=1)
def _builtin_names() -> frozenset[str]:
    return frozenset(path.stem for path in _DATA.glob("*.toml"))


@lru_cache(maxsize=64)
def _named(name: str) -> Target:
    tables, where = _tables_of(name, ())
    target = parse_target(tables, where)
    if target.name != name:
        raise TargetError(f"{where}: name: expected {name!r}, which it is offered as, not {target.name!r}")
    return target


def _own_target(path: Path) -> Target:
    target = parse_target(_tables_at(path, ()), str(path))
    if target.name in _builtin_names() or target.name in alias_names():
        raise TargetError(f"{path}: name: {target.name!r} is taken, give your target another name")
    return target


def _tables_of(name: str, seen: tuple[str, ...]) -> tuple[Mapping[str, Any], str]:
    """Return the tables of a named target, and what to call their file in messages."""
    if name in _builtin_names():
        path = _DATA / f"{name}.toml"
        return _extended(parse_toml(_read(path), path.name), path, path.name, seen), path.name
    installed, problems = _installed()
    if name not in installed:
        raise UnknownTargetError(name, sorted({*_builtin_names(), *installed}), tuple(problems))
    for problem in problems:
        if problem not in _told:
            _told.add(problem)
            _log.warning("targets of another package cannot be used: %s", problem)
    text, where = installed[name]
    return _extended(parse_toml(text, where), None, where, seen), where


def _tables_at(path: Path, seen: tuple[str, ...]) -> Mapping[str, Any]:
    return _extended(parse_toml(_read(path), str(path)), path, str(path), seen)


def _extended(
    tables: dict[str, Any], path: Path | None, where: str, seen: tuple[str, ...]
) -> Mapping[str, Any]:
    """Return `tables` over those of the target that their ``extends`` names, all but its name."""
    base = tables.pop("extends", None)
    if base is None:
        return tables
    if not isinstance(base, str):
        raise TargetError(f"{where}: extends: expected the name of a target or a path, not {base!r:.60}")
    if where in seen:
        raise TargetError(f"{where}: extends: {' -> '.join((*seen, where))} goes in a circle")
    seen = (*seen, where)
    if _is_path(base):
        if path is None:
            raise TargetError(f"{where}: extends: {base!r} is a path, but only a file can extend a path")
        below = _tables_at(path.parent / base, seen)
    else:
        name = _host_cpu(base) if base in _HOST_ALIASES else _ALIASES.get(base, base)
        try:
            below, _ = _tables_of(name, seen)
        except UnknownTargetError as e:
            raise TargetError(f"{where}: extends: {e}") from e
    return merge({key: value for key, value in below.items() if key != "name"}, tables)


def _read(path: Path) -> str:
    """Return the text of a target file; one of more than 1 MiB is refused unread."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as e:
        raise TargetError(f"{path}: there is no such file; expected a target description in TOML") from e
    except OSError as e:
        raise TargetError(f"{path}: cannot be read: {e.strerror}") from e
    if len(content) > _MAX_BYTES:
        raise TargetError(f"{path}: expected a target description of at most 1 MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as e:
        raise TargetError(f"{path}: not valid TOML: not UTF-8 at byte {e.start}") from e


def _installed() -> tuple[Mapping[str, tuple[str, str]], list[str]]:
    """Return text and origin of the targets that installed packages offer, by name, and what is wrong.

    A package that cannot be read takes nothing from the others; a name that two offer is nobody's.
    """
    # Costs 10 ms to import, which a built-in name need not pay.
    from importlib.metadata import entry_points

    found: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    taken = {*_builtin_names(), *alias_names()}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            offered = _offered(point)
        except TargetError as e:
            problems.append(str(e))
            continue
        for name, (text, where) in offered.items():
            if name in taken:
                problems.append(f"{where}: name: {name!r} is taken; its package must choose another name")
                found.pop(name, None)
            else:
                found[name] = text, where
            taken.add(name)
    return found, problems


def _offered(point: EntryPoint) -> dict[str, tuple[str, str]]:
    """Return text and origin of the targets of one entry point, by name."""
    origin = f"entry point {point.name} = {point.value}"
    try:
        offer = point.load()
    except Exception as e:  # to import a package runs its code, which may raise anything
        raise TargetError(
            f"{origin}: cannot be imported: {_said(e)}; upgrade or uninstall its package"
        ) from e
    if callable(offer):
        try:
            text = offer()
        except Exception as e:  # code of another package, too
            raise TargetError(f"{origin}: fails: {_said(e)}; upgrade or uninstall its package") from e
        if not isinstance(text, str):
            raise TargetError(f"{origin}: expected TOML text, not {type(text).__name__}")
        return {point.name: (text, origin)}
    folders = [Path(folder) for folder in getattr(offer, "__path__", ())]
    if not folders:
        raise TargetError(f"{origin}: expected a package with .toml files or a function that returns TOML")
    paths = sorted(path for folder in folders for path in folder.glob("*.toml"))
    return {path.stem: (_read(path), f"{path.name} of {origin}") for path in paths}


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
