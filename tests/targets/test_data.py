"""The built-in targets say what their engines' documentation says, and cite it for every value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgec.targets
from edgec.targets import PRECISIONS, Target, host_arch, host_features, load_target, target_names
from edgec.targets._host import cpu_features

FILES = sorted((Path(edgec.targets.__file__).parent / "data").glob("*.toml"))
CITATION = re.compile(r"\[([a-z0-9-]+)\](?!\])")
KEY = re.compile(r"[A-Za-z0-9_-]+ *=")


def cited_keys(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every key line with the sources that the comments above it, in its group, cite.

    A group ends at an empty line; within a group, a comment replaces the one before.
    """
    cited: list[str] = []
    in_comment = False
    for line in text.partition("\n[sources]\n")[0].splitlines():
        if line.startswith("#"):
            cited = [*(cited if in_comment else []), *CITATION.findall(line)]
        elif not line:
            cited = []
        elif KEY.match(line):
            yield line, cited
        in_comment = line.startswith("#")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_cites_a_source_of_its_target(path: Path) -> None:
    target = load_target(path.stem)
    known = {"edgec", *dict(target.sources)}
    for line, cited in cited_keys(path.read_text(encoding="utf-8")):
        assert cited, f"{path.name}: no source is cited for: {line}"
        assert set(cited) <= known, f"{path.name}: unknown source for: {line}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_source_is_cited_and_public(path: Path) -> None:
    text, _, own = path.read_text(encoding="utf-8").partition("\n[sources]\n")
    sources = dict(re.findall(r'^([a-z0-9-]+) = "(.*)"$', own, flags=re.MULTILINE))
    assert len(sources) == len(own.split("\n[")[0].strip().splitlines()) if own else not sources
    assert set(sources) <= set(CITATION.findall(text))
    assert all(where.startswith("https://") for where in sources.values())


def test_the_check_of_citations_finds_a_value_without_one() -> None:
    cited, uncited = '# [edgec] Names.\nname = "x"\n\n', "memory_mib = 3\n"
    text = f"{cited}{uncited}[limits]\n# [a] Said.\nmax_rank = 1\n# Unsaid.\nx = 1\n"
    assert list(cited_keys(text)) == [
        ('name = "x"', ["edgec"]),
        ("memory_mib = 3", []),
        ("max_rank = 1", ["a"]),
        ("x = 1", []),
    ]


@pytest.mark.parametrize("name", target_names())
def test_a_target_survives_json(name: str) -> None:
    target = load_target(name)
    shape = target.to_dict()
    assert json.loads(json.dumps(shape)) == shape
    assert shape["name"] == name
    assert shape["accelerator"] == dict(target.accelerator)
    assert shape["sources"] == dict(target.sources)
    assert shape["limits"]["refused_operators"] == dict(target.limits.refused_operators)


def family(name: str) -> list[Target]:
    return [target for target in map(load_target, target_names()) if target.family == name]


def test_x86_quantizes_activations_unsigned_and_arm_signed() -> None:
    for name in ("cpu-x86_64", "intel-cpu", "intel-gpu", "intel-npu"):
        scheme = load_target(name).quantization
        assert scheme is not None
        assert (scheme.activation_dtype, scheme.activation_symmetric) == ("uint8", False)
        assert (scheme.weight_dtype, scheme.weight_symmetric, scheme.per_channel) == ("int8", True, True)
        assert scheme.bias_dtype == "int32"
    for name in ("cpu-arm64", "rpi4", "rpi5"):
        scheme = load_target(name).quantization
        assert scheme is not None
        assert (scheme.activation_dtype, scheme.weight_dtype, scheme.bias_dtype) == ("int8", "int8", "int32")
        assert scheme.saturates_without == ()


def test_tensorrt_quantizes_symmetrically_with_float_bias() -> None:
    jetsons = family("tensorrt")
    assert len(jetsons) == 4
    for target in jetsons:
        scheme = target.quantization
        assert scheme is not None
        assert (scheme.activation_dtype, scheme.weight_dtype) == ("int8", "int8")
        assert scheme.activation_symmetric
        assert scheme.weight_symmetric
        assert (scheme.bias_dtype, scheme.io_dtype) == ("float32", "float32")
        assert scheme.residual_one_input
        assert scheme.weight_qdq
        assert target.limits.min_opset == 19
        assert target.fallback is not None
        assert target.fallback.name == "onnxruntime"


