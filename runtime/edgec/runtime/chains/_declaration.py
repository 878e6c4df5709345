"""A chain as its TOML file declares it; no artifact is opened for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgec.artifact import Pipeline, TensorSpec
from edgec.artifact._toml import parse_toml
from edgec.artifact.steps import Decode, Step
from edgec.artifact.steps._step import is_plain_text
from edgec.errors import PipelineError
from edgec.runtime.chains._steps import (
    INPUTS,
    STEPS,
    ImageInput,
    Model,
    TensorInput,
    is_name,
    is_reference,
    references,
)

SUFFIX = ".toml"
"""What tells the path of a chain from that of an artifact."""

_MOST_BYTES = 1 << 20
_MOST_STAGES, _MOST_ENTRIES, _MOST_SAID = 64, 64, 32
_KEYS = ("name", "version", "inputs", "stages", "outputs")


@dataclass(frozen=True, kw_only=True)
class ChainSpec:
    """A chain, declared; every name in it leads to an input or an earlier stage.

    Attributes:
        model: Name of the chain, as of a model.
        model_version: Version, chosen by its author.
        inputs: What it takes, by name.
        stages: What happens, by name, in order.
        outputs: The value of each output, by name; or the one stage of which all parts are the outputs.
        folder: Where the paths of artifacts begin.
    """

    model: str
    model_version: str
    inputs: Mapping[str, Step]
    stages: Mapping[str, Step]
    outputs: Mapping[str, str] | str
    folder: Path

    @property
    def artifacts(self) -> dict[str, Path]:
        """Path of the artifact of each stage that runs one."""
        return {
            name: self.folder / stage.artifact
            for name, stage in self.stages.items()
            if isinstance(stage, Model)
        }

    @property
    def digest(self) -> str:
        """SHA-256 of what is declared, in hex; without what is in the artifacts."""
        parts = (self.model, self.model_version, dict(self.inputs), dict(self.stages), self.outputs)
        return sha256(repr(parts).encode()).hexdigest()

    @property
    def pipeline(self) -> Pipeline | None:
        """What a sample of the chain is read with: decoding where it is an image; else None."""
        only = next(iter(self.inputs.values())) if len(self.inputs) == 1 else None
        return Pipeline(preprocess=(Decode(color=only.color),)) if isinstance(only, ImageInput) else None

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """Inputs as arrays; an image is uint8[height, width, channels]."""
        return tuple(_spec(name, declared) for name, declared in self.inputs.items())


def _spec(name: str, declared: Step) -> TensorSpec:
    if isinstance(declared, TensorInput):
        return TensorSpec(name, declared.dtype, declared.shape)
    if isinstance(declared, ImageInput):
        channels = 1 if declared.color == "GRAY" else 3
        return TensorSpec(name, "uint8", (f"{name}_height", f"{name}_width", channels))
    return TensorSpec(name, "object", (1,))


def read_chain(path: str | Path) -> ChainSpec:
    """Read a chain from its TOML file.

    Raises:
        PipelineError: The file cannot be read, or something in it is wrong; all of it is said.
    """
    path = Path(path)
    try:
        return _Reader(parse_toml(path, _MOST_BYTES)).chain(path.parent)
    except PipelineError as e:
        raise PipelineError(f"{path}: {e}") from e


class _Reader:
    """Reads the tables of a file, and notes everything that is wrong."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        entries = data.get("stages")
        # Entries that are no tables have no name; `_stages` says so.
        self._names = [
            str(entry.get("name")) if isinstance(entry, Mapping) else ""
            for entry in (entries[:_MOST_STAGES] if isinstance(entries, list) else ())
        ]
        self._problems = [
            f"unknown key {str(name)[:60]!r}: expected {', '.join(_KEYS)}"
            for name in data
            if name not in _KEYS
        ]

    def chain(self, folder: Path) -> ChainSpec:
        name, version = self._word("name"), self._word("version", "1")
        inputs, stages = self._inputs(), self._stages()
        self._check_references(stages)
        outputs = self._outputs()
        if self._problems:
            more = len(self._problems) - _MOST_SAID
            raise PipelineError(
                "; ".join(self._problems[:_MOST_SAID]) + (f"; and {more} more" if more > 0 else "")
            )
        return ChainSpec(
            model=name, model_version=version, inputs=inputs, stages=stages, outputs=outputs, folder=folder
        )

    def _word(self, key: str, default: str | None = None) -> str:
        value = self._data.get(key, default)
        if not is_plain_text(value):
            self._problems.append(f"{key}: expected a text of 1 to 256 characters, got {_told(value)}")
        return str(value)

    def _inputs(self) -> dict[str, Step]:
        found: dict[str, Step] = {}
        for name, table in self._table("inputs").items():
            where = f"input {str(name)[:60]!r}"
            if not is_name(name):
                self._problems.append(f"{where}: expected a name of letters, digits, _ and -")
                continue
            kind = table.get("kind", "tensor") if isinstance(table, Mapping) else None
            declared = self._step(where, "kind", kind, INPUTS, table)
            if declared is not None:
                found[name] = declared
        return found

    def _stages(self) -> dict[str, Step]:
        entries = self._data.get("stages")
        if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_STAGES:
            self._problems.append(
                f"stages: expected 1 to {_MOST_STAGES} of them ([[stages]]), got {_told(entries)}"
            )
            return {}
        found: dict[str, Step] = {}
        for number, entry in enumerate(entries, 1):
            name = entry.get("name") if isinstance(entry, Mapping) else None
            if not is_name(name):
                self._problems.append(
                    f"stage {number}: expected a name of letters, digits, _ and -, got {_told(name)}"
                )
                continue
            name = str(name)
            if name in found or name in self._table("inputs", quiet=True):
                self._problems.append(f"stage {number}: {name!r} is taken: give it another name")
                continue
            where = f"stage {name!r}"
            if "artifact" in entry:
                declared = self._step(where, "step", "model", {"model": Model}, entry)
            else:
                declared = self._step(where, "step", entry.get("step"), STEPS, entry)
            if declared is not None:
                found[name] = declared
        return found

    def _step(
        self, where: str, word: str, kind: Any, known: Mapping[str, type[Step]], table: Any
    ) -> Step | None:
        if not isinstance(kind, str) or kind not in known:
            also = " or an artifact" if known is STEPS else ""
            self._problems.append(
                f"{where}: expected {word} = one of {', '.join(known)}{also}; got {_told(kind)}"
            )
            return None
        if known is not INPUTS and "artifact" in table and "step" in table:
            self._problems.append(f"{where}: has both a step and an artifact: make it two stages")
            return None
        try:
            return known[kind](**{str(k): v for k, v in table.items() if k not in (word, "name")})
        except PipelineError as e:
            self._problems.append(f"{where}: {e}")
            return None

    def _check_references(self, stages: Mapping[str, Step]) -> None:
        declared = self._table("inputs", quiet=True)
        for name, stage in stages.items():
            # Also what is wrong itself counts as there, so that one mistake is said once.
            before = {*map(str, declared), *self._names[: self._names.index(name)]}
            for key, reference in references(stage):
                first = reference.split(".", 1)[0]
                if first not in before:
                    later = " (that is a later stage)" if first in stages else ""
                    known = ", ".join(sorted(before)[:16]) or "none"
                    self._problems.append(
                        f"stage {name!r}: {key}: there is no value {reference!r} before it{later}; "
                        f"there are {known}"
                    )

    def _outputs(self) -> dict[str, str] | str:
        outputs = self._data.get("outputs")
        known = {*map(str, self._table("inputs", quiet=True)), *self._names}
        if is_name(outputs):
            if str(outputs) not in known:
                self._problems.append(f"outputs: there is no stage {outputs!r}")
            return str(outputs)
        if not isinstance(outputs, Mapping) or not 0 < len(outputs) <= _MOST_ENTRIES:
            self._problems.append(
                f"outputs: expected the name of a stage, or a table of 1 to {_MOST_ENTRIES} values by name, "
                f"got {_told(outputs)}"
            )
            return {}
        for name, reference in outputs.items():
            if not is_name(name) or not is_reference(reference):
                self._problems.append(
                    f"output {str(name)[:60]!r}: expected a name, and a value such as stage or stage.part, "
                    f"got {_told(reference)}"
                )
            elif reference.split(".", 1)[0] not in known:
                self._problems.append(f"output {name!r}: there is no value {reference!r}")
        return {str(name): str(reference) for name, reference in outputs.items()}

    def _table(self, key: str, quiet: bool = False) -> Mapping[str, Any]:
        value = self._data.get(key)
        if isinstance(value, Mapping) and 0 < len(value) <= _MOST_ENTRIES:
            return value
        if not quiet:
            self._problems.append(
                f"{key}: expected a table of 1 to {_MOST_ENTRIES} inputs ([inputs.NAME]), got {_told(value)}"
            )
        return {}


def _told(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, str | int | float | bool):
        return repr(value)[:60]
    return (
        f"{type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else type(value).__name__
    )
