from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data
from tests.compiler import networks
from tests.compiler.networks import Arrays

from edgec.compiler.calibration import CalibrationTable, calibrate, model_digest
from edgec.compiler.ranges import METHODS, StatisticsCollector, TensorStatistics
from edgec.errors import CalibrationError, UnsupportedModelError


def collected(*arrays: NDArray[Any]) -> TensorStatistics:
    collector = StatisticsCollector()
    for array in arrays:
        collector.add(array.astype(np.float32))
    statistics = collector.statistics()
    assert statistics is not None
    return statistics


# -- statistics and ranges ---------------------------------------------------------------------------------


def test_a_histogram_counts_every_value_whatever_the_order_of_growth() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=5000), 100 * rng.normal(size=5000)
    rising, falling = collected(small, large), collected(large, small)
    for statistics in (rising, falling):
        assert sum(statistics.counts) == statistics.elements == 10_000
        assert statistics.minimum == large.astype(np.float32).min()
        assert statistics.maximum == large.astype(np.float32).max()
    centres, counts = rising.histogram()
    exact = np.concatenate([small, large])
    width = 2 * rising.limit / 4096
    below = counts[centres + width / 2 <= 0].sum()
    assert below == pytest.approx((exact < 0).sum(), abs=2)


def test_merging_bins_when_the_range_grows_is_exact() -> None:
    values = np.linspace(-1, 1, 4001)
    # First seen at half the range or at the whole: the same bins, for they only ever merge in pairs.
    grown = collected(np.array([-0.5]), values)
    whole = collected(values, np.array([-0.5]))
    assert grown.limit == whole.limit == 1.0
    assert grown.counts == whole.counts


def test_minmax_covers_all_that_was_seen_and_zero() -> None:
    assert collected(np.array([2.0, 3.0])).range() == (0.0, 3.0)
    assert collected(np.array([-2.0, -3.0])).range() == (-3.0, 0.0)
    assert collected(np.array([-1.0, 3.0])).range(symmetric=True) == (-3.0, 3.0)
    assert collected(np.zeros(4)).range() == (0.0, 0.0)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_clipping_methods_leave_one_far_outlier_out(method: str) -> None:
    values = np.append(np.random.default_rng(0).normal(size=1_000_000), 500.0)
    low, high = collected(values).range(method)
    assert -7 < low < -2
    assert 2 < high < 100


def test_mse_is_never_worse_than_minmax_and_beats_it_on_long_tails() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=100_000), rng.standard_t(3, size=100_000), rng.uniform(size=100_000)):
        statistics = collected(values)
        errors = {}
        for method in ("minmax", "mse"):
            low, high = statistics.range(method)
            step = (high - low) / 255
            zero = round(-low / step)
            levels = np.clip(np.rint(values / step) + zero, 0, 255)
            errors[method] = float(np.square((levels - zero) * step - values).mean())
        assert errors["mse"] <= errors["minmax"] * 1.01
    tailed = collected(rng.standard_t(3, size=100_000))
    assert tailed.range("mse")[1] < 0.9 * tailed.range("minmax")[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3),
        np.full(5, 7.0),
        np.full(5, -7.0),
        np.array([1e-38, -1e-38]),
        np.array([3e38, -3e38]),
        np.maximum(np.random.default_rng(0).normal(size=1000), 0),
    ],
    ids=["zero", "constant", "negative", "denormal", "huge", "relu"],
)
def test_every_range_is_finite_includes_zero_and_stays_within_what_was_seen(
    method: str, symmetric: bool, values: NDArray[Any]
) -> None:
    low, high = collected(values).range(method, symmetric=symmetric)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    bound = float(np.abs(values.astype(np.float32)).max())
    assert max(-low, high) <= bound * (1 + 1e-6)
    if symmetric:
        assert low == -high


