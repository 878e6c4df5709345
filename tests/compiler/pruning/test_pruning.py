from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.compiler.networks import cnn, model_of
from tests.compiler.pruning import graphs

from edgec.compiler.pruning import Pruned, Pruner
from edgec.compiler.pruning.allocation import Allocation
from edgec.compiler.pruning.trace import is_constant
from edgec.errors import CalibrationError, CompileError, UnsupportedModelError

SLOW = (HealthCheck.too_slow,)


def masks_of(pruner: Pruner, kept: NDArray[np.bool_]) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """Return which channels of each tensor are left."""
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for value, axes in pruner.groups.trace.axes.items():
        if is_constant(value):
            continue
        for axis, ids in enumerate(axes):
            if ids is not None:
                members = pruner.groups.of(ids)
                keep = np.asarray(kept[members] | (members < 0))
                if not keep.all():
                    found.setdefault(str(value.name), {})[axis] = keep
    return found


def drop_at_random(pruner: Pruner, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return what is left when any number of each cluster's groups goes, but not all."""
    kept = np.ones(pruner.groups.count, np.bool_)
    for cluster in pruner.groups.clusters:
        gone = rng.integers(0, len(cluster.members))
        kept[rng.permutation(cluster.members)[:gone]] = False
    return kept


def cut(pruner: Pruner, kept: NDArray[np.bool_], *, refit: bool) -> Pruned:
    macs = sum(cost.of(kept) for cost in pruner.groups.costs)
    return pruner.cut(Allocation(kept=kept, macs=macs, layers=()), refit=refit)


def macs_of(model: onnx.ModelProto) -> int:
    return Pruner(model, graphs.inputs(model, 1)).groups.macs


def check_masks(model: onnx.ModelProto, seed: int) -> None:
    samples = graphs.inputs(model, 2, seed)
    pruner = Pruner(model, samples)
    assert pruner.groups.clusters
    kept = drop_at_random(pruner, np.random.default_rng(seed))
    pruned = cut(pruner, kept, refit=False)
    zeroed = graphs.masked(model, masks_of(pruner, kept))
    expected, actual = graphs.run(zeroed, samples[1]), graphs.run(pruned.model, samples[1])
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert macs_of(pruned.model) == pruned.macs_after


@pytest.mark.parametrize("part", graphs.PARTS)
def test_pruned_equals_masked_for_every_part(part: str) -> None:
    check_masks(graphs.network([part], "pool", 1), 1)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(
    parts=st.lists(st.sampled_from(sorted(graphs.PARTS)), min_size=1, max_size=5),
    head=st.sampled_from(["pool", "flatten", "last"]),
    seed=st.integers(0, 10_000),
)
@pytest.mark.slow
def test_pruned_equals_masked_in_random_networks(parts: list[str], head: str, seed: int) -> None:
    check_masks(graphs.network(parts, head, seed), seed)


def test_attention_loses_whole_heads() -> None:
    model = graphs.attention()
    check_masks(model, 3)
    pruner = Pruner(model, graphs.inputs(model, 4))
    pruned = pruner.prune(0.3, refit=False)
    sizes = {tuple(t.dims) for t in pruned.model.graph.initializer if len(t.dims) == 2}
    widths = {shape[1] for shape in sizes if shape[0] == 12} | {shape[0] for shape in sizes if shape[1] == 12}
    assert all(width == 12 or width % 5 == 0 or width <= 24 for width in widths)
    heads = [len(c.members) for c in pruner.groups.clusters]
    assert 4 in heads


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(
    parts=st.lists(st.sampled_from(sorted(graphs.PARTS)), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
)
@pytest.mark.slow
def test_refit_never_increases_the_error_of_a_layer(parts: list[str], seed: int) -> None:
    model = graphs.network(parts, "pool", seed)
    pruner = Pruner(model, graphs.inputs(model, 12, seed))
    pruned = cut(pruner, drop_at_random(pruner, np.random.default_rng(seed)), refit=True)
    assert all(r.after <= r.before * (1 + 1e-9) for r in pruned.refits)


def test_refit_recovers_what_other_channels_say_too() -> None:
    """Half of the channels are copies of the other half: nothing is lost when they go."""
    net = graphs.Net(5)
    half = net.rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    double = net.constant(np.concatenate([half, half * 0.5]))
    net.x = net.node("Relu", net.node("Conv", "image", double, pads=[1] * 4))
    net.x, net.channels = net.conv(net.x, 16, 8), 8
    model = net.model()
    samples = graphs.inputs(model, 24)
    pruner = Pruner(model, samples)
    cluster = next(c for c in pruner.groups.clusters if len(c.members) == 16)
    kept = np.ones(pruner.groups.count, np.bool_)
    kept[cluster.members[:8]] = False
    fresh = graphs.inputs(model, 4, seed=9)
    errors = []
    for refit in (False, True):
        pruned = cut(pruner, kept, refit=refit).model
        pairs = [(graphs.run(model, s), graphs.run(pruned, s)) for s in fresh]
        errors.append(float(np.mean([np.square(a - b).mean() for a, b in pairs])))
    assert errors[1] < 1e-4 * errors[0]


def test_what_others_can_say_too_goes_first() -> None:
    """The loudest channels are copies of each other; by their energy they would be the last to go."""
    net = graphs.Net(8)
    weights = 0.2 * net.rng.normal(size=(16, 3, 3, 3)).astype(np.float32)
    weights[:8] = 20 * weights[:1]
    net.x = net.node("Relu", net.node("Conv", "image", net.constant(weights), pads=[1] * 4))
    net.x, net.channels = net.conv(net.x, 16, 8), 8
    model = net.model()
    samples = graphs.inputs(model, 24)
    pruner = Pruner(model, samples, align=1)
    pruned = pruner.prune(0.2)
    (first,) = (t for t in pruned.model.graph.initializer if list(t.dims[1:]) == [3, 3, 3])
    left = numpy_helper.to_array(first)
    quiet = {row.tobytes() for row in weights[8:]}
    assert quiet <= {row.tobytes() for row in np.ascontiguousarray(left)}


def test_a_pruned_model_can_be_pruned_again() -> None:
    model = graphs.network(["residual", "plain"], "flatten", 4)
    samples = graphs.inputs(model, 8)
    once = Pruner(model, samples).prune(0.2)
    twice = Pruner(once.model, samples).prune(0.2)
    assert twice.macs_after == macs_of(twice.model) < once.macs_after
    assert graphs.run(twice.model, samples[0]).shape == graphs.run(model, samples[0]).shape


def test_the_ratio_is_kept_and_a_little_more() -> None:
    model = graphs.network(["residual", "inverted", "plain"], "pool", 2)
    pruner = Pruner(model, graphs.inputs(model, 4))
    for ratio in (0.1, 0.3, 0.5):
        pruned = pruner.prune(ratio, refit=False)
        assert ratio <= pruned.removed < ratio + 0.1
        assert pruned.macs_after == macs_of(pruned.model)
        assert all(0 < after < before for _, before, after in pruned.layers)


def test_dead_channels_go_first() -> None:
    net = graphs.Net(6)
    weights = net.rng.normal(size=(16, 3, 3, 3)).astype(np.float32)
    weights[::2] = 0
    net.x = net.node("Relu", net.node("Conv", "image", net.constant(weights), pads=[1] * 4))
    net.x, net.channels = net.conv(net.x, 16, 8), 8
    model = net.model()
    samples = graphs.inputs(model, 4)
    pruned = Pruner(model, samples).prune(0.2, refit=False)
    np.testing.assert_allclose(
        graphs.run(pruned.model, samples[0]), graphs.run(model, samples[0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.2, 1.5])
def test_ratios_outside_are_refused(ratio: float) -> None:
    model = cnn()
    with pytest.raises(CompileError, match="between 0 and 1"):
        Pruner(model, graphs.inputs(model, 1)).prune(ratio)


def test_a_ratio_that_would_remove_a_layer_is_refused_by_name() -> None:
    model = cnn()
    with pytest.raises(
        CompileError, match=r"would remove whole layers, such as conv1 \(2 of 8 left\).*or less"
    ):
        Pruner(model, graphs.inputs(model, 2)).prune(0.99)


def test_what_freezes_everything_is_named() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "only", pads=[1] * 4),
        helper.make_node("LRN", ["c"], ["scores"], "across", size=3),
    ]
    weight = np.ones((4, 3, 3, 3), np.float32)
    model = model_of(nodes, {"image": [1, 3, 6, 6]}, ["scores"], {"w": weight})
    with pytest.raises(UnsupportedModelError, match=r"across \(LRN\) has no rule here"):
        Pruner(model, graphs.inputs(model, 1)).prune(0.3)


def test_pruning_needs_samples() -> None:
    with pytest.raises(CalibrationError, match="give --calibration"):
        Pruner(cnn(), [])


def test_the_source_stays_as_it_is() -> None:
    model = cnn()
    before = model.SerializeToString(deterministic=True)
    Pruner(model, graphs.inputs(model, 4)).prune(0.3)
    assert model.SerializeToString(deterministic=True) == before
