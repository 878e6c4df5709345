"""Which layers to spare from int8: those that harm most for the time that float costs there.

The noise of layers in int8 adds up at the outputs, nearly: so the noise that each makes alone predicts that
of any set of them. What float costs is the multiplications of a layer, and a conversion wherever integers
become floats or floats integers; on small models conversions cost more than the products do, and a run of
neighbours in float less than two layers apart. The cheapest choice for all layers in their order of
computation is found by dynamic programming, as in a knapsack.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgec.compiler.explain import LayerError

# Converting one value takes as long as int8 saves on so many products. Measured with ONNX Runtime on ResNet8
# on x86-64 with VNNI: 0.5 ns a value, 13 ps a product.
_PRODUCTS_PER_VALUE = 40.0
_UNITS = 1000  # that all noise is divided into: sets are told apart down to 30 dB less
_STEPS, _STEP_DB = 20, 1.5


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a model that are in int8, in the order of computation, and what float changes there.

    Attributes:
        names: Of their nodes.
        noise: What each alone adds to the worst output in int8, over the signal.
        products: Multiplications of each, for one sample.
        values: Elements that each takes; behind the last one nothing is converted.
    """

    names: tuple[str, ...]
    noise: tuple[float, ...]
    products: tuple[float, ...]
    values: tuple[float, ...]

    def cost(self, spared: Collection[str]) -> float:
        """Return what float costs in these layers, in products, beyond int8 everywhere."""
        before, total = True, -self.values[0] * _PRODUCTS_PER_VALUE if self.values else 0.0
        for name, products, values in zip(self.names, self.products, self.values, strict=True):
            now = name in spared
            total += products * now + _PRODUCTS_PER_VALUE * values * (now != before)
            before = now
        return total

    def choices(self) -> list[tuple[str, ...]]:
        """Return sets of layers to spare: the cheapest for each amount of noise, 1.5 dB apart.

        Then one layer more at a time, the noisiest first: what harms the outputs most may not be what harms
        the task. Neither none of them nor all; the first leaves the most noise.
        """
        found: dict[tuple[str, ...], None] = {}
        ways, total = self._cheapest(), sum(self.noise)
        noise = dict(zip(self.names, self.noise, strict=True))
        for step in range(1, _STEPS + 1):
            allowed = 10.0 ** (-_STEP_DB / 10.0 * step) * _UNITS
            fitting = [(cost, names) for units, (cost, names) in ways.items() if units <= allowed]
            _, names = min(fitting, default=(0.0, ()))
            found[tuple(names)] = None
        proper = [f for f in found if 0 < len(f) < len(self.names) and total > 0]
        proper.sort(key=lambda names: (sum(noise[n] for n in names), len(names)))
        last = proper[-1] if proper else ()
        rest = sorted((n for n in self.names if n not in last), key=lambda n: -noise[n])
        more = ({*last, *rest[:count]} for count in range(1, len(rest)))
        return [*proper, *(tuple(n for n in self.names if n in wanted) for wanted in more)]

    def _cheapest(self) -> dict[int, tuple[float, tuple[str, ...]]]:
        """Return the cheapest choice and its cost by the noise that it leaves, in parts of the whole."""
        unit = max(sum(self.noise), 1e-300) / _UNITS
        # By the noise so far, for each of the two forms that the last layer may have: int8 or float.
        reached: list[dict[int, tuple[float, tuple[str, ...]]]] = [{}, {0: (0.0, ())}]
        rows = zip(self.names, self.noise, self.products, self.values, strict=True)
        for name, noise, products, values in rows:
            following: list[dict[int, tuple[float, tuple[str, ...]]]] = [{}, {}]
            for before, spared in ((b, s) for b in (0, 1) for s in (0, 1)):
                more = products * spared + _PRODUCTS_PER_VALUE * values * (before != spared)
                for units, (cost, names) in reached[before].items():
                    left = units + (0 if spared else round(noise / unit))
                    known = following[spared].get(left)
                    if known is None or cost + more < known[0]:
                        following[spared][left] = cost + more, (*names, name) if spared else names
            reached = following
        return {u: min(r[u] for r in reached if u in r) for u in {*reached[0], *reached[1]}}


def layers_of(model: onnx.ModelProto, errors: Sequence[LayerError]) -> Layers:
    """Return the layers that are in int8.

    Args:
        model: What was quantized, in fp32.
        errors: Of its layers, some of them isolated; the others are taken to harm as little as the least.
    """
    known = [e for e in errors if e.precision == "int8"]
    isolated = [_noise(e.isolated_snr_db) for e in known if e.isolated]
    least = min(isolated, default=0.0)
    sizes = _sizes(model)
    weights = {t.name: int(np.prod(t.dims, dtype=np.int64)) for t in model.graph.initializer}
    nodes = {n.name or n.output[0]: n for n in model.graph.node}
    products, values = [], []
    for error in known:
        node = nodes.get(error.name)
        taken = node.input[0] if node is not None else ""
        weight = weights.get(node.input[1], 1) if node is not None and len(node.input) > 1 else 1
        pixels = sizes.get(error.tensor, (1,))[2:] if error.op in ("Conv", "ConvTranspose") else ()
        products.append(float(weight * np.prod(pixels, dtype=np.float64)))
        values.append(float(np.prod(sizes.get(taken, (1,)), dtype=np.float64)))
    return Layers(
        names=tuple(e.name for e in known),
        noise=tuple(_noise(e.isolated_snr_db) if e.isolated else least for e in known),
        products=tuple(products),
        values=tuple(values),
    )


def _noise(snr_db: float | None) -> float:
    return 0.0 if snr_db is None else float(10.0 ** (-snr_db / 10.0))


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes that can be inferred; free dimensions count as one."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    return {
        v.name: tuple(max(d.dim_value, 1) for d in v.type.tensor_type.shape.dim)
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