@pytest.mark.parametrize("method", METHODS)
def test_a_range_that_is_asked_for_again_is_the_same_and_follows_its_own_statistics(method: str) -> None:
    statistics = collected(np.random.default_rng(3).standard_normal(10_000))
    first = {symmetric: statistics.range(method, symmetric=symmetric) for symmetric in (False, True)}
    assert first[False] != first[True]
    for symmetric, found in first.items():
        assert statistics.range(method, symmetric=symmetric) == found
        assert replace(statistics).range(method, symmetric=symmetric) == found
    half = replace(statistics, minimum=0.0, floor=0.0)
    assert half.range(method)[0] == 0.0 != first[False][0]


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="minmax, percentile, mse, entropy"):
        collected(np.ones(2)).range("max")


# -- the pass over the data --------------------------------------------------------------------------------


def all_tensors(model: onnx.ModelProto, sample: Arrays) -> dict[str, NDArray[Any]]:
    """Compute every tensor with onnx's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    names = [n for node in model.graph.node for n in node.output if n]
    copy.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    values = [np.asarray(value) for value in ReferenceEvaluator(copy).run(None, sample)]
    return dict(zip(names, values, strict=True)) | sample


def test_every_float_tensor_has_the_extremes_that_the_reference_computes() -> None:
    model = networks.cnn()
    data = networks.samples(model, 6)
    table = calibrate(model, data)
    seen = [all_tensors(model, sample) for sample in data]
    assert set(table.tensors) == set(seen[0])
    for name, statistics in table.tensors.items():
        assert statistics.minimum == pytest.approx(min(float(s[name].min()) for s in seen), abs=1e-5)
        assert statistics.maximum == pytest.approx(max(float(s[name].max()) for s in seen), abs=1e-5)
        assert statistics.elements == sum(s[name].size for s in seen)
    assert table.samples == 6
    assert table.inputs == ("image",)


def test_chunks_see_the_same_as_one_run() -> None:
    model = networks.residual()
    data = networks.samples(model, 4)
    assert calibrate(model, data, chunk_bytes=9_000).digest == calibrate(model, data).digest


def test_samples_are_read_once_and_one_at_a_time() -> None:
    model = networks.mlp()
    alive = 0
    done: list[int] = []

    def stream() -> Iterator[Arrays]:
        nonlocal alive
        for sample in networks.samples(model, 5):
            assert alive == len(done)
            alive += 1
            yield sample

    calibrate(model, stream(), progress=done.append)
    assert done == [1, 2, 3, 4, 5]


def test_integer_inputs_and_tensors_have_no_statistics() -> None:
    model = networks.camera()
    table = calibrate(model, networks.samples(model, 3))
    assert "frame" not in table.tensors
    assert table.inputs == ()
    assert table.tensors["f"].maximum <= 255


def test_samples_may_differ_in_free_dimensions() -> None:
    model = networks.mlp()
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(n, 16)).astype(np.float32)} for n in (1, 7, 2)]
    assert calibrate(model, data).tensors["x"].elements == 160


def test_tensors_of_contributed_operators_are_seen() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], "gelu", domain="com.microsoft"),
        helper.make_node("Relu", ["g"], ["y"], "relu"),
    ]
    model = networks.model_of(nodes, {"x": [1, 8]}, ["y"])
    assert {"x", "g", "y"} == set(calibrate(model, networks.samples(model, 2)).tensors)


def test_weights_may_lie_beside_the_model(tmp_path: Path) -> None:
    model = networks.cnn()
    data = networks.samples(model, 3)
    inside = calibrate(model, data)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert calibrate(outside, data, weights_from=tmp_path).digest == inside.digest
    with pytest.raises(UnsupportedModelError, match="external data"):
        calibrate(outside, data)


def test_unused_and_shared_and_inner_weights_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["inner"], "inner_product")],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "outer_product"),
        helper.make_node("If", ["yes"], ["b"], "branch", then_branch=body, else_branch=body),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    weights = {
        "w": rng.normal(size=(32, 32)).astype(np.float32),
        "unused": rng.normal(size=(32, 32)).astype(np.float32),
        "yes": np.array(True),
    }
    model = networks.model_of(nodes, {"x": [1, 32]}, ["y"], weights)
    assert {"x", "a", "b", "y"} == set(calibrate(model, networks.samples(model, 2)).tensors)


def test_the_model_is_left_as_it_is() -> None:
    model = networks.cnn()
    before = model.SerializeToString(deterministic=True)
    calibrate(model, networks.samples(model, 2))
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.slow
def test_memory_stays_bounded_however_large_the_inner_tensors_are() -> None:
    # 12 tensors of 64 MiB each: 768 MiB at once without chunks.
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], f"relu{i}") for i in range(12)]
    model = networks.model_of(nodes, {"t0": [1, 16, 1024, 1024]}, ["t12"])
    sample = {"t0": np.random.default_rng(0).normal(size=(1, 16, 1024, 1024)).astype(np.float32)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = calibrate(model, iter([sample, sample]))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(table.tensors) == 13
    assert grown_mib < 512


# -- the table ---------------------------------------------------------------------------------------------


def test_a_table_survives_json_with_its_digest() -> None:
    model = networks.cnn()
    table = calibrate(model, networks.samples(model, 4))
    again = CalibrationTable.from_json(table.to_json(), model)
    assert again == table
    assert again.digest == table.digest
    assert again.range("c1", "mse") == table.range("c1", "mse")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":3}', '{"format":2,"tensors":{"a":{}}}', "null"])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match="calibrate again"):
        CalibrationTable.from_json(text, networks.cnn())


def test_a_table_is_refused_for_a_model_that_was_trained_again() -> None:
    model = networks.cnn()
    text = calibrate(model, networks.samples(model, 4)).to_json()
    model.producer_name, model.doc_string = "another exporter", "of another day"
    CalibrationTable.from_json(text, model)
    model.graph.initializer[0].CopyFrom(_doubled(model.graph.initializer[0]))
    with pytest.raises(CalibrationError, match=r"trained again: .* calibrate again"):
        CalibrationTable.from_json(text, model)


def test_weights_outside_the_model_count_in_its_digest(tmp_path: Path) -> None:
    model = networks.cnn()
    digests: list[str] = []
    for value in (model, networks.cnn()):
        if digests:
            value.graph.initializer[0].CopyFrom(_doubled(value.graph.initializer[0]))
        onnx.save(value, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
        outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        digests.append(model_digest(outside, tmp_path))
        (tmp_path / "w").unlink()
    assert digests[0] == model_digest(networks.cnn()) != digests[1]


def _doubled(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name)


def test_the_digest_follows_the_data() -> None:
    model = networks.cnn()
    one, two = (calibrate(model, networks.samples(model, 3, seed)) for seed in (0, 1))
    again = calibrate(model, networks.samples(model, 3, 0))
    assert one.data_sha256 == again.data_sha256 != two.data_sha256
    assert one.digest == again.digest != two.digest


def test_asking_for_a_tensor_of_another_model_says_so() -> None:
    model = networks.cnn()
    table = calibrate(model, networks.samples(model, 2))
    with pytest.raises(CalibrationError, match=r"no tensor 'nope'.*calibrate again"):
        table.range("nope")


# -- bad samples -------------------------------------------------------------------------------------------

GOOD = np.zeros((1, 3, 16, 16), np.float32)
POISONED = GOOD.copy()
POISONED[0, 1, 2, 3] = np.nan
INFINITE = GOOD.copy()
INFINITE[0, 0, 0, 1] = np.inf


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({}, r"sample 1: expected the inputs image; got none"),
        ({"img": GOOD}, r"sample 1: expected the inputs image; got img"),
        ({"image": GOOD, "more": GOOD}, r"expected the inputs image; got image, more"),
        ([GOOD], r"expected arrays by input name, got list"),
        ({"image": GOOD.tolist()}, r"expected image: float32\[1, 3, 16, 16\] as a numpy array, got list"),
        (
            {"image": GOOD.astype(np.float64)},
            r"expected image: float32\[1, 3, 16, 16\], got float64\[1, 3, 16, 16\]",
        ),
        ({"image": GOOD.transpose(0, 2, 3, 1)}, r"expected .*, got float32\[1, 16, 16, 3\]"),
        ({"image": GOOD[0]}, r"the batch axis is missing: give \[1, 3, 16, 16\]"),
        ({"image": POISONED}, r"input 'image' holds nan at \[0, 1, 2, 3\]"),
        ({"image": INFINITE}, r"input 'image' holds inf at \[0, 0, 0, 1\]"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(sample: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(networks.cnn(), [sample])


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the calibration set is empty"):
        calibrate(networks.cnn(), [])


def test_an_empty_array_is_refused() -> None:
    with pytest.raises(CalibrationError, match="input 'x' is empty"):
        calibrate(networks.mlp(), [{"x": np.zeros((0, 16), np.float32)}])


def test_a_constant_set_is_refused() -> None:
    data = [{"image": np.full((1, 3, 16, 16), 0.5, np.float32)}] * 20
    with pytest.raises(CalibrationError, match=r"constant \('image' is always 0.5\)"):
        calibrate(networks.cnn(), data)


def test_a_set_on_another_scale_is_refused_where_the_scale_is_known() -> None:
    rng = np.random.default_rng(0)
    data = [{"image": rng.integers(0, 256, (1, 3, 16, 16)).astype(np.float32)} for _ in range(20)]
    with pytest.raises(CalibrationError, match=r"input 'image' spans 0\.\.255, .* values up to 1"):
        calibrate(networks.cnn(), data, expected_ranges={"image": (0.0, 1.0)})
    assert calibrate(networks.cnn(), data, expected_ranges={"image": (0.0, 255.0)}).samples == 20


def _pixels(rng: np.random.Generator, index: int) -> NDArray[np.float32]:
    return rng.integers(0, 256, (1, 3, 16, 16)).astype(np.float32)


def _same(rng: np.random.Generator, index: int) -> NDArray[np.float32]:
    return np.linspace(0, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)


def _growing(rng: np.random.Generator, index: int) -> NDArray[np.float32]:
    return (1.2**index * rng.normal(size=(1, 3, 16, 16))).astype(np.float32)


def _good(rng: np.random.Generator, index: int) -> NDArray[np.float32]:
    return rng.normal(size=(1, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("count", "make", "warning"),
    [
        (8, _good, "8 calibration samples are few"),
        (20, _pixels, "whole numbers 0..255, as raw pixels do"),
        (20, _same, "all 20 calibration samples are the same"),
        (24, _growing, "looks too small"),
        (40, _good, None),
    ],
)
def test_a_doubtful_set_is_used_with_a_warning(
    count: int, make: Callable[[np.random.Generator, int], NDArray[np.float32]], warning: str | None
) -> None:
    rng = np.random.default_rng(0)
    table = calibrate(networks.cnn(), ({"image": make(rng, i)} for i in range(count)))
    if warning is None:
        assert table.warnings == ()
    else:
        assert len(table.warnings) == 1
        assert warning in table.warnings[0]


def test_one_constant_input_of_several_is_a_warning() -> None:
    nodes = [helper.make_node("Add", ["x", "state"], ["y"], "add")]
    model = networks.model_of(nodes, {"x": [1, 4], "state": [1, 4]}, ["y"])
    rng = np.random.default_rng(0)
    data = [
        {"x": rng.normal(size=(1, 4)).astype(np.float32), "state": np.zeros((1, 4), np.float32)}
        for _ in range(200)
    ]
    assert "input 'state' is always 0 in the calibration set" in calibrate(model, data).warnings[0]


def test_tensors_with_infinities_are_named() -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"], "log"), helper.make_node("Exp", ["l"], ["y"], "exp")]
    model = networks.model_of(nodes, {"x": [1, 2]}, ["y"])
    data = [{"x": np.array([[0.0, i + 1.0]], np.float32)} for i in range(20)]
    table = calibrate(model, data)
    assert table.tensors["l"].nonfinite == 20
    assert any("1 tensors hold NaN or infinity (l)" in w for w in table.warnings)


def test_a_model_that_onnx_runtime_refuses_is_named_as_such() -> None:
    nodes = [helper.make_node("Unheard", ["x"], ["y"], "odd", domain="com.example")]
    model = networks.model_of(nodes, {"x": [1, 2]}, ["y"])
    with pytest.raises(UnsupportedModelError, match="Unheard"):
        calibrate(model, [{"x": np.ones((1, 2), np.float32)}])
