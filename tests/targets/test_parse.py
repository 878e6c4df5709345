"""A target file is checked key by key, and all that is wrong is said at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.errors import TargetError
from edgec.targets import AttributeLimit, Engine, StandIn, Target
from edgec.targets._parse import merge, parse_target

Tables = dict[str, Any]


def tables() -> Tables:
    """Return the tables of a right target, every optional key included."""
    return {
        "name": "acme-cam",
        "title": "Acme camera",
        "family": "onnxruntime",
        "arch": "aarch64",
        "memory_mib": 256,
        "storage_mib": 64,
        "simd": ["asimd"],
        "engines": [
            {
                "name": "onnxruntime",
                "version": ">=1.23.2, <2",
                "device": "CPU",
                "precisions": ["fp32", "fp16", "int8"],
                "storage_only": ["fp16"],
                "needs": {"int8": ["asimddp", "i8mm"]},
            }
        ],
        "fallback": {"name": "litert", "version": "~=2.1", "device": "CPU", "precisions": ["int8"]},
        "quantization": {
            "activation_dtype": "int8",
            "activation_symmetric": False,
            "weight_dtype": "int8",
            "weight_symmetric": True,
            "per_channel": True,
            "bias_dtype": "int32",
            "io_dtype": "float32",
            "residual_one_input": False,
            "full_integer": False,
            "weight_qdq": False,
            "weight_zero_point": False,
            "saturates_without": [],
        },
        "limits": {
            "min_opset": 13,
            "max_opset": 20,
            "max_ir_version": 10,
            "max_rank": 5,
            "static_shapes": True,
            "max_batch": 1,
            "allowed_operators": ["Conv", "Relu"],
            "refused_operators": {"Loop": "unroll it"},
            "refused_dtypes": {"string": "do this in pre-processing"},
            "attributes": [
                {
                    "operator": "Conv",
                    "attribute": "strides",
                    "minimum": 1,
                    "maximum": 3,
                    "reason": "pool instead",
                },
                {"operator": "Resize", "attribute": "mode", "allowed": ["nearest"], "reason": "no other"},
            ],
        },
        "stand_in": {
            "arch": "aarch64",
            "features": ["asimddp"],
            "without": ["i8mm"],
            "ranking": ["int8", "fp32", "fp16"],
            "rule": "measured on 64-bit Arm with dot product",
        },
        "accelerator": {"cores": 2, "config": "small"},
        "sources": {"acme": "https://acme.example/camera"},
    }


def changed(change: Callable[[Tables], object]) -> Tables:
    data = tables()
    change(data)
    return data


def test_every_value_arrives() -> None:
    target = parse_target(tables(), "acme.toml")
    assert (target.name, target.title, target.family, target.arch) == (
        "acme-cam",
        "Acme camera",
        "onnxruntime",
        "aarch64",
    )
    assert target.engines == (
        Engine(
            name="onnxruntime",
            version=">=1.23.2, <2",
            device="CPU",
            precisions=("fp32", "fp16", "int8"),
            storage_only=("fp16",),
            needs=(("int8", ("asimddp", "i8mm")),),
        ),
    )
    assert target.fallback == Engine(name="litert", version="~=2.1", device="CPU", precisions=("int8",))
    assert target.quantization is not None
    assert target.quantization.bias_dtype == "int32"
    assert target.limits.refused_operators == (("Loop", "unroll it"),)
    assert target.limits.attributes == (
        AttributeLimit(operator="Conv", attribute="strides", minimum=1, maximum=3, reason="pool instead"),
        AttributeLimit(operator="Resize", attribute="mode", allowed=("nearest",), reason="no other"),
    )
    assert target.stand_in == StandIn(
        arch="aarch64",
        features=("asimddp",),
        without=("i8mm",),
        ranking=("int8", "fp32", "fp16"),
        rule="measured on 64-bit Arm with dot product",
    )
    assert target.accelerator == (("cores", 2), ("config", "small"))
    assert target.sources == (("acme", "https://acme.example/camera"),)


def test_what_may_be_left_out_has_the_documented_default() -> None:
    data = tables()
    for key in ("fallback", "limits", "accelerator", "sources"):
        del data[key]
    target = parse_target(data, "acme.toml")
    assert target.fallback is None
    assert target.limits.max_opset is None
    assert not target.limits.static_shapes
    assert target.accelerator == target.sources == ()


def test_a_target_is_frozen_and_hashable() -> None:
    target = parse_target(tables(), "acme.toml")
    with pytest.raises(FrozenInstanceError):
        target.memory_mib = 1  # type: ignore[misc]
    assert hash(target) == hash(parse_target(tables(), "other.toml"))


WRONG: list[tuple[Callable[[Tables], object], str]] = [
    (lambda d: d.pop("name"), "name: is missing, expected a string"),
    (lambda d: d.update(name="Acme Cam"), "name: expected lower case letters, digits and hyphens"),
    (lambda d: d.update(name="../evil"), "name: expected lower case letters, digits and hyphens"),
    (lambda d: d.update(name=7), "name: expected a string, not 7"),
    (lambda d: d.update(title="  "), "title: is empty"),
    (lambda d: d.update(arch="arm"), "arch: unknown 'arm', expected one of x86_64, aarch64"),
    (lambda d: d.update(family="openvino"), "family: 'openvino' is none of the engines: onnxruntime"),
    (lambda d: d.update(memory_mib="256"), "memory_mib: expected an integer, not '256'"),
    (lambda d: d.update(memory_mib=True), "memory_mib: expected an integer, not True"),
    (lambda d: d.update(memory_mib=0), "memory_mib: expected a number above 0, not 0"),
    (lambda d: d.update(storage_mib=1.5), "storage_mib: expected an integer, not 1.5"),
    (lambda d: d.update(memory=3), "memory: unknown key (did you mean 'memory_mib'?)"),
    (lambda d: d.update(simd="asimd"), "simd: expected an array, not 'asimd'"),
    (lambda d: d.update(simd=["asimd", 2]), "simd: expected strings, not 2"),
    (lambda d: d.update(simd=["asimd", "asimd"]), "simd: names something twice"),
    (lambda d: d.update(engines=[]), "engines: expected at least one [[engines]]"),
    (lambda d: d.update(engines={}), "engines: expected an array, not {}"),
    (lambda d: d.update(engines=["onnxruntime"]), "engines[0]: expected a table, not 'onnxruntime'"),
    (lambda d: d["engines"][0].update(precisions=["fp32", "int9"]), "engines[0].precisions: unknown 'int9'"),
    (lambda d: d["engines"][0].update(precision="fp32"), "engines[0].precision: unknown key (did you mean"),
    (lambda d: d["engines"][0].update(version="1.23"), "engines[0].version: expected versions such as"),
    (lambda d: d["engines"][0].update(version=">=1;rm"), "engines[0].version: expected versions such as"),
    (lambda d: d["engines"][0].update(storage_only=["bf16"]), "engines[0].precisions: 'bf16' has a rule but"),
    (lambda d: d["engines"][0].update(needs={"bf16": ["x"]}), "engines[0].precisions: 'bf16' has a rule but"),
    (lambda d: d["engines"][0].update(needs={"int8": "x"}), "engines[0].needs.int8: expected an array"),
    (lambda d: d["fallback"].pop("device"), "fallback.device: is missing"),
    (lambda d: d.update(fallback="onnxruntime"), "fallback: expected a table, not 'onnxruntime'"),
    (lambda d: d.pop("quantization"), "quantization: is missing, but an engine has int8"),
    (
        lambda d: d["quantization"].update(activation_dtype="int4"),
        "quantization.activation_dtype: unknown 'int4'",
    ),
    (
        lambda d: d["quantization"].update(per_channel="yes"),
        "quantization.per_channel: expected true or false",
    ),
    (lambda d: d["quantization"].update(per_channel=1), "quantization.per_channel: expected true or false"),
    (lambda d: d["quantization"].pop("weight_symmetric"), "quantization.weight_symmetric: is missing"),
    (lambda d: d["limits"].update(max_opst=17), "limits.max_opst: unknown key (did you mean 'max_opset'?)"),
    (lambda d: d["limits"].update(max_opset=-1), "limits.max_opset: expected a number above 0, not -1"),
    (lambda d: d["limits"].update(min_opset=21), "limits.min_opset: 21 is above max_opset 20"),
    (
        lambda d: d["limits"].update(refused_operators={"Loop": 1}),
        "limits.refused_operators.Loop: expected a st",
    ),
    (
        lambda d: d["limits"].update(refused_operators={"Conv": "no"}),
        "limits.refused_operators: also allowed: Conv",
    ),
    (lambda d: d["limits"]["attributes"][0].pop("reason"), "limits.attributes[0].reason: is missing"),
    (lambda d: d["limits"]["attributes"][1].pop("allowed"), "limits.attributes[1].attribute: has no limit"),
    (
        lambda d: d["limits"]["attributes"][1].update(allowed=[1.5]),
        "limits.attributes[1].allowed: expected strings",
    ),
    (lambda d: d.pop("stand_in"), "stand_in: is missing, expected a table"),
    (lambda d: d["stand_in"].update(ranking=["int8", "fp32"]), "stand_in.ranking: does not rank fp16"),
    (lambda d: d["stand_in"].update(ranking=["int8", "fp8"]), "stand_in.ranking: unknown 'fp8'"),
    (lambda d: d["stand_in"].pop("rule"), "stand_in.rule: is missing"),
    (lambda d: d["accelerator"].update(cores=[2]), "accelerator.cores: expected a string or an integer"),
    (lambda d: d["accelerator"].update(cores=True), "accelerator.cores: expected a string or an integer"),
    (lambda d: d["sources"].update(acme=""), "sources.acme: is empty"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_a_wrong_value_names_file_and_key(change: Callable[[Tables], object], said: str) -> None:
    with pytest.raises(TargetError, match=re.escape(said)) as caught:
        parse_target(changed(change), "acme.toml")
    assert str(caught.value).startswith("acme.toml: ")
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    data = tables()
    data["memory_mib"] = "much"
    data["speed"] = 3
    data["engines"][0]["precisions"] = ["int9"]
    del data["quantization"]["bias_dtype"]
    with pytest.raises(TargetError) as caught:
        parse_target(data, "acme.toml")
    message = str(caught.value)
    for key in ("memory_mib", "speed", "engines[0].precisions", "quantization.bias_dtype"):
        assert f"{key}: " in message


def test_merge_replaces_values_and_merges_tables() -> None:
    base = {"a": 1, "b": {"c": [1], "d": 2}, "e": {"f": 1}}
    assert merge(base, {"b": {"c": [2]}, "e": "none", "g": 3}) == {"a": 1, "b": {"c": [2], "d": 2}, "g": 3}
    assert base == {"a": 1, "b": {"c": [1], "d": 2}, "e": {"f": 1}}


toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), toml_values)
def test_any_value_in_any_place_is_accepted_or_refused_by_name(data: st.DataObject, value: Any) -> None:
    mutated = tables()
    place: Any = mutated
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            place[key] = value
            break
        place = inner
    message = "acme.toml: "
    try:
        assert isinstance(parse_target(mutated, "acme.toml"), Target)
    except TargetError as e:
        message = str(e)
    assert message.startswith("acme.toml: ")


def test_a_precision_needs_one_of_its_features() -> None:
    engine = Engine(
        name="openvino",
        version=">=2026.2",
        device="CPU",
        precisions=("fp32", "bf16"),
        needs=(("bf16", ("avx512_bf16", "amx_bf16")),),
    )
    assert engine.precisions_on({"avx2"}) == ("fp32",)
    assert engine.precisions_on({"avx2", "amx_bf16"}) == ("fp32", "bf16")


@pytest.mark.parametrize(
    ("arch", "features", "stands_in"),
    [
        ("aarch64", {"asimd", "asimddp"}, True),
        ("aarch64", {"asimd"}, False),
        ("aarch64", {"asimd", "asimddp", "i8mm"}, False),
        ("x86_64", {"asimd", "asimddp"}, False),
    ],
)
def test_a_measurement_stands_in_by_arch_and_features(arch: str, features: set[str], stands_in: bool) -> None:
    assert parse_target(tables(), "acme.toml").measured_on(arch, features) is stands_in
