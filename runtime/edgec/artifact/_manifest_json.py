"""Manifests as canonical JSON, and the digest of an artifact's content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgec.artifact import _json
from edgec.artifact._fields import (
    MAX_AXES,
    MAX_TEXT,
    Fields,
    integer,
    mapping,
    mapping_of,
    matching,
    natural,
    not_negative,
    number,
    one_of,
    positive,
    sequence,
    text,
    wrong,
)
from edgec.artifact._layout import MANIFEST, REPORT
from edgec.artifact._manifest import (
    ACTIVATIONS,
    FORMAT_VERSION,
    PRECISIONS,
    STATISTICS,
    Budgets,
    EngineSpec,
    Manifest,
    Member,
    Observation,
    Privacy,
    Scores,
)
from edgec.artifact._pipeline import Pipeline
from edgec.artifact._tensor import Quantization, TensorSpec
from edgec.errors import DigestMismatchError, IncompatibleArtifactError, ManifestError, PipelineError

MAX_MANIFEST_SIZE = 4 * 2**20
MAX_TENSORS = 1024
# What an artifact may ask of its reader. Empty in format version 1: every feature of it is known.
KNOWN_REQUIREMENTS: frozenset[str] = frozenset()

_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
)  # fmt: skip
_sha256 = matching(r"[0-9a-f]{64}", "a SHA-256 digest in lower-case hex")
_not_empty = matching(rf"(?s).{{1,{MAX_TEXT}}}", f"text of 1 to {MAX_TEXT} characters")
_version = matching(
    r"(?:(?:~=|===?|!=|<=|>=|<|>) ?[0-9][0-9A-Za-z.*+!-]*(?:, ?(?!$)|$))*",
    "a version specifier of PEP 440, such as >=1.23,<2",
)
_word = matching(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "a word of letters, digits and _ . -")
_layout = matching(r"[A-Z]+", "one letter per axis, such as NHWC")
_quantile = matching(r"0|1|0\.[0-9]+", "a fraction, such as 0.99")


def manifest_to_json(manifest: Manifest) -> bytes:
    """Return the member ``manifest.json``: canonical JSON, with the digest of the content in it.

    Fields that are None or empty are left out.

    Raises:
        ManifestError: A value has no place in JSON, or is not what `manifest_from_json` takes.
    """
    document = _document(manifest)
    document["content_digest"] = _digest_of(document)
    raw = _json.encode(document, "manifest")
    manifest_from_json(raw)
    return raw


def manifest_from_json(raw: bytes) -> Manifest:
    """Return the manifest that `raw` encodes; unknown fields are ignored.

    Args:
        raw: Bytes from outside.

    Raises:
        ManifestError: It is too large, nested too deep, no canonical JSON, or a field is missing or wrong.
        DigestMismatchError: It is not what its ``content_digest`` was made of.
        IncompatibleArtifactError: It has another format version, or requires what this edgec does not know.
    """
    return read_manifest(raw)[0]


def read_manifest(raw: bytes) -> tuple[Manifest, str]:
    """Return what `manifest_from_json` does, and the digest of the content, unknown fields included."""
    document = _json.decode(raw, MANIFEST, max_size=MAX_MANIFEST_SIZE)
    fields = Fields(document, "manifest")
    version = fields.need("format_version", natural)
    if version != FORMAT_VERSION:
        raise IncompatibleArtifactError(
            f"the artifact has format version {version}; this edgec reads {FORMAT_VERSION}: update edgec"
        )
    requires = fields.may("requires", sequence(text), ())
    unknown = sorted(set(requires) - KNOWN_REQUIREMENTS)
    if unknown:
        raise IncompatibleArtifactError(
            f"the artifact requires {', '.join(map(repr, unknown))}, unknown to this edgec: update edgec"
        )
    manifest = _manifest(fields, requires)
    _check(manifest)
    digest = fields.need("content_digest", text)
    if digest != _digest_of(document):
        raise DigestMismatchError(
            f"manifest.content_digest is {digest!r:.90}, but that of its content is {_digest_of(document)}",
            MANIFEST,
        )
    return manifest, digest


def content_digest(manifest: Manifest) -> str:
    """Return the digest of all that an artifact is made of, but for measured figures: ``sha256:5e8f...``.

    Covers every field of `manifest`, and every member by its digest, except ``report.json``.
    """
    return _digest_of(_document(manifest))


def _digest_of(document: Mapping[str, Any]) -> str:
    from hashlib import sha256

    content = {key: value for key, value in document.items() if key != "content_digest"}
    members = content.get("members")
    if isinstance(members, dict):
        content["members"] = {name: member for name, member in members.items() if name != REPORT}
    return f"sha256:{sha256(_json.encode(content, 'manifest')).hexdigest()}"


# Writing


def _document(manifest: Manifest) -> dict[str, Any]:
    return _without_nothing(
        {
            "format_version": FORMAT_VERSION,
            "model": manifest.model,
            "model_version": manifest.model_version,
            "target": manifest.target,
            "engine": _engine_document(manifest.engine),
            "fallback": _engine_document(manifest.fallback) if manifest.fallback else None,
            "inputs": [_tensor_document(spec) for spec in manifest.inputs],
            "outputs": [_tensor_document(spec) for spec in manifest.outputs],
            "members": {
                name: {"sha256": member.sha256, "size": member.size}
                for name, member in manifest.members.items()
            },
            "pipeline": manifest.pipeline.to_dict() if manifest.pipeline else None,
            "recipe": manifest.recipe,
            "budgets": _without_nothing(
                {
                    "max_drop": manifest.budgets.max_drop,
                    "latency_ms": manifest.budgets.latency_ms,
                    "memory_mib": manifest.budgets.memory_mib,
                    "size_bytes": manifest.budgets.size_bytes,
                }
            ),
            "reference": manifest.reference,
            "input_reference": manifest.input_reference,
            "golden": manifest.golden,
            "observe": _observation_document(manifest.observe),
            "privacy": {"inputs_stay": True} if manifest.privacy.inputs_stay else None,
            "provenance": manifest.provenance,
            "requires": list(manifest.requires),
        },
        keep=("inputs", "outputs", "members"),
    )


def _engine_document(engine: EngineSpec) -> dict[str, Any]:
    return {
        "name": engine.name,
        "version": engine.version,
        "device": engine.device,
        "precision": engine.precision,
        "files": list(engine.files),
    }


def _tensor_document(spec: TensorSpec) -> dict[str, Any]:
    quantization = spec.quantization
    return _without_nothing(
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "layout": spec.layout,
            "quantization": _without_nothing(
                {
                    "scale": list(quantization.scale),
                    "zero_point": list(quantization.zero_point),
                    "axis": quantization.axis,
                }
            )
            if quantization
            else None,
        },
        keep=("shape",),
    )


def _observation_document(observation: Observation) -> dict[str, Any]:
    scores = observation.scores
    return _without_nothing(
        {
            "inputs": {name: list(chosen) for name, chosen in observation.inputs.items()},
            "scores": {"output": scores.output, "activation": scores.activation} if scores else None,
        }
    )


def _without_nothing(document: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        key: value
        for key, value in document.items()
        if key in keep or not (value is None or (isinstance(value, Mapping | list) and not value))
    }


# Reading


def _manifest(fields: Fields, requires: tuple[str, ...]) -> Manifest:
    return Manifest(
        model=fields.need("model", _not_empty),
        model_version=fields.need("model_version", text),
        target=fields.need("target", _word),
        engine=fields.need("engine", _engine),
        inputs=fields.need("inputs", sequence(_tensor, most=MAX_TENSORS)),
        outputs=fields.need("outputs", sequence(_tensor, most=MAX_TENSORS)),
        members=fields.need("members", mapping_of(_member)),
        fallback=fields.may("fallback", _engine, None),
        pipeline=fields.may("pipeline", _pipeline, None),
        recipe=fields.may("recipe", mapping, {}),
        budgets=fields.may("budgets", _budgets, Budgets()),
        reference=fields.may("reference", mapping_of(mapping_of(number, _quantile)), {}),
        input_reference=fields.may(
            "input_reference", mapping_of(mapping_of(mapping_of(number, _quantile))), {}
        ),
        golden=fields.may("golden", mapping_of(mapping_of(not_negative)), {}),
        observe=fields.may("observe", _observation, Observation()),
        privacy=fields.may("privacy", _privacy, Privacy()),
        provenance=fields.may("provenance", mapping, {}),
        requires=requires,
    )


def _engine(value: object, where: str) -> EngineSpec:
    fields = Fields(value, where)
    return EngineSpec(
        name=fields.need("name", _word),
        version=fields.need("version", _version),
        device=fields.need("device", _not_empty),
        precision=fields.need("precision", one_of(PRECISIONS)),
        files=fields.need("files", sequence(text, least=1)),
    )


def _tensor(value: object, where: str) -> TensorSpec:
    fields = Fields(value, where)
    spec = TensorSpec(
        name=fields.need("name", _not_empty),
        dtype=fields.need("dtype", one_of(_DTYPES)),
        shape=fields.need("shape", sequence(_dimension, most=MAX_AXES)),
        layout=fields.may("layout", _layout, None),
        quantization=fields.may("quantization", _quantization, None),
    )
    if spec.layout is not None and len(spec.layout) != len(spec.shape):
        raise ManifestError(
            f"{where}.layout {spec.layout} does not have one letter per axis of {spec.name!r}"
        )
    axis = spec.quantization.axis if spec.quantization else None
    if axis is not None and axis >= len(spec.shape):
        raise ManifestError(
            f"{where}.quantization.axis is {axis}, but {spec.name!r} has {len(spec.shape)} axes"
        )
    return spec


def _dimension(value: object, where: str) -> int | str:
    return _not_empty(value, where) if isinstance(value, str) else natural(value, where)


def _quantization(value: object, where: str) -> Quantization:
    fields = Fields(value, where)
    quantization = Quantization(
        scale=fields.need("scale", sequence(positive)),
        zero_point=fields.need("zero_point", sequence(integer)),
        axis=fields.may("axis", natural, None),
    )
    scales, zero_points = len(quantization.scale), len(quantization.zero_point)
    if scales != zero_points or scales < 1 or (quantization.axis is None and scales != 1):
        raise ManifestError(
            f"{where} has {scales} scales and {zero_points} zero points; one each, or one per index"
        )
    return quantization


def _member(value: object, where: str) -> Member:
    fields = Fields(value, where)
    return Member(sha256=fields.need("sha256", _sha256), size=fields.need("size", natural))


def _budgets(value: object, where: str) -> Budgets:
    fields = Fields(value, where)
    return Budgets(
        max_drop=fields.may("max_drop", not_negative, None),
        latency_ms=fields.may("latency_ms", positive, None),
        memory_mib=fields.may("memory_mib", positive, None),
        size_bytes=fields.may("size_bytes", natural, None),
    )


def _observation(value: object, where: str) -> Observation:
    fields = Fields(value, where)
    return Observation(
        inputs=fields.may("inputs", mapping_of(sequence(one_of(STATISTICS), most=len(STATISTICS))), {}),
        scores=fields.may("scores", _scores, None),
    )


def _privacy(value: object, where: str) -> Privacy:
    return Privacy(inputs_stay=Fields(value, where).may("inputs_stay", _flag, False))


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(value, where, "true or false")
    return value


def _scores(value: object, where: str) -> Scores:
    fields = Fields(value, where)
    return Scores(
        output=fields.need("output", text),
        activation=fields.may("activation", one_of(ACTIVATIONS), "none"),
    )


def _pipeline(value: object, where: str) -> Pipeline:
    try:
        return Pipeline.from_dict(mapping(value, where))
    except PipelineError as e:
        raise ManifestError(f"{where}: {e}") from e


def _check(manifest: Manifest) -> None:
    """Raise ManifestError where fields that are right on their own do not fit each other."""
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        names = [spec.name for spec in specs]
        for name in set(names):
            if names.count(name) > 1:
                raise ManifestError(f"two {kind}s are called {name!r}")
    for engine in filter(None, (manifest.engine, manifest.fallback)):
        for name in engine.files:
            if name not in manifest.members:
                raise ManifestError(f"engine {engine.name!r} loads {name!r}, which is no member")
    for name in manifest.pipeline.files if manifest.pipeline else ():
        if name not in manifest.members:
            raise ManifestError(f"the pipeline needs {name!r}, which is no member")
    outputs = {spec.name for spec in manifest.outputs}
    for field, by_output in (("golden", manifest.golden), ("reference", manifest.reference)):
        for name in by_output:
            if name not in outputs:
                raise ManifestError(f"manifest.{field} speaks of {name!r}, which is no output")
    observe = manifest.observe
    inputs = {spec.name for spec in manifest.inputs}
    for field, by_input in (
        ("observe.inputs", observe.inputs),
        ("input_reference", manifest.input_reference),
    ):
        for name in by_input:
            if name not in inputs:
                raise ManifestError(f"manifest.{field} speaks of {name!r}, which is no input")
    if observe.scores is not None and observe.scores.output not in outputs:
        raise ManifestError(
            f"manifest.observe.scores speaks of {observe.scores.output!r}, which is no output"
        )
