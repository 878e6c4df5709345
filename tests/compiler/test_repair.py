"""Accuracy that int8 loses is found, named, and given back."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.compiler import networks
from tests.compiler.test_quantization import X86, table_of

from edgec.compiler import BuildResult, CompileOptions, compile_model
from edgec.compiler.equalization import equalize_channels, shift_biases
from edgec.compiler.explain import LayerError, by_harm, isolate, layer_errors, mean_shifts
from edgec.compiler.quantization import quantize_static
from edgec.compiler.repair import MOST_EVALUATIONS, has_cells
from edgec.compiler.report import ArtifactInfo, CandidateInfo

CLASSES = 6
QUICK = {"workers": 0, "measure_s": 0.05}


def planted() -> onnx.ModelProto:
    """A classifier of ``image`` [1,4,8,8] whose layer ``culprit`` has weights that eight bits cannot hold.

    Its input's last channel is nearly zero, and the weights for it huge: all other weights round to zero.
    The input is the graph's, so no scale can be moved out of it.
    """
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "culprit", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "middle", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], "last"),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["scores"], "head", transB=1),
    ]
    w1 = normal(rng, 8, 4, 3, 3)
    w1[:, 3] *= 3000
    weights = {
        "w1": w1,
        "b1": normal(rng, 8),
        "w2": normal(rng, 12, 8, 3, 3),
        "b2": normal(rng, 12),
        "w3": normal(rng, 16, 12, 1, 1),
        "b3": normal(rng, 16),
        "w4": normal(rng, CLASSES, 16),
        "b4": np.zeros(CLASSES, np.float32),
    }
    model = networks.model_of(nodes, {"image": [1, 4, 8, 8]}, ["scores"], weights)
    scores = np.concatenate([networks.run(model, {"image": i[None]})[0] for i in images(64)])
    weights["w4"] /= scores.std(axis=0)[:, None]
    weights["b4"] = -scores.mean(axis=0) / scores.std(axis=0)  # so that no class is the usual one
    return networks.model_of(nodes, {"image": [1, 4, 8, 8]}, ["scores"], weights)


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return np.asarray(rng.normal(size=shape) / np.sqrt(fan_in), np.float32)


def images(count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(8)
    found = rng.normal(size=(count, 4, 8, 8)) + rng.normal(size=(count, 4, 1, 1)) * 2
    found[:, 3] *= 1e-5
    return np.asarray(found, np.float32)


def clear_cases(model: onnx.ModelProto, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the images of 480 of which the model is surest, and its scores: no class is won by a hair."""
    samples = images(480)
    scores = np.concatenate([networks.run(model, {"image": i[None]})[0] for i in samples])
    ranked = np.sort(scores, axis=1)
    surest = np.argsort(ranked[:, -2] - ranked[:, -1])[:count]
    return samples[surest], scores[surest]


def separated() -> onnx.ModelProto:
    """Conv, Relu, depthwise Conv, Relu, Conv, whose channels between the first two differ 4000-fold."""
    rng = np.random.default_rng(9)
    scale = np.geomspace(1, 4000, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], "point"),
    ]
    weights = {
        "w1": normal(rng, 8, 3, 1, 1) * scale.reshape(-1, 1, 1, 1),
        "b1": normal(rng, 8) * scale,
        "w2": normal(rng, 8, 1, 3, 3) / scale.reshape(-1, 1, 1, 1),
        "w3": normal(rng, 4, 8, 1, 1),
    }
    return networks.model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)


def crowded() -> onnx.ModelProto:
    """A layer that int8 ruins, and ``common``, which it ruins more and which moves all scores alike."""
    rng = np.random.default_rng(11)
    model = planted()
    weights = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    weights["wc"] = normal(rng, 8, 4, 3, 3)
    weights["wc"][:, 3] *= 3000
    weights["offset"] = np.repeat(normal(rng, 8, 1), CLASSES, axis=1) * 100
    nodes = [
        *[n for n in model.graph.node if n.name != "head"],
        helper.make_node("Gemm", ["f", "w4", "b4"], ["alone"], "head", transB=1),
        helper.make_node("Conv", ["image", "wc", "b1"], ["cc"], "common", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["cc"], ["gc"], "common_pool"),
        helper.make_node("Flatten", ["gc"], ["fc"], "common_flatten"),
        helper.make_node("Gemm", ["fc", "offset"], ["shift"], "offset"),
        helper.make_node("Add", ["alone", "shift"], ["scores"], "sum"),
    ]
    return networks.model_of(nodes, {"image": [1, 4, 8, 8]}, ["scores"], weights)


def compiled(folder: Path, model: onnx.ModelProto | None = None, **options: object) -> BuildResult:
    model = model if model is not None else planted()
    samples, scores = clear_cases(model, 160)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", image=samples, labels=scores.argmax(axis=1))
    return compile_model(
        folder / "model.onnx",
        ["cpu-x86_64"],
        folder / "build",
        calibration=str(folder / "data.npz"),
        evaluation=str(folder / "data.npz"),
        metric="top1",
        options=CompileOptions(precision="int8", **{**QUICK, **options}),  # type: ignore[arg-type]
    )


