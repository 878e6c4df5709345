"""Which layers stay in float is chosen by the noise that they make and the time that float costs."""

from __future__ import annotations

from tests.compiler import networks

from edgec.compiler.explain import LayerError
from edgec.compiler.sparing import Layers, layers_of

NAMES = ("a", "b", "c", "d", "e")


def layers(noise: tuple[float, ...], products: float = 1e6, values: float = 1e4) -> Layers:
    return Layers(names=NAMES, noise=noise, products=(products,) * 5, values=(values,) * 5)


def test_the_noisiest_layer_comes_first_and_all_but_one_last() -> None:
    choices = layers((1e-5, 1e-5, 1e-2, 1e-5, 1e-4)).choices()
    assert choices[0] == ("c",)
    assert len(choices[-1]) == 4
    assert all(len(c) == len(set(c)) for c in choices)


def test_neighbours_are_spared_together_where_conversions_cost_more_than_products() -> None:
    noise = (1e-2, 1e-5, 1e-2, 1e-5, 1e-5)
    apart, together = layers(noise, products=1e7, values=1e2), layers(noise, products=1e3, values=1e5)
    assert ("a", "c") in apart.choices()
    assert ("a", "b", "c") in together.choices()
    assert apart.cost(("a", "c")) < apart.cost(("a", "b", "c"))
    assert together.cost(("a", "c")) > together.cost(("a", "b", "c"))
    assert layers(noise).cost(()) == 0.0


def test_what_makes_no_noise_has_no_choices_of_its_own() -> None:
    assert Layers(names=(), noise=(), products=(), values=()).choices() == []
    assert Layers(names=("a",), noise=(1.0,), products=(1.0,), values=(1.0,)).choices() == []


def test_products_and_values_are_those_of_the_model() -> None:
    errors = [
        LayerError(
            name="conv1", op="Conv", tensor="r1", precision="int8", isolated=True, isolated_snr_db=20.0
        ),
        LayerError(name="conv2", op="Conv", tensor="r2", precision="fp32"),
        LayerError(name="head", op="Gemm", tensor="scores", precision="int8"),
    ]
    model = networks.cnn()
    found = layers_of(model, errors)
    weights = {t.name: t.dims for t in model.graph.initializer}
    nodes = {n.name: n for n in model.graph.node}
    head = weights[nodes["head"].input[1]]
    assert found.names == ("conv1", "head")
    assert found.noise == (0.01, 0.01)
    assert found.products[1] == head[0] * head[1]
    assert found.products[0] > found.products[1]
    assert found.values[0] > found.values[1] > 1
