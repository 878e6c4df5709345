"""Before any work: can a model be compiled for a target, node by node, and if not, what to do about it.

Where the target's converter runs on this host, it decides: it is given the model, and where it refuses that,
each node by itself, so that all that it refuses is known at once. Where it does not run here (TensorRT), the
documented rules of the target decide. What compiling would do first, simplify the model and lower its opset,
is done here too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from edgec.compiler.engines import Judge, find_judge
from edgec.compiler.lint import Finding, lint_limits, lint_tensorrt
from edgec.compiler.model import SourceModel, load_model, opset_of, real_inputs, shape_option
from edgec.compiler.passes.fit_limits import fit_limits
from edgec.compiler.passes.fold_constant_dequantize import is_quantized
from edgec.compiler.passes.normalize_qdq import normalize_qdq
from edgec.compiler.passes.simplify import simplify
from edgec.compiler.places import Place, Tensor, find_places
from edgec.errors import PassError, UnsupportedModelError
from edgec.targets import Target

MODEL = "(model)"
# What this version builds: from the model, by a converter of its own.
_BUILT_FAMILIES = ("onnxruntime", "openvino", "tensorrt", "litert")
_REFERENCE = "onnxruntime"
_SHAPES = re.compile(r"rank|shape|dimension|dynamic", re.IGNORECASE)
_LARGEST_CONSTANT = 1 << 20  # bytes of one input; a larger one is declared and not given


@dataclass(frozen=True, kw_only=True)
class CheckEntry:
    """The verdict on one node.

    Attributes:
        node: Its name, or where it has none, its operator and first output; ``(model)`` for what concerns
            the model as a whole.
        op: Its operator; empty for the model.
        domain: Of the operator; empty for ONNX's own.
        inputs: dtypes and shapes of what it takes: ``float32[1, 3, ?, ?]``.
        outputs: The same of what it gives.
        attributes: Its attributes, fit for JSON; tensors and subgraphs are summarised.
        verdict: ``ok``, ``warning`` or ``refused``.
        reason: Why it is not ``ok``; empty where it is.
        fix: What to do about it.
        decided_by: ``converter`` or ``rules``.
    """

    node: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    verdict: str
    reason: str = ""
    fix: str = ""
    decided_by: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Whether a model can be compiled for a target.

    Attributes:
        target: Name of the target.
        decided_by: ``converter`` or ``rules``.
        judge: Who decided, in words: ``OpenVINO 2026.4.1``.
        entries: Every node in the order of the graph, what concerns the whole model first.
        notes: What was done to the model before it was judged.
    """

    target: str
    decided_by: str
    judge: str
    entries: tuple[CheckEntry, ...]
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[CheckEntry, ...]:
        """The entries that keep the model from being compiled."""
        return tuple(e for e in self.entries if e.verdict == "refused")

    @property
    def warnings(self) -> tuple[CheckEntry, ...]:
        """The entries that say what is odd and does not keep it from being compiled."""
        return tuple(e for e in self.entries if e.verdict == "warning")

    @property
    def can_compile(self) -> bool:
        """Whether nothing is refused."""
        return not self.refused

    @property
    def nodes(self) -> int:
        """How many nodes were judged."""
        return sum(e.node != MODEL for e in self.entries)

    def require(self) -> None:
        """Do nothing if the model can be compiled.

        Raises:
            UnsupportedModelError: It cannot; everything that is refused is named.
        """
        if self.can_compile:
            return
        groups = [
            f"{reason} ({', '.join(e.node for e in entries[:3])}{', ...' if entries[3:] else ''})"
            for reason, entries in grouped(self.refused).items()
        ]
        rules = self.decided_by == "rules"  # whose name says for which target
        says, whom = f"{self.judge} refuse{'' if rules else 's'}", "" if rules else f" for {self.target}"
        raise UnsupportedModelError(f"{says} the model{whom}: {'; '.join(groups)}; edgec check says more")

    def to_dict(self) -> dict[str, Any]:
        """Return the report, fit for JSON; its shape is documented in ``docs/check.md``."""
        return {
            "target": self.target,
            "can_compile": self.can_compile,
            "decided_by": self.decided_by,
            "judge": self.judge,
            "notes": list(self.notes),
            "nodes": self.nodes,
            "refused": len(self.refused),
            "entries": [
                {
                    "node": e.node,
                    "op": e.op,
                    "domain": e.domain,
                    "inputs": list(e.inputs),
                    "outputs": list(e.outputs),
                    "attributes": dict(e.attributes),
                    "verdict": e.verdict,
                    "reason": e.reason,
                    "fix": e.fix,
                    "decided_by": e.decided_by,
                }
                for e in self.entries
            ],
        }