def candidate(build: BuildResult, name: str) -> CandidateInfo:
    return next(c for c in artifact(build)["candidates"] if c["name"] == name)


def artifact(build: BuildResult) -> ArtifactInfo:
    (only,) = build.report["artifacts"]
    return only


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return compiled(tmp_path_factory.mktemp("repair"))


@pytest.mark.slow
def test_a_ruined_layer_is_found_kept_in_fp32_and_named(built: BuildResult) -> None:
    broken = candidate(built, "onnxruntime int8")
    repaired = next(c for c in artifact(built)["candidates"] if c["name"].endswith("1 in float)"))
    assert broken["status"] == "refused"
    assert repaired["status"] in ("winner", "admissible")
    before, after = broken.get("accuracy"), repaired.get("accuracy")
    assert before is not None
    assert after is not None
    assert before["artifact"] < 0.9
    assert after["artifact"] >= 0.99
    decisions = artifact(built)["decisions"]
    (account,) = [d for d in decisions if "culprit kept in fp32: int8 costs" in d]
    assert re.search(r"points there and saves (no time|[0-9.e+-]+ ms)", account)
    tried = next(d for d in decisions if "keeps the accuracy, after" in d)
    assert int(tried.split("after ")[1].split()[0]) <= MOST_EVALUATIONS


@pytest.mark.slow
def test_layers_that_need_not_stay_in_fp32_go_back_to_int8(tmp_path: Path) -> None:
    build = compiled(tmp_path, crowded())
    decisions = [d for d in artifact(build)["decisions"] if d.startswith("repair")]
    assert any("common goes back to int8: fp32 gains nothing there" in d for d in decisions)
    (account,) = [d for d in decisions if "kept in fp32: int8 costs" in d]
    tried = [d.split(": ")[1].split(" in fp32")[0] for d in decisions if " in fp32: score" in d]
    assert tried[:2] == [
        "culprit, common",  # what is noisiest, and what stands before it, so that nothing is converted
        "culprit, common, offset",  # then one more at a time
    ]
    kept = account.split(" kept in fp32")[0].split(": ")[1].split(", ")
    assert "culprit" in kept
    assert "common" not in kept
    assert len(kept) < 3


@pytest.mark.slow
def test_the_explanation_names_the_layer_and_the_samples(built: BuildResult) -> None:
    broken = candidate(built, "onnxruntime int8")
    layers = broken.get("layers", [])
    assert [e["name"] for e in layers] == ["culprit", "middle", "last", "head"]
    assert min(layers, key=lambda e: e["isolated_snr_db"] or 999.0)["name"] == "culprit"
    flips = broken.get("flips", [])
    assert flips
    assert all(f["before"] == f["label"] != f["after"] for f in flips)
    json.dumps(built.report, allow_nan=False)


@pytest.mark.slow
def test_without_repair_nothing_is_repaired(tmp_path: Path) -> None:
    build = compiled(tmp_path, repair=False)
    names = [c["name"] for c in artifact(build)["candidates"]]
    assert names[:2] == ["onnxruntime fp32", "onnxruntime int8"]
    assert not any("(" in name for name in names)
    assert not any("repair" in d for d in artifact(build)["decisions"])


@pytest.mark.slow
def test_what_passes_the_gate_is_not_repaired(tmp_path: Path) -> None:
    build = compiled(tmp_path, max_drop=None)
    names = [c["name"] for c in artifact(build)["candidates"]]
    assert names[:2] == ["onnxruntime fp32", "onnxruntime int8"]
    assert not any("(" in name for name in names)


@pytest.mark.slow
def test_repair_in_a_worker_comes_to_the_same(built: BuildResult, tmp_path: Path) -> None:
    other = compiled(tmp_path, workers=1)
    mine, theirs = (
        [re.sub(r"and saves .*", "", d) for d in artifact(b)["decisions"] if d.startswith("repair")]
        for b in (built, other)
    )
    assert mine == theirs


def errors_of(model: onnx.ModelProto) -> tuple[LayerError, ...]:
    table = table_of(model)
    inputs = networks.samples(model, 3)
    errors = layer_errors(model, quantize_static(model, table, X86), inputs)
    return isolate(errors, model, lambda e: quantize_static(model, table, X86, exclude=e), inputs)


def test_errors_of_layers_are_told_for_every_layer_and_can_be_pickled() -> None:
    errors = errors_of(networks.cnn())
    assert [(e.name, e.op, e.precision) for e in errors] == [
        ("conv1", "Conv", "int8"),
        ("conv2", "Conv", "int8"),
        ("head", "Gemm", "int8"),
    ]
    assert [e.tensor for e in errors] == ["r1", "r2", "scores"]
    for e in errors:
        assert e.isolated
        for snr in (e.accumulated_snr_db, e.local_snr_db, e.isolated_snr_db):
            assert snr is not None
            assert 20 < snr < 70
    assert pickle.loads(pickle.dumps(errors)) == errors  # noqa: S301 - its own bytes
    assert errors_of(networks.cnn()) == errors


