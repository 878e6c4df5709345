"""Manifests: written and read back field by field; wrong ones refused with the field named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.artifact.forge import Document, Tiny, canonical, signed

from edgec.artifact import (
    Budgets,
    EngineSpec,
    Manifest,
    Member,
    Observation,
    Pipeline,
    Privacy,
    Quantization,
    Scores,
    TensorSpec,
    content_digest,
    manifest_from_json,
    manifest_to_json,
    source_digest,
)
from edgec.artifact.steps import Softmax
from edgec.errors import ArtifactError, DigestMismatchError, IncompatibleArtifactError, ManifestError

FULL = Manifest(
    model="a model, ünïcode \U0001f600 and \x1b control",
    model_version="2.1",
    target="jetson-orin-nano-jp6",
    engine=EngineSpec(
        name="tensorrt",
        version=">=10.3,<11",
        device="GPU",
        precision="int8",
        files=("m.onnx", "engine/w.bin"),
    ),
    fallback=EngineSpec(name="onnxruntime", version="", device="CPU", precision="fp32", files=("m.onnx",)),
    inputs=(
        TensorSpec("image", "uint8", ("batch", "height", 32, 3), layout="NHWC"),
        TensorSpec("q", "int8", (1, 2), quantization=Quantization((0.1, 1e-9), (0, -3), axis=1)),
    ),
    outputs=(
        TensorSpec("scores", "float32", ()),
        TensorSpec("u", "uint8", (0,), quantization=Quantization((0.5,), (128,))),
    ),
    members={"m.onnx": Member(sha256="0" * 64, size=0), "engine/w.bin": Member(sha256="a" * 64, size=2**40)},
    pipeline=Pipeline(postprocess=(Softmax(),), labels=("cat", "dog")),
    recipe={"workspace_mib": 512, "flags": ["fp16", True, None], "nested": {"a": {"b": [1.5]}}},
    budgets=Budgets(max_drop=0.01, latency_ms=2.5, memory_mib=100.25, size_bytes=2**33),
    reference={"scores": {"0": -1.5, "0.01": -1.25e-7, "0.5": 0.25, "1": 1e21}},
    input_reference={"image": {"mean": {"0.25": 0.5, "0.75": 1.5}}},
    golden={"scores": {"max_abs_error": 1e-5}},
    observe=Observation(
        inputs={"image": ("mean", "std"), "q": ()}, scores=Scores(output="scores", activation="softmax")
    ),
    provenance={"tools": {"onnx": "1.23.2"}, "source": "sha256:...", "€": 1, "\U0001f600": 2, "\ufb33": 3},
    requires=(),
)


def test_a_manifest_is_read_back_as_it_was() -> None:
    assert manifest_from_json(manifest_to_json(FULL)) == FULL


def test_a_small_manifest_is_read_back_as_it_was(tiny: Tiny) -> None:
    assert manifest_from_json(signed(tiny.document())) == replace(
        tiny.manifest,
        members={
            name: Member(sha256=member["sha256"], size=member["size"])
            for name, member in tiny.document()["members"].items()
        },
    )


def test_json_is_canonical() -> None:
    raw = manifest_to_json(FULL)
    assert b" " not in manifest_to_json(replace(FULL, model="m"))
    # RFC 8785, 3.2.3: by UTF-16 code units, so the emoji (D83D DE00) comes before U+FB33.
    assert '"source":"sha256:...","tools":{"onnx":"1.23.2"},"€":1,"\U0001f600":2,"\ufb33":3'.encode() in raw
    assert r"\u001b" in raw.decode()
    assert list(json.loads(raw)) == sorted(json.loads(raw))


# RFC 8785, appendix B, and the borders of each notation in ECMA-262, 6.1.6.1.20.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (5e-324, "5e-324"),
        (-5e-324, "-5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (9007199254740992.0, "9007199254740992"),
        (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (1.0000000000000001e23, "1.0000000000000001e+23"),
        (999999999999999700000.0, "999999999999999700000"),
        (999999999999999900000.0, "999999999999999900000"),
        (1e21, "1e+21"),
        (9.999999999999997e-7, "9.999999999999997e-7"),
        (0.000001, "0.000001"),
        (333333333.3333332, "333333333.3333332"),
        (333333333.33333325, "333333333.33333325"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (1424953923781206.2, "1424953923781206.2"),
        (1.0, "1"),
        (123.0, "123"),
        (1200000.0, "1200000"),
        (0.5, "0.5"),
        (-1.25e-7, "-1.25e-7"),
        (np.float32(0.1), "0.10000000149011612"),
        (np.int64(7), "7"),
        (2**53 - 1, "9007199254740991"),
    ],
)
def test_numbers_are_written_as_ecmascript_does(value: float, text: str) -> None:
    raw = manifest_to_json(replace(FULL, provenance={"x": value}))
    assert f'"provenance":{{"x":{text}}}'.encode() in raw
    assert manifest_from_json(raw).provenance["x"] == value


def test_what_is_none_or_empty_is_left_out(tiny: Tiny) -> None:
    members = {name: Member(sha256="0" * 64, size=1) for name in ("model.onnx", "weights.bin")}
    manifest = Manifest(
        model="m",
        model_version="",
        target="t",
        engine=tiny.manifest.engine,
        inputs=(),
        outputs=(),
        members=members,
    )
    assert sorted(json.loads(manifest_to_json(manifest))) == [
        "content_digest", "engine", "format_version", "inputs", "members", "model", "model_version",
        "outputs", "target",
    ]  # fmt: skip


def test_unknown_optional_fields_are_ignored(tiny: Tiny) -> None:
    known = manifest_from_json(signed(tiny.document()))
    document = tiny.document()
    document["carbon_grams"] = {"anything": [1, None]}
    document["engine"]["later"] = True
    document["inputs"][0]["unit"] = "lux"
    document["members"]["model.onnx"]["kind"] = "graph"
    assert manifest_from_json(signed(document)) == known
    # They are content all the same.
    assert json.loads(signed(document))["content_digest"] != content_digest(known)


@pytest.mark.parametrize("version", [0, 2, 2**40])
def test_another_format_version_is_refused(version: int, tiny: Tiny) -> None:
    document = {**tiny.document(), "format_version": version, "engine": "in another form"}
    with pytest.raises(
        IncompatibleArtifactError, match=f"format version {version}; this edgec reads 1: update"
    ):
        manifest_from_json(signed(document))


def test_an_unknown_requirement_is_refused(tiny: Tiny) -> None:
    document = {**tiny.document(), "requires": ["sparse\x1b[31m"], "engine": "in another form"}
    with pytest.raises(
        IncompatibleArtifactError, match=r"requires 'sparse\\x1b\[31m', unknown to this edgec"
    ):
        manifest_from_json(signed(document))


def _set(*path: str | int) -> Callable[[Document, Any], None]:
    def change(document: Any, value: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


_INPUT = ("inputs", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), None, "format_version must be an integer, not null"),
        (("format_version",), "1", "format_version must be an integer, not '1'"),
        (("format_version",), True, "format_version must be an integer, not True"),
        (("format_version",), -1, "format_version must be 0 or more, not -1"),
        (("model",), "", "model must be text of 1 to 256 characters"),
        (("model",), "x" * 257, "model must be text of 1 to 256 characters, not 'xxxx"),
        (("model",), ["x"], "model must be text of 1 to 256 characters, not a list"),
        (("model_version",), 1, "model_version must be text of at most 256"),
        (("target",), "../x", "target must be a word"),
        (("engine",), "onnxruntime", "manifest.engine must be an object, not 'onnxruntime'"),
        (("engine", "name"), "os.system;", "manifest.engine.name must be a word"),
        (("engine", "version"), "latest", "manifest.engine.version must be a version specifier"),
        (("engine", "version"), ">=1,", "manifest.engine.version must be a version specifier"),
        (("engine", "precision"), "fp8", "manifest.engine.precision must be one of fp32, fp16"),
        (("engine", "precision"), ["fp32"], "manifest.engine.precision must be one of"),
        (("engine", "files"), [], "manifest.engine.files has 0 items; 1 to 65536"),
        (("engine", "files"), {"a": 1}, "manifest.engine.files must be a list, not an object"),
        (
            ("engine", "files"),
            ["nothing.onnx"],
            "engine 'onnxruntime' loads 'nothing.onnx', which is no member",
        ),
        (("fallback",), {"name": "x"}, "manifest.fallback.version is missing"),
        (("inputs",), [{}] * 1025, "manifest.inputs has 1025 items"),
        (("inputs",), {}, "manifest.inputs must be a list, not an object"),
        ((*_INPUT, "name"), "scores\0" * 99, r"manifest.inputs\[0\].name must be text of 1 to 256"),
        ((*_INPUT, "dtype"), "object", r"manifest.inputs\[0\].dtype must be one of bool, int8"),
        ((*_INPUT, "shape"), [1] * 33, r"inputs\[0\].shape has 33 items; 0 to 32"),
        ((*_INPUT, "shape"), ["n", -1, 2, 2], r"inputs\[0\].shape\[1\] must be 0 or more, not -1"),
        ((*_INPUT, "shape"), ["n", 1.5, 2, 2], r"inputs\[0\].shape\[1\] must be an integer, not 1.5"),
        ((*_INPUT, "shape"), ["", 1, 2, 2], r"inputs\[0\].shape\[0\] must be text of 1 to 256"),
        ((*_INPUT, "layout"), "NHW", r"inputs\[0\].layout NHW does not have one letter per axis"),
        ((*_INPUT, "layout"), "nhwc", r"inputs\[0\].layout must be one letter per axis"),
        ((*_INPUT, "quantization"), {"scale": [1]}, r"inputs\[0\].quantization.zero_point is missing"),
        ((*_INPUT, "quantization"), {"scale": [0], "zero_point": [0]}, r"scale\[0\] must be above 0, not 0"),
        (
            (*_INPUT, "quantization"),
            {"scale": [1, 2], "zero_point": [0, 0]},
            "has 2 scales and 2 zero points",
        ),
        ((*_INPUT, "quantization"), {"scale": [], "zero_point": []}, "has 0 scales and 0 zero points"),
        (
            (*_INPUT, "quantization"),
            {"scale": [1], "zero_point": [0.5]},
            r"zero_point\[0\] must be an integer",
        ),
        (
            (*_INPUT, "quantization"),
            {"scale": [1], "zero_point": [0], "axis": 4},
            "axis is 4, but 'image' has 4",
        ),
        (("outputs",), [{"name": "a", "dtype": "bool", "shape": []}] * 2, "two outputs are called 'a'"),
        (("members",), [], "manifest.members must be an object, not a list"),
        (
            ("members", "model.onnx"),
            {"sha256": "0" * 64},
            r"manifest.members\['model.onnx'\].size is missing",
        ),
        (("members", "model.onnx", "sha256"), "A" * 64, "must be a SHA-256 digest in lower-case hex"),
        (("members", "model.onnx", "size"), -1, "size must be 0 or more"),
        (("pipeline",), [], "manifest.pipeline must be an object, not a list"),
        (("pipeline",), {"preprocess": [{"step": "exec"}]}, "manifest.pipeline: preprocess step 1"),
        (
            ("pipeline",),
            {"preprocess": [{"step": "tokenize", "file": "tokenizer.json"}]},
            "the pipeline needs 'tokenizer.json', which is no member",
        ),
        (("recipe",), [1], "manifest.recipe must be an object, not a list"),
        (("budgets",), 3, "manifest.budgets must be an object, not 3"),
        (("budgets",), {"max_drop": -1}, "manifest.budgets.max_drop must be 0 or more"),
        (("budgets",), {"latency_ms": "fast"}, "manifest.budgets.latency_ms must be a number, not 'fast'"),
        (("budgets",), {"size_bytes": 1.5}, "manifest.budgets.size_bytes must be an integer"),
        (("reference",), {"logits": {"0.5": 1}}, "manifest.reference speaks of 'logits', which is no output"),
        (
            ("reference",),
            {"scores": {"median": 1}},
            r"a key of manifest.reference\['scores'\] must be a fraction",
        ),
        (
            ("input_reference",),
            {"x": {"mean": {"0.5": 1}}},
            "manifest.input_reference speaks of 'x', which is no input",
        ),
        (("input_reference",), {"image": {"mean": {"0.5": "a"}}}, r"\['mean'\]\['0.5'\] must be a number"),
        (("input_reference",), {"image": {"mean": {"most": 1}}}, r"\['mean'\] must be a fraction"),
        (("input_reference",), {"image": [1]}, r"manifest.input_reference\['image'\] must be an object"),
        (("golden",), {"scores": {"max_abs_error": -1}}, "must be 0 or more"),
        (("golden",), {"scores": 1}, r"manifest.golden\['scores'\] must be an object"),
        (
            ("observe",),
            {"inputs": {"image": ["median"]}},
            r"must be one of mean, std, min, max, not 'median'",
        ),
        (("observe",), {"inputs": {"image": ["min"] * 5}}, "5 items; 0 to 4 are allowed"),
        (
            ("observe",),
            {"inputs": {"x": ["min"]}},
            "manifest.observe.inputs speaks of 'x', which is no input",
        ),
        (("observe",), {"scores": {"activation": "softmax"}}, "manifest.observe.scores.output is missing"),
        (
            ("observe",),
            {"scores": {"output": "y"}},
            "manifest.observe.scores speaks of 'y', which is no output",
        ),
        (
            ("observe",),
            {"scores": {"output": "scores", "activation": "relu"}},
            "must be one of none, softmax",
        ),
        (("observe",), [], "manifest.observe must be an object, not a list"),
        (("provenance",), "me", "manifest.provenance must be an object, not 'me'"),
        (("requires",), "x", "manifest.requires must be a list"),
        (("content_digest",), None, "content_digest"),
    ],
)
def test_a_wrong_field_is_refused_and_named(
    path: tuple[str, ...], value: Any, message: str, tiny: Tiny
) -> None:
    document = tiny.document()
    _set(*path)(document, value)
    raw = canonical(document) if path == ("content_digest",) else signed(document)
    with pytest.raises(ManifestError, match=message):
        manifest_from_json(raw)


@pytest.mark.parametrize(
    "field",
    ["format_version", "model", "model_version", "target", "engine", "inputs", "outputs", "members"],
)
def test_a_missing_field_is_named(field: str, tiny: Tiny) -> None:
    document = tiny.document()
    del document[field]
    with pytest.raises(ManifestError, match=f"manifest.{field} is missing"):
        manifest_from_json(signed(document))


def test_a_changed_manifest_is_noticed(tiny: Tiny) -> None:
    raw = signed(tiny.document())
    with pytest.raises(DigestMismatchError, match="content_digest"):
        manifest_from_json(raw.replace(b'"model":"tiny"', b'"model":"tinx"'))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"null", "manifest must be an object, not null"),
        (b"[]", "manifest must be an object, not a list"),
        (b"{} ", "not canonical"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"\xff\xfe{\0}\0", "not UTF-8 at byte 0"),
        (b'{"a":1,"a":2}', "not canonical"),
        (b'{"b":1,"a":2}', "not canonical"),
        (b'{"a": 1}', "not canonical"),
        (b'{"a":1.0}', "not canonical"),
        (b'{"a":-0}', "not canonical"),
        (b'{"a":1e2}', "not canonical"),
        (b'{"a":"\\u0041"}', "not canonical"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":NaN}', "NaN is no number"),
        (b'{"a":-Infinity}', "-Infinity is no number"),
        (b'{"a":1e400}', "manifest.json.a is inf"),
        (b'{"a":9007199254740993}', "not canonical"),
        (b'{"a":' + b"1" * 4_000_000 + b"}", "a number of 4000000 digits"),
        (b'{"a":0.' + b"1" * 4_000_000 + b"}", "a number of 4000002 digits"),
        (b"[" * 33, "nested more than 32 levels"),
        (b"[" * 4_000_000, "nested more than 32 levels"),
        (b'{"a":' * 800_000, "nested more than 32 levels"),
        (b'"\\"' + b"[" * 33 + b'"', "must be an object, not "),
        (b'["\\\\",' + b"[" * 33 + b'""', "nested more than 32 levels"),
        (b"{" + b" " * (4 * 2**20) + b"}", "has 4194306 bytes; at most 4194304 are read"),
    ],
)
def test_what_is_no_canonical_json_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        manifest_from_json(raw)


def test_what_may_leave_the_device_is_part_of_the_content(tiny: Tiny) -> None:
    plain = replace(FULL, privacy=Privacy())
    strict = replace(plain, privacy=Privacy(inputs_stay=True))
    # Digests from before stay as they are.
    assert "privacy" not in json.loads(manifest_to_json(plain))
    assert manifest_from_json(manifest_to_json(strict)).privacy.inputs_stay
    assert content_digest(strict) != content_digest(plain)
    refused: tuple[object, ...] = ({"inputs_stay": 1}, [], "never")
    for wrong in refused:
        with pytest.raises(ManifestError, match="privacy"):
            manifest_from_json(signed({**tiny.document(), "privacy": wrong}))


def test_artifacts_know_the_model_they_were_compiled_from() -> None:
    assert source_digest(replace(FULL, provenance={"source": {"sha256": "a" * 64}})) == "a" * 64
    for unknown in ({}, {"source": "x"}, {"source": {"sha256": 7}}):
        assert source_digest(replace(FULL, provenance=unknown)) == ""