def grouped(entries: Sequence[CheckEntry]) -> dict[str, list[CheckEntry]]:
    """Return entries by their reason, in order of first appearance."""
    groups: dict[str, list[CheckEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.reason, []).append(entry)
    return groups


def check_model(
    model: onnx.ModelProto | SourceModel | str | Path,
    target: Target,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> CheckReport:
    """Say whether a model can be compiled for a target.

    Args:
        model: Or where it lies.
        target: Any; of a family that this version does not build, the report says so.
        shapes: Sizes to pin, by name of the input; for a path only.

    Raises:
        ModelError: There is no valid ONNX model at the path.
    """
    if isinstance(model, str | Path):
        model = load_model(Path(model), shapes)
    path = model.path if isinstance(model, SourceModel) and model.large else None
    proto = model.proto if isinstance(model, SourceModel) else model
    report = _check_form(proto, path, target, ())
    if report.can_compile or path is not None:
        return report
    try:
        simpler = simplify(proto)
    except PassError:
        return report
    note = "judged after simplification, as it would be compiled"
    if target.quantization is not None and is_quantized(simpler):
        simpler = normalize_qdq(simpler, target.quantization)[0]
        note = "judged after simplification, its quantization in the form that the target takes, as compiled"
    after = _check_form(simpler, None, target, (note,))
    # What cannot be said of a node before, such as that shapes are not known, often can be said after.
    vague = any(e.node == MODEL for e in report.refused)
    return after if vague or len(after.refused) < len(report.refused) else report


def _check_form(
    model: onnx.ModelProto, path: Path | None, target: Target, notes: tuple[str, ...]
) -> CheckReport:
    places = find_places(model)
    try:
        fitted = fit_limits(model, target.limits) if path is None else model
        whole = list(_lowered(model, fitted))
    except PassError as e:
        fitted, whole = model, [_model_entry("refused", str(e), "", "rules")]
    if target.family not in _BUILT_FAMILIES:
        return _unbuilt(fitted, places, target, notes, whole)
    # A model whose opset cannot be lowered is told of once.
    findings = [f for f in _rules(fitted, target) if not (f.rule == "opset" and whole)]
    engine = target.engines[0].name
    judge = find_judge(engine)
    refusals = _refusals(judge, fitted, path, places) if judge is not None else {}
    reference = find_judge(_REFERENCE) if engine != _REFERENCE else None
    if reference is not None:  # without it, nothing could be proven about what is compiled
        refusals = {**_refusals(reference, fitted, path, places), **refusals}
    decided_by = "converter" if judge is not None else "rules"
    by_node = _by_node(findings)
    entries = [*whole, *(_from_finding(f) for f in by_node.pop(MODEL, []))]
    if MODEL in refusals:
        entries.append(_model_entry("refused", *refusals[MODEL], decided_by))
    entries += [_entry(p, by_node.get(p.label, []), refusals.get(p.label), decided_by) for p in places]
    who = f"{judge.title} {judge.version()}" if judge is not None else f"the rules of {target.name}"
    return CheckReport(
        target=target.name, decided_by=decided_by, judge=who, entries=tuple(entries), notes=notes
    )


def _unbuilt(
    model: onnx.ModelProto,
    places: Sequence[Place],
    target: Target,
    notes: tuple[str, ...],
    whole: Sequence[CheckEntry],
) -> CheckReport:
    entry = _model_entry(
        "refused",
        f"this version of edgec does not build for {target.family} targets yet",
        f"compile for {', '.join(_BUILT_FAMILIES)} targets, or use a later version of edgec",
        "rules",
    )
    by_node = _by_node(lint_limits(model, target.limits))
    entries = [entry, *whole, *(_from_finding(f) for f in by_node.pop(MODEL, []))]
    entries += [_entry(p, by_node.get(p.label, []), None, "rules") for p in places]
    return CheckReport(
        target=target.name,
        decided_by="rules",
        judge=f"the rules of {target.name}",
        entries=tuple(entries),
        notes=notes,
    )


def _rules(model: onnx.ModelProto, target: Target) -> list[Finding]:
    if target.family == "tensorrt":
        return lint_tensorrt(model, target)
    if target.family == "litert":
        from edgec.compiler.lint_litert import lint_litert  # here, because the writer has an extra of its own

        return lint_litert(model, target)
    return lint_limits(model, target.limits)


def _lowered(model: onnx.ModelProto, fitted: onnx.ModelProto) -> Iterator[CheckEntry]:
    if opset_of(fitted) != opset_of(model):
        yield _model_entry(
            "warning",
            f"opset {opset_of(model)} is newer than the target takes, and is converted to {opset_of(fitted)}",
            f"export with opset_version={opset_of(fitted)} to be sure of what is compiled",
            "rules",
        )


# -- the engine's own verdict ------------------------------------------------------------------------------


def _refusals(
    judge: Judge, model: onnx.ModelProto, path: Path | None, places: Sequence[Place]
) -> dict[str, tuple[str, str]]:
    """Return reason and fix by label of the node, or under `MODEL` where no single node is to blame."""
    whole = judge.refusal(model if path is None else path)
    if whole is None:
        return {}
    found: dict[str, tuple[str, str]] = {}
    known: dict[bytes, str | None] = {}
    for place in places:
        alone = _alone(place, model)
        if alone is None:
            continue
        key = _anonymous(alone)
        if key not in known:
            # What follows on a refused node is of unknown rank, which is no fault of its own.
            ranked = all(t.shape is not None for t in (*place.inputs, *place.captured) if t is not None)
            known[key] = judge.refusal(alone, compile_too=ranked)
        reason = known[key]
        if reason is not None:
            reason = _without_names(reason, alone)
            found[place.label] = f"{judge.title} refuses it: {reason}", _advice(place, reason, model)
    if not found:
        advice = _pinning(model) or "export the model again, with another opset or exporter"
        return {MODEL: (f"{judge.title} refuses it: {whole}", advice)}
    return found


def _alone(place: Place, model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a model of this one node; None where the types of what it takes are not known.

    What follows on an operator of a foreign domain has no known type. To see whether the engine knows
    another such operator at all, any type will do.
    """
    tensors = {t.name: t for t in (*place.inputs, *place.captured) if t is not None}
    if place.node.domain not in ("", "ai.onnx"):
        tensors = {n: t if t.dtype else replace(t, dtype="float32") for n, t in tensors.items()}
    if any(t.dtype is None for t in tensors.values()):
        return None
    graph = onnx.GraphProto(name="alone")
    graph.node.append(place.node)
    for tensor in tensors.values():
        constant = tensor.constant
        if constant is not None and constant.ByteSize() <= _LARGEST_CONSTANT and not _is_outside(constant):
            graph.initializer.add().CopyFrom(constant)
            graph.initializer[-1].name = tensor.name
        else:
            graph.input.append(_declared(tensor))
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in place.node.output if n)
    alone = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    alone.opset_import.extend(model.opset_import)
    alone.functions.extend(model.functions)
    return alone


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _declared(tensor: Tensor) -> onnx.ValueInfoProto:
    assert tensor.dtype is not None
    kind = (
        TensorProto.STRING
        if tensor.dtype == "string"
        else helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    )
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)


def _anonymous(alone: onnx.ModelProto) -> bytes:
    """Return what two nodes have in common that an engine judges alike: all but names and large values."""
    names: dict[str, str] = {}
    copy = onnx.ModelProto()
    copy.CopyFrom(alone)
    if any(a.HasField("g") or a.graphs for a in copy.graph.node[0].attribute):
        return bytes(copy.SerializeToString(deterministic=True))  # bodies name tensors from outside
    node = copy.graph.node[0]
    node.name, node.doc_string = "", ""
    for field_ in (node.input, node.output):
        for index, name in enumerate(field_):
            field_[index] = names.setdefault(name, f"t{len(names)}") if name else ""
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.initializer):
        value.name = names[value.name]
        if isinstance(value, TensorProto) and value.ByteSize() > 256:
            value.ClearField("raw_data")
            value.ClearField("float_data")
    return bytes(copy.SerializeToString(deterministic=True))


def _without_names(reason: str, alone: onnx.ModelProto) -> str:
    """Return a reason that is the same for every node of its kind, so that they can be told of as one."""
    node = alone.graph.node[0]
    for name in sorted({node.name, *node.output, *node.input} - {""}, key=len, reverse=True):
        for quoted in (f"node '{name}'", f"Node ({name})", f"node: {name}", f"'{name}'"):
            reason = reason.replace(quoted, "it")
    return reason


def _advice(place: Place, reason: str, model: onnx.ModelProto) -> str:
    pinning = _pinning(model) if _SHAPES.search(reason) else None
    if pinning is not None:
        return f"{pinning}, or replace the operator"
    if place.node.domain not in ("", "ai.onnx"):
        return "export it as standard ONNX operators, or compile for another target (cpu)"
    return "replace the operator, leave it out of the exported model, or compile for another target (cpu)"


def _pinning(model: onnx.ModelProto) -> str | None:
    """Return how to pin the inputs that have free dimensions; None where there are none."""
    for value in real_inputs(model):
        dims = value.type.tensor_type.shape.dim
        if any(not d.HasField("dim_value") for d in dims):
            sizes = ",".join(str(d.dim_value) if d.HasField("dim_value") else "N" for d in dims)
            return f"pin the shapes of the inputs: {shape_option(value.name, sizes)} with numbers for N"
    return None


# -- entries -----------------------------------------------------------------------------------------------


def _by_node(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.node, []).append(finding)
    return found


def _verdict(finding: Finding) -> str:
    return "refused" if finding.severity == "error" else "warning"


def _from_finding(finding: Finding) -> CheckEntry:
    return _model_entry(_verdict(finding), finding.message, finding.fix, "rules")


def _model_entry(verdict: str, reason: str, fix: str, decided_by: str) -> CheckEntry:
    return CheckEntry(
        node=MODEL,
        op="",
        domain="",
        inputs=(),
        outputs=(),
        attributes={},
        verdict=verdict,
        reason=reason,
        fix=fix,
        decided_by=decided_by,
    )


def _entry(
    place: Place, findings: Sequence[Finding], refusal: tuple[str, str] | None, decided_by: str
) -> CheckEntry:
    verdicts = [(_verdict(f), f.message, f.fix, "rules") for f in findings]
    if refusal is not None and not any(v[0] == "refused" for v in verdicts):
        verdicts.append(("refused", *refusal, "converter"))
    # One entry per node: the gravest verdict, with every reason.
    worst = "refused" if any(v[0] == "refused" for v in verdicts) else "warning" if verdicts else "ok"
    told = [v for v in verdicts if v[0] == worst]
    return CheckEntry(
        node=place.label,
        op=place.node.op_type,
        domain="" if place.node.domain == "ai.onnx" else place.node.domain,
        inputs=tuple(_shown(t) for t in place.inputs),
        outputs=tuple(_shown(t) for t in place.outputs),
        attributes={a.name: _plain(a) for a in place.node.attribute},
        verdict=worst,
        reason="; ".join(dict.fromkeys(v[1] for v in told)),
        fix="; ".join(dict.fromkeys(v[2] for v in told)),
        decided_by=told[0][3] if told else decided_by,
    )


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "-"
    shape = "?" if tensor.shape is None else ", ".join("?" if n is None else str(n) for n in tensor.shape)
    return f"{tensor.dtype or 'unknown'}[{shape}]"


def _plain(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    match value:
        case bytes():
            return value.decode(errors="replace")
        case TensorProto():
            return f"tensor of {list(value.dims)}"
        case onnx.GraphProto():
            return f"graph of {len(value.node)} nodes"
        case list() | tuple():
            return [v.decode(errors="replace") if isinstance(v, bytes) else _plain_item(v) for v in value]
        case _:
            return _plain_item(value)


def _plain_item(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else type(value).__name__