def test_jetpack_6_stays_on_tensorrt_10_and_onnx_runtime_1_23() -> None:
    for name in ("jetson-orin-nano-jp6", "jetson-agx-orin-jp6"):
        target = load_target(name)
        assert target.fallback is not None
        assert target.engines[0].version == ">=10.3,<11"
        assert target.fallback.version == ">=1.23.2,<2"
        assert (target.limits.max_opset, target.limits.max_ir_version) == (20, 9)
    for name in ("jetson-agx-orin-jp7", "jetson-thor-jp7"):
        assert load_target(name).engines[0].version == ">=11.4.1,<12"


def test_only_agx_orin_has_dlas() -> None:
    dlas = {target.name: dict(target.accelerator)["dla_cores"] for target in family("tensorrt")}
    assert dlas == {
        "jetson-agx-orin-jp6": 2,
        "jetson-agx-orin-jp7": 2,
        "jetson-orin-nano-jp6": 0,
        "jetson-thor-jp7": 0,
    }


def test_npus_take_full_integer_models_of_fixed_shape() -> None:
    npus = family("litert")
    assert len(npus) == 5
    for target in npus:
        scheme = target.quantization
        assert scheme is not None
        assert scheme.full_integer
        assert (scheme.activation_dtype, scheme.activation_symmetric) == ("int8", False)
        assert (scheme.weight_dtype, scheme.weight_symmetric) == ("int8", True)
        # A Linux host hands over floats; a microcontroller has integers only.
        on_linux = target.arch == "any"
        assert (scheme.bias_dtype, scheme.io_dtype) == ("int32", "float32" if on_linux else "int8")
        assert target.limits.static_shapes
        assert {"Conv", "Gemm", "Add", "Softmax"} <= set(target.limits.allowed_operators)


def test_the_same_host_stands_in_for_no_two_raspberry_pis() -> None:
    four, five = load_target("rpi4"), load_target("rpi5")
    assert four.measured_on("aarch64", set(four.simd))
    assert five.measured_on("aarch64", set(five.simd))
    assert not four.measured_on("aarch64", set(five.simd))
    assert not five.measured_on("aarch64", set(four.simd))
    assert load_target("cpu-arm64").measured_on("aarch64", set(four.simd))


def test_no_host_stands_in_for_an_accelerator() -> None:
    for name in target_names():
        target = load_target(name)
        if target.engines[0].device != "CPU":
            assert target.stand_in.arch is None
            assert not target.measured_on(host_arch(), host_features())


def test_cpu_features_are_those_that_every_core_has() -> None:
    cpuinfo = ["processor : 0", "Features\t: fp asimd asimddp", "", "processor : 1", "Features\t: fp asimd"]
    assert cpu_features(cpuinfo) == {"fp", "asimd"}
    assert cpu_features(["flags\t\t: fpu avx2"]) == {"fpu", "avx2"}
    assert cpu_features([]) == frozenset()


def test_precisions_are_those_of_artifacts() -> None:
    from edgec.artifact import PRECISIONS as ARTIFACT_PRECISIONS

    assert PRECISIONS == ARTIFACT_PRECISIONS


@pytest.mark.parametrize("name", ["cpu-x86_64", "jetson-orin-nano-jp6", "jetson-thor-jp7"])
def test_onnx_runtime_loads_the_newest_form_that_a_target_allows(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    limits = load_target(name).limits
    value = [helper.make_tensor_value_info(edge, 1, [1, 4]) for edge in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", limits.max_opset)])
    model.ir_version = limits.max_ir_version
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["y"]


def test_openvino_has_bf16_just_where_the_target_says_so() -> None:
    openvino = pytest.importorskip("openvino")
    if host_arch() != "x86_64":
        pytest.skip("intel-cpu speaks of x86-64 CPUs")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    allowed = load_target("intel-cpu").engines[0].precisions_on(host_features())
    assert ("bf16" in allowed) == ("BF16" in capabilities)


def test_only_onnx_runtime_takes_weights_with_a_zero_point() -> None:
    for name in target_names():
        target = load_target(name)
        assert target.quantization is not None
        assert target.quantization.weight_zero_point == (target.family == "onnxruntime"), name
