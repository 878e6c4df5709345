"""From the text of a target file to a `Target`: pure, and strict about every key.

All that is wrong with a file is found in one go, and said by key.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from edgec.errors import TargetError
from edgec.targets._target import (
    PRECISIONS,
    AttributeLimit,
    Engine,
    Limits,
    QuantizationScheme,
    StandIn,
    Target,
)

ARCHES = ("x86_64", "aarch64", "armv7l", "armv8-m", "any")
_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_VERSIONS = re.compile(
    r"(==|!=|>=|<=|>|<|~=)\d+(\.\d+)*(\.\*)?(\s*,\s*(==|!=|>=|<=|>|<|~=)\d+(\.\d+)*(\.\*)?)*"
)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the tables of a target file.

    Args:
        text: TOML.
        where: What to call it in messages.

    Raises:
        TargetError: It is not TOML.
    """
    # Imported here because importing this package must stay cheap on a device.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise TargetError(f"{where}: not valid TOML: {e}") from e
    return tables


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `own` in their place: tables key by key, all else as a whole.

    TOML has no null: the word ``"none"`` in `own` takes the value away that `base` has.
    """
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        if value == "none" and key in merged:
            del merged[key]
        else:
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def parse_target(data: Mapping[str, Any], where: str) -> Target:
    """Return the target that the tables of a file describe.

    Args:
        data: The tables, as `parse_toml` gives them.
        where: What to call the file in messages.

    Raises:
        TargetError: Keys are missing, unknown or of another type, or values contradict each other;
            the message names them all.
    """
    problems: list[str] = []
    target = _target(_Table(data, "", problems))
    if not problems:
        problems = _contradictions(target)
    if problems:
        count = "" if len(problems) == 1 else f"{len(problems)} problems: "
        raise TargetError(f"{where}: {count}{'; '.join(problems)}")
    return target


def target_from_dict(data: Mapping[str, Any], where: str) -> Target:
    """Return the target that `Target.to_dict` gave the values of; what is None there may be missing.

    Raises:
        TargetError: As `parse_target`.
    """
    tables: dict[str, Any] = _without_nulls(data)
    return parse_target(tables, where)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


class _Table:
    """One table of a file: gives values of a wanted type, and collects what is wrong by key.

    What is wrong gives an empty value of the wanted type, so that reading goes on; nothing that was
    made of it is returned to a caller.
    """

    def __init__(self, data: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self._data = data
        self._path = path
        self._problems = problems
        self._read: set[str] = set()

    def _key(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def problem(self, key: str, message: str) -> None:
        self._problems.append(f"{self._key(key)}: {message}")

    def _get(self, key: str, kind: type, required: bool) -> Any:
        self._read.add(key)
        if key not in self._data:
            if required:
                self.problem(key, f"is missing, expected {_KINDS[kind]}")
            return None
        value = self._data[key]
        # TOML has booleans; Python calls them integers.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.problem(key, f"expected {_KINDS[kind]}, not {value!r:.60}")
            return None
        return value

    def text(self, key: str, choices: Collection[str] = ()) -> str:
        value = self._get(key, str, True)
        if value is None:
            return ""
        if not value.strip():
            self.problem(key, "is empty")
        elif choices and value not in choices:
            self.problem(key, f"unknown {value!r}, expected one of {', '.join(choices)}")
        return str(value)

    def optional_text(self, key: str, choices: Collection[str] = ()) -> str | None:
        return self.text(key, choices) if key in self._data else self._get(key, str, False)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, bool, default is None)
        return bool(default if value is None else value)

    def count(self, key: str, *, required: bool = False) -> int | None:
        value = self._get(key, int, required)
        if value is not None and value < 1:
            self.problem(key, f"expected a number above 0, not {value}")
        return None if value is None else int(value)

    def integer(self, key: str) -> int | None:
        value = self._get(key, int, False)
        return None if value is None else int(value)

    def texts(self, key: str, choices: Collection[str] = (), *, required: bool = False) -> tuple[str, ...]:
        values = self._get(key, list, required)
        if values is None:
            return ()
        for value in values:
            if not isinstance(value, str):
                self.problem(key, f"expected strings, not {value!r:.60}")
            elif choices and value not in choices:
                near = _near(value, choices)
                self.problem(key, f"unknown {value!r}, expected {', '.join(choices)}{near}")
        names = tuple(value for value in values if isinstance(value, str))
        if len(set(names)) < len(names):
            self.problem(key, "names something twice")
        return names

    def values(self, key: str) -> tuple[str | int, ...]:
        found = self._get(key, list, False) or []
        if any(isinstance(value, bool) or not isinstance(value, str | int) for value in found):
            self.problem(key, "expected strings or integers")
            return ()
        return tuple(found)

    def table(self, key: str, *, required: bool = False) -> _Table | None:
        value = self._get(key, dict, required)
        return None if value is None else _Table(value, self._key(key), self._problems)

    def tables(self, key: str, *, required: bool = False) -> list[_Table]:
        values = self._get(key, list, required) or []
        found = []
        for i, value in enumerate(values):
            if isinstance(value, dict):
                found.append(_Table(value, f"{self._key(key)}[{i}]", self._problems))
            else:
                self.problem(f"{key}[{i}]", f"expected a table, not {value!r:.60}")
        return found

    def named_texts(self, key: str) -> tuple[tuple[str, str], ...]:
        table = self.table(key)
        return () if table is None else tuple((name, table.text(name)) for name in table._data)

    def named_lists(self, key: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        table = self.table(key)
        return () if table is None else tuple((name, table.texts(name)) for name in table._data)

    def named_values(self, key: str) -> tuple[tuple[str, str | int], ...]:
        table = self.table(key)
        if table is None:
            return ()
        for name, value in table._data.items():
            if isinstance(value, bool) or not isinstance(value, str | int):
                table.problem(name, f"expected a string or an integer, not {value!r:.60}")
        return tuple(table._data.items())

    def close(self) -> None:
        """Report keys that nothing asked for."""
        for key in self._data:
            if key not in self._read:
                self.problem(key, f"unknown key{_near(key, self._read)}")


_KINDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    list: "an array",
    dict: "a table",
}


def _near(word: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _target(table: _Table) -> Target:
    name = table.text("name")
    if name and not _NAME.fullmatch(name):
        table.problem("name", f"expected lower case letters, digits and hyphens, not {name!r}")
    fallback, quantization = table.table("fallback"), table.table("quantization")
    limits, stand_in = table.table("limits"), table.table("stand_in", required=True)
    engines = tuple(_engine(engine) for engine in table.tables("engines", required=True))
    if not engines:
        table.problem("engines", "expected at least one [[engines]]")
    target = Target(
        name=name,
        title=table.text("title"),
        family=table.text("family"),
        arch=table.text("arch", ARCHES),
        engines=engines,
        fallback=None if fallback is None else _engine(fallback),
        quantization=None if quantization is None else _quantization(quantization),
        limits=Limits() if limits is None else _limits(limits),
        memory_mib=table.count("memory_mib", required=True) or 0,
        storage_mib=table.count("storage_mib", required=True) or 0,
        simd=table.texts("simd", required=True),
        stand_in=StandIn(arch=None, ranking=(), rule="") if stand_in is None else _stand_in(stand_in),
        accelerator=table.named_values("accelerator"),
        sources=table.named_texts("sources"),
    )
    table.close()
    return target


def _engine(table: _Table) -> Engine:
    engine = Engine(
        name=table.text("name"),
        version=table.text("version"),
        device=table.text("device"),
        precisions=table.texts("precisions", PRECISIONS, required=True),
        storage_only=table.texts("storage_only", PRECISIONS),
        needs=table.named_lists("needs"),
    )
    if engine.version and not _VERSIONS.fullmatch(engine.version):
        table.problem("version", f"expected versions such as '>=1.23,<2', not {engine.version!r}")
    for precision in (*engine.storage_only, *dict(engine.needs)):
        if precision not in engine.precisions:
            table.problem("precisions", f"{precision!r} has a rule but is not among them")
    table.close()
    return engine


def _quantization(table: _Table) -> QuantizationScheme:
    scheme = QuantizationScheme(
        activation_dtype=table.text("activation_dtype", ("uint8", "int8")),
        activation_symmetric=table.flag("activation_symmetric"),
        weight_dtype=table.text("weight_dtype", ("int8", "uint8")),
        weight_symmetric=table.flag("weight_symmetric"),
        per_channel=table.flag("per_channel"),
        bias_dtype=table.text("bias_dtype", ("int32", "float32")),
        io_dtype=table.text("io_dtype", ("float32", "int8", "uint8")),
        residual_one_input=table.flag("residual_one_input", False),
        full_integer=table.flag("full_integer", False),
        weight_qdq=table.flag("weight_qdq", False),
        weight_zero_point=table.flag("weight_zero_point", False),
        saturates_without=table.texts("saturates_without"),
    )
    table.close()
    return scheme


def _limits(table: _Table) -> Limits:
    limits = Limits(
        min_opset=table.count("min_opset"),
        max_opset=table.count("max_opset"),
        max_ir_version=table.count("max_ir_version"),
        max_rank=table.count("max_rank"),
        static_shapes=table.flag("static_shapes", False),
        max_batch=table.count("max_batch"),
        refused_operators=table.named_texts("refused_operators"),
        allowed_operators=table.texts("allowed_operators"),
        refused_dtypes=table.named_texts("refused_dtypes"),
        attributes=tuple(_attribute(limit) for limit in table.tables("attributes")),
    )
    table.close()
    return limits


def _attribute(table: _Table) -> AttributeLimit:
    limit = AttributeLimit(
        operator=table.text("operator"),
        attribute=table.text("attribute"),
        minimum=table.integer("minimum"),
        maximum=table.integer("maximum"),
        allowed=table.values("allowed"),
        reason=table.text("reason"),
    )
    if limit.minimum is None and limit.maximum is None and not limit.allowed:
        table.problem("attribute", "has no limit: give minimum, maximum or allowed")
    table.close()
    return limit


def _stand_in(table: _Table) -> StandIn:
    stand_in = StandIn(
        arch=table.optional_text("arch", ARCHES),
        features=table.texts("features"),
        without=table.texts("without"),
        ranking=table.texts("ranking", PRECISIONS, required=True),
        rule=table.text("rule"),
    )
    table.close()
    return stand_in


def _contradictions(target: Target) -> list[str]:
    """Return what is wrong between values that are each right."""
    problems = []
    names = [engine.name for engine in target.engines]
    precisions = {p for engine in target.engines for p in engine.precisions}
    if target.family not in names:
        problems.append(f"family: {target.family!r} is none of the engines: {', '.join(names)}")
    if target.quantization is None and precisions & {"int8", "mixed"}:
        problems.append("quantization: is missing, but an engine has int8 or mixed among its precisions")
    if precisions - set(target.stand_in.ranking):
        missing = ", ".join(p for p in PRECISIONS if p in precisions - set(target.stand_in.ranking))
        problems.append(f"stand_in.ranking: does not rank {missing}")
    limits = target.limits
    if limits.min_opset and limits.max_opset and limits.min_opset > limits.max_opset:
        problems.append(f"limits.min_opset: {limits.min_opset} is above max_opset {limits.max_opset}")
    both = set(limits.allowed_operators) & set(dict(limits.refused_operators))
    if both:
        problems.append(f"limits.refused_operators: also allowed: {', '.join(sorted(both))}")
    return problems
