"""What a user may ask of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgec.compiler.pruning.patterns import Pattern, parse_pattern
from edgec.errors import CompileError

Objective = Literal["latency", "size", "accuracy"]


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How to compile.

    Attributes:
        precision: ``auto`` makes every precision that the target allows a candidate; otherwise the only
            one to build besides fp32, against which it is measured.
        max_drop: Largest loss against fp32 that is allowed: 0.01 is one point of a score from 0 to 1,
            or one per cent of a metric without such a scale. None turns the gate off.
        accept_inconclusive: Whether a candidate passes that too few samples can neither pass nor fail.
        shapes: Sizes to pin, by name of the input.
        name: Name of the model; the file's name by default.
        version: Version of the model.
        inputs_stay: Whether the artifact forbids devices to send its inputs to a server.
        objective: What the winner is best at: ``latency``, ``size`` or ``accuracy``.
        budget_latency_ms: Largest median latency of one inference; None for no limit.
        budget_size_bytes: Largest payload.
        budget_memory_mib: Largest peak memory of a process that loads the artifact and runs one inference.
        fold: Whether pre-processing goes into the graph: ``auto`` where it is measurably faster,
            ``on`` where it can be, ``off``.
        prune: Share of the multiply-accumulates to remove in pruned forms of the model, which compete with
            the whole one: between 0 and 1, or ``auto`` for the largest step within the accuracy budget. Or
            where weights become zero, for targets that use it: ``2:4``, or ``unstructured:0.5`` for half of
            them. None for no pruned forms.
        repair: Whether int8 that loses too much accuracy is repaired, as far as that is possible.
        threads: Threads of one inference while candidates are measured.
        measure_s: Seconds to measure per candidate.
        workers: Processes that make candidates; None for one per core, up to 4; 0 to make them in this
            process, where a crash of a converter is a crash of the build.
        timeout_s: For one candidate; one that takes longer is out.
        environments: Where environments of converters are; None for those in ``~/.cache/edgec``.
        seed: Of everything that is random.
    """

    precision: str = "auto"
    max_drop: float | None = 0.01
    accept_inconclusive: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    name: str | None = None
    version: str = "1"
    inputs_stay: bool = False
    objective: Objective = "latency"
    budget_latency_ms: float | None = None
    budget_size_bytes: int | None = None
    budget_memory_mib: float | None = None
    fold: str = "auto"
    prune: float | str | None = None
    repair: bool = True
    threads: int = 1
    measure_s: float = 1.0
    workers: int | None = None
    timeout_s: float = 900.0
    environments: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prune, str) and self.prune != "auto":
            parse_pattern(self.prune)

    @property
    def sparsity(self) -> Pattern | None:
        """The pattern of zeros that `prune` asks for; None where it asks for something else."""
        return parse_pattern(self.prune) if isinstance(self.prune, str) and self.prune != "auto" else None

    def to_dict(self) -> dict[str, Any]:
        """Return what shapes the artifact, fit for JSON."""
        return {
            "precision": self.precision,
            "max_drop": self.max_drop,
            "accept_inconclusive": self.accept_inconclusive,
            "shapes": {name: list(sizes) for name, sizes in sorted(self.shapes.items())},
            "objective": self.objective,
            "budget_latency_ms": self.budget_latency_ms,
            "budget_size_bytes": self.budget_size_bytes,
            "budget_memory_mib": self.budget_memory_mib,
            "fold": self.fold,
            "prune": self.prune,
            "repair": self.repair,
            "threads": self.threads,
            "measure_s": self.measure_s,
            "seed": self.seed,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> CompileOptions:
        """Return the options that `to_dict` gave, from an artifact for example; others have their default.

        Raises:
            CompileError: An option is unknown, or its value is of another type.
        """
        hints = get_type_hints(CompileOptions)
        for name in data.keys() - hints.keys():
            raise CompileError(f"the option {str(name)[:60]!r} is unknown to this edgec")
        try:
            return CompileOptions(**{name: _decoded(value, hints[name]) for name, value in data.items()})
        except TypeError as e:
            raise CompileError(f"an option has a value of another type: {e}") from e


def _decoded(value: Any, hint: Any) -> Any:
    """Return a value of JSON as the type that an annotation asks for.

    Raises:
        TypeError: It is something else.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        kinds = [a for a in arguments if a is not NoneType]
        named = [a for a in kinds if (get_origin(a) is Literal and value in get_args(a)) or a is type(value)]
        return _decoded(value, named[0] if named else kinds[0])
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_decoded(item, arguments[0]) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {str(key): _decoded(item, arguments[1]) for key, item in value.items()}
    # JSON writes 1.0 as 1, and Python counts booleans among the integers.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise TypeError(f"expected {getattr(hint, '__name__', hint)}, got {str(value)[:60]!r}")