def test_layers_left_in_float_are_told_as_such() -> None:
    model = networks.cnn()
    graph = quantize_static(model, table_of(model), X86, exclude=["conv2"])
    errors = {e.name: e for e in layer_errors(model, graph, networks.samples(model, 2))}
    assert errors["conv2"].precision == "fp32"
    assert [e.name for e in by_harm(list(errors.values()))].count("conv2") == 0


def test_equalization_changes_no_output_and_evens_out_ranges() -> None:
    model = separated()
    inputs = networks.samples(model, 8)
    equalized, changed = equalize_channels(model, inputs)
    assert changed == 2
    for sample in inputs:
        np.testing.assert_allclose(
            networks.run(equalized, sample)[0], networks.run(model, sample)[0], rtol=1e-5, atol=1e-5
        )
    before, after = snr_of_int8(model), snr_of_int8(equalized)
    assert after > before + 10


def snr_of_int8(model: onnx.ModelProto) -> float:
    graph = quantize_static(model, table_of(model), X86)
    noise = signal = 0.0
    for sample in networks.samples(model, 8):
        exact = networks.run(model, sample)[0]
        noise += float(((networks.run(graph, sample)[0] - exact) ** 2).sum())
        signal += float((exact**2).sum())
    return 10 * float(np.log10(signal / noise))


def test_corrected_biases_take_the_mean_error_away() -> None:
    model = networks.cnn()
    table, inputs = table_of(model), networks.samples(model, 16)
    graph = quantize_static(model, table, X86, method="mse")
    shifts = mean_shifts(model, graph, inputs)
    assert set(shifts) == {"conv1", "conv2", "head"}
    corrected, changed = shift_biases(model, shifts)
    assert changed == 3
    left = mean_shifts(model, quantize_static(corrected, table, X86, method="mse"), inputs)
    for name, shift in shifts.items():
        assert np.abs(left[name]).max() < max(0.2 * np.abs(shift).max(), 1e-4)


def cell() -> onnx.ModelProto:
    """A recurrent cell, written out, of ``x`` [1,8] and ``state`` [1,16], of which one value is large."""
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("Concat", ["x", "seen"], ["xh"], "concat", axis=1)]
    weights: dict[str, NDArray[np.float32]] = {}
    for gate, kind in (("f", "Sigmoid"), ("i", "Sigmoid"), ("o", "Sigmoid"), ("g", "Tanh")):
        weights |= {f"w{gate}": normal(rng, 24, 16), f"b{gate}": normal(rng, 16)}
        nodes += [
            helper.make_node("Gemm", ["xh", f"w{gate}", f"b{gate}"], [f"{gate}0"], f"gate_{gate}"),
            helper.make_node(kind, [f"{gate}0"], [gate], f"{kind}_{gate}"),
        ]
    weights |= {"head": normal(rng, 16, 1), "bias": normal(rng, 1), "shrink": np.array([0.02], np.float32)}
    nodes = [
        helper.make_node("Mul", ["state", "shrink"], ["small"], "shrunk"),
        helper.make_node("Tanh", ["small"], ["seen"], "seen"),
        *nodes,
        helper.make_node("Mul", ["f", "state"], ["kept"], "forget"),
        helper.make_node("Mul", ["i", "g"], ["new"], "input"),
        helper.make_node("Add", ["kept", "new"], ["following"], "state"),
        helper.make_node("Tanh", ["following"], ["squashed"], "squash"),
        helper.make_node("Mul", ["o", "squashed"], ["h"], "output"),
        helper.make_node("Gemm", ["h", "head", "bias"], ["y"], "head"),
    ]
    return networks.model_of(nodes, {"x": [1, 8], "state": [1, 16]}, ["y"], weights)


@pytest.mark.slow
def test_the_state_of_a_recurrent_cell_goes_back_to_float(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    states = normal(rng, 200, 16)
    states[:, 0] *= 300
    onnx.save(cell(), tmp_path / "cell.onnx")
    for name, rows in (("calibration", slice(0, 100)), ("evaluation", slice(100, 200))):
        np.savez(tmp_path / f"{name}.npz", x=normal(rng, 100, 8) * 3, state=states[rows])
    build = compile_model(
        tmp_path / "cell.onnx",
        ["cpu-x86_64"],
        tmp_path / "build",
        calibration=tmp_path / "calibration.npz",
        evaluation=tmp_path / "evaluation.npz",
        options=CompileOptions(precision="int8", workers=0, measure_s=0.05),
    )
    assert candidate(build, "onnxruntime int8")["status"] == "refused"
    [repaired] = [c for c in artifact(build)["candidates"] if "products only" in c["name"]]
    assert repaired["status"] in ("admissible", "winner")
    [said] = [d for d in artifact(build)["decisions"] if "int8 in layers with weights only" in d]
    assert said.endswith("; kept")


def test_gates_of_pictures_are_no_recurrent_cells() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["x", "s"], ["y"], "silu"),
    ]
    assert has_cells(cell())
    assert not has_cells(networks.model_of(nodes, {"x": [1, 8]}, ["y"]))
