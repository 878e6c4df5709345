"""The recipe of an engine's build, read from a manifest, which comes from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgec.errors import IncompatibleArtifactError, ManifestError

Shape = tuple[int, ...]

_BUILDER = "tensorrt"
_NETWORK_FLAGS = ("STRONGLY_TYPED",)
_VERBOSITIES = ("LAYER_NAMES_ONLY", "DETAILED", "NONE")
_BUILDER_FLAGS = ("SPARSE_WEIGHTS",)
_PARSER_FLAGS = ("ADJUST_FOR_DLA",)
_MAX_MIB = 1 << 20
_MAX_LEVEL = 5
_MAX_SIZE = 1 << 31
_MAX_AXES = 8


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The shapes that one input may have.

    Attributes:
        smallest: The engine takes no smaller one.
        usual: The one it is made fastest for.
        largest: The engine takes no larger one.
    """

    smallest: Shape
    usual: Shape
    largest: Shape


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the device builds an engine.

    Attributes:
        onnx: Member with the typed graph.
        workspace_mib: What the builder may use while it tries kernels.
        optimization_level: 0, built fast, to 5, runs fast.
        verbosity: What the engine tells of itself: a ``ProfilingVerbosity``.
        builder_flags: Names of ``BuilderFlag`` to set beside those of the DLA.
        memory_budget_mib: What the engine should need at most; 0 where nothing was said.
        profile: Range of shapes of each input with free dimensions, by name.
        dla_cores: How many DLAs the target has that can run the model; 0 for none.
        gpu_fallback: Whether layers that the DLA cannot run go to the GPU.
        parser_flags: What the ONNX parser is told for the DLA.
        compute_capability: Of the GPU it was made for: ``8.7``; empty where nothing was said.
    """

    onnx: str
    workspace_mib: int
    optimization_level: int
    verbosity: str
    builder_flags: tuple[str, ...]
    memory_budget_mib: int
    profile: Mapping[str, ShapeRange]
    dla_cores: int
    gpu_fallback: bool
    parser_flags: tuple[str, ...]
    compute_capability: str

    def to_key(self, dla: int | None) -> dict[str, Any]:
        """Return what of it an engine depends on, as JSON."""
        return {
            "profiles": {
                name: [list(r.smallest), list(r.usual), list(r.largest)]
                for name, r in sorted(self.profile.items())
            },
            "config": {
                "workspace_mib": self.workspace_mib,
                "optimization_level": self.optimization_level,
                "verbosity": self.verbosity,
                # Left out where there are none: engines of such recipes were kept without it.
                **({"flags": list(self.builder_flags)} if self.builder_flags else {}),
            },
            "dla": dla,
        }


def parse_recipe(recipe: Mapping[str, Any]) -> Recipe:
    """Read the recipe of a manifest.

    Raises:
        ManifestError: It is malformed.
        IncompatibleArtifactError: It asks for something that this version of edgec does not know.
    """
    if recipe.get("builder") != _BUILDER:
        raise IncompatibleArtifactError(
            f"the recipe is for the builder {recipe.get('builder')!r:.60}, this is {_BUILDER}: update edgec"
        )
    network, config = _object(recipe, "network"), _object(recipe, "config")
    if network.get("strongly_typed") is not True:
        raise IncompatibleArtifactError(
            "the recipe asks for a network that is not strongly typed: compile the model again"
        )
    _words(network, "creation_flags", _NETWORK_FLAGS)
    pools = _object(config, "memory_pools_mib")
    if unknown := sorted(set(pools) - {"workspace"}):
        raise IncompatibleArtifactError(f"the recipe limits memory pools that edgec does not know: {unknown}")
    dla = recipe.get("dla")
    dla = {} if dla is None else _object(recipe, "dla")
    return Recipe(
        onnx=_text(recipe, "onnx"),
        workspace_mib=_number(pools, "workspace", 1, _MAX_MIB),
        optimization_level=_number(config, "builder_optimization_level", 0, _MAX_LEVEL),
        verbosity=_words({"v": [config.get("profiling_verbosity")]}, "v", _VERBOSITIES)[0],
        builder_flags=_words({"flags": config.get("flags", [])}, "flags", _BUILDER_FLAGS),
        memory_budget_mib=_number(recipe, "memory_budget_mib", 0, _MAX_MIB),
        profile=_profile(recipe.get("profiles")),
        dla_cores=_number(dla, "cores", 1, 16) if dla else 0,
        gpu_fallback=dla.get("gpu_fallback") is True,
        parser_flags=_words(dla, "parser_flags", _PARSER_FLAGS) if dla else (),
        compute_capability=_text(_object(recipe, "requires"), "compute_capability"),
    )


def _profile(value: object) -> dict[str, ShapeRange]:
    if not isinstance(value, list) or len(value) > 1:
        raise ManifestError("recipe.profiles must be a list of at most one profile")
    if not value:
        return {}
    if not isinstance(value[0], dict):
        raise ManifestError("recipe.profiles[0] must be an object")
    return {str(name): _range(r, f"recipe.profiles[0].{name!s:.60}") for name, r in value[0].items()}


def _range(value: object, where: str) -> ShapeRange:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} must be an object")
    smallest, usual, largest = (_shape(value.get(key), f"{where}.{key}") for key in ("min", "opt", "max"))
    if not len(smallest) == len(usual) == len(largest):
        raise ManifestError(f"{where}: min, opt and max must have as many axes as each other")
    if not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
        raise ManifestError(f"{where}: expected min <= opt <= max on every axis")
    return ShapeRange(smallest=smallest, usual=usual, largest=largest)


def _shape(value: object, where: str) -> Shape:
    if not isinstance(value, list) or len(value) > _MAX_AXES:
        raise ManifestError(f"{where} must be a list of at most {_MAX_AXES} sizes")
    if not all(type(size) is int and 0 <= size < _MAX_SIZE for size in value):
        raise ManifestError(f"{where} must have sizes from 0 to {_MAX_SIZE - 1}")
    return tuple(value)


def _object(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = fields.get(key)
    if not isinstance(value, Mapping):
        raise ManifestError(f"recipe.{key} must be an object, got {value!r:.60}")
    return value


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise ManifestError(f"recipe.{key} must be text, got {value!r:.60}")
    return value


def _number(fields: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ManifestError(f"recipe.{key} must be a whole number from {low} to {high}, got {value!r:.60}")
    return value


def _words(fields: Mapping[str, Any], key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    value = fields.get(key)
    if not isinstance(value, list | tuple):
        raise ManifestError(f"recipe.{key} must be a list, got {value!r:.60}")
    if unknown := [word for word in value if word not in known]:
        raise IncompatibleArtifactError(
            f"the recipe asks for {unknown[0]!r:.60}, edgec knows {', '.join(known)}: update edgec"
        )
    return tuple(value)
