"""Patterns of ONNX operators that are one operator in TFLite; found before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgec.compiler.tflite.graph import Graph, Node

Match = tuple[Node, set[str]]
"""The node that takes the pattern's place, with the name of its last node, and the names of all its nodes."""


def find_patterns(graph: Graph) -> Graph:
    """Replace every pattern, in place, and return the graph.

    1. ``x * 0.5 * (1 + Erf(x / sqrt 2))``, in any order of the factors: Gelu.
    2. ``x * HardSigmoid(x)`` with slope 1/6, and ``x * Clip(x + 3, 0, 6) / 6``: HardSwish.
    3. ``d / Sqrt(mean(d * d) + epsilon)`` where ``d = x - mean(x)`` over the last axes, times a constant,
       plus a constant: LayerNormalization.
    """
    for finder in (_gelu, _hard_swish, _layer_normalization):
        _replace(graph, finder)
    return graph


def _replace(graph: Graph, finder: Callable[[Graph], Iterator[Match]]) -> None:
    matches = list(finder(graph))
    if not matches:
        return
    gone: set[str] = set()
    instead: dict[str, Node] = {}
    for node, names in matches:
        inner = {n.name for n in graph.nodes if n.name in names and n.name != node.name}
        if inner & gone:
            continue
        gone |= inner
        instead[node.name] = node
    graph.replace_nodes([instead.get(n.name, n) for n in graph.nodes if n.name not in gone])


def _scalar(graph: Graph, name: str) -> float | None:
    value = graph.constants.get(name)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _is(value: float | None, wanted: float) -> bool:
    return value is not None and bool(np.isclose(value, wanted, rtol=1e-3))


def _with_scalar(graph: Graph, node: Node, wanted: float) -> str | None:
    """Return the other input of a commutative node that has `wanted` as one of its two."""
    for mine, other in ((0, 1), (1, 0)):
        if _is(_scalar(graph, node.inputs[mine]), wanted):
            return node.inputs[other]
    return None


def _gelu(graph: Graph) -> Iterator[Match]:
    for erf in graph.nodes:
        if erf.op != "Erf":
            continue
        scale = graph.producers.get(erf.inputs[0])
        x = _halved(graph, scale)
        plus = graph.only_consumer(erf.outputs[0])
        if (
            scale is None
            or x is None
            or plus is None
            or plus.op != "Add"
            or not _with_scalar(graph, plus, 1.0)
        ):
            continue
        chain = [scale, erf, plus]
        last = _product(graph, plus.outputs[0], x, chain)
        if last is not None and graph.only_consumer(scale.outputs[0]) is erf:
            yield Node(last.name, "Gelu", (x,), last.outputs, {}), {n.name for n in chain}


def _halved(graph: Graph, node: Node | None) -> str | None:
    if node is None or node.op not in ("Mul", "Div"):
        return None
    if node.op == "Div":
        return node.inputs[0] if _is(_scalar(graph, node.inputs[1]), 2.0**0.5) else None
    return _with_scalar(graph, node, 0.5**0.5)


def _product(graph: Graph, value: str, x: str, chain: list[Node]) -> Node | None:
    """Follow the multiplications by x and by 0.5 that end a Gelu, in any order; return the last."""
    left = {"x", "half"}
    current = value
    while left:
        node = graph.only_consumer(current)
        if node is None or node.op != "Mul":
            return None
        other = node.inputs[1] if node.inputs[0] == current else node.inputs[0]
        producer = graph.producers.get(other)
        if "half" in left and _is(_scalar(graph, other), 0.5):
            left.discard("half")
        elif "x" in left and other == x:
            left.discard("x")
        elif (
            left == {"x", "half"}
            and producer is not None
            and producer.op == "Mul"
            and _with_scalar(graph, producer, 0.5) == x
            and graph.only_consumer(other) is node
        ):
            left.clear()
            chain.append(producer)
        else:
            return None
        chain.append(node)
        current = node.outputs[0]
    return chain[-1]


def _hard_swish(graph: Graph) -> Iterator[Match]:
    for node in graph.nodes:
        if node.op == "HardSigmoid" and _is_sixth(node):
            product = graph.only_consumer(node.outputs[0])
            if product is not None and product.op == "Mul" and node.inputs[0] in product.inputs:
                swish = Node(product.name, "HardSwish", (node.inputs[0],), product.outputs, {})
                yield swish, {node.name, product.name}
        elif node.op == "Clip" and [_scalar(graph, node.input(i)) for i in (1, 2)] == [0.0, 6.0]:
            found = _clipped_swish(graph, node)
            if found is not None:
                yield found


def _is_sixth(node: Node) -> bool:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return _is(alpha, 1 / 6) and _is(beta, 0.5)


def _clipped_swish(graph: Graph, clip: Node) -> Match | None:
    plus = graph.producers.get(clip.inputs[0])
    if plus is None or plus.op != "Add" or graph.only_consumer(plus.outputs[0]) is not clip:
        return None
    x = _with_scalar(graph, plus, 3.0)
    chain, current, left = [plus, clip], clip.outputs[0], {"x", "sixth"}
    while x is not None and left:
        node = graph.only_consumer(current)
        if node is None or node.op not in ("Mul", "Div"):
            return None
        other = node.inputs[1] if node.inputs[0] == current else node.inputs[0]
        sixth = 6.0 if node.op == "Div" else 1 / 6
        if "sixth" in left and _is(_scalar(graph, other), sixth) and node.inputs[0] in (current, other):
            left.discard("sixth")
        elif "x" in left and node.op == "Mul" and other == x:
            left.discard("x")
        else:
            return None
        chain.append(node)
        current = node.outputs[0]
    if x is None:
        return None
    return Node(chain[-1].name, "HardSwish", (x,), chain[-1].outputs, {}), {n.name for n in chain}


def _layer_normalization(graph: Graph) -> Iterator[Match]:
    for division in graph.nodes:
        if division.op != "Div":
            continue
        chain = _deviation(graph, division)
        if chain is None:
            continue
        mean, shifted = chain[0], chain[4]
        epsilon = next(v for v in (_scalar(graph, n) for n in shifted.inputs) if v is not None)
        axes = _last_axes(graph, mean)
        if axes is None or axes != _last_axes(graph, chain[3]):
            continue
        last, (scale, bias) = _scaled_and_shifted(graph, division, chain)
        attributes = {"axis": axes, "epsilon": epsilon}
        inputs = (mean.inputs[0], scale, bias)
        names = {n.name for n in (*chain, division)}
        yield Node(last.name, "LayerNormalization", inputs, last.outputs, attributes), names


def _deviation(graph: Graph, division: Node) -> list[Node] | None:
    """Return mean, difference, square, mean, sum and root that a division by a deviation ends, or None."""
    wanted = ("Sqrt", "Add", "ReduceMean")
    chain: list[Node] = []
    name = division.inputs[1]
    for op in wanted:
        node = graph.producers.get(name)
        if node is None or node.op != op or graph.only_consumer(name) is not (chain or [division])[0]:
            return None
        chain.insert(0, node)
        name = next((n for n in node.inputs if n not in graph.constants), "")
    if sum(_scalar(graph, n) is not None for n in chain[1].inputs) != 1:
        return None
    square, difference = graph.producers.get(name), graph.producers.get(division.inputs[0])
    if square is None or difference is None or difference.op != "Sub":
        return None
    d = division.inputs[0]
    squared = (
        square.op == "Pow" and square.inputs[0] == d and _is(_scalar(graph, square.inputs[1]), 2.0)
    ) or (square.op == "Mul" and set(square.inputs) == {d})
    mean = graph.producers.get(difference.inputs[1])
    if not squared or mean is None or mean.op != "ReduceMean" or mean.inputs[0] != difference.inputs[0]:
        return None
    taken = {n.name for n in graph.consumers.get(d, [])} == {square.name, division.name}
    alone = graph.only_consumer(mean.outputs[0]) is difference and graph.only_consumer(name) is chain[0]
    if not taken or not alone or d in graph.outputs:
        return None
    return [mean, difference, square, *chain]


def _last_axes(graph: Graph, mean: Node) -> int | None:
    """Return the first of the last axes that a mean is taken over; None where these are others."""
    rank = len(graph.shape(mean.inputs[0]))
    given = graph.constants.get(mean.input(1))
    axes = sorted(int(a) % rank for a in (mean.ints("axes", ()) if given is None else given.reshape(-1)))
    if not axes or axes != list(range(axes[0], rank)) or not mean.attributes.get("keepdims", 1):
        return None
    return axes[0]


def _scaled_and_shifted(graph: Graph, division: Node, chain: list[Node]) -> tuple[Node, tuple[str, str]]:
    """Follow a product with and a sum of constants; return the last node and both, empty where absent."""
    last, found = division, {"Mul": "", "Add": ""}
    rank = len(graph.shape(division.outputs[0]))
    for op in found:
        taker = graph.only_consumer(last.outputs[0])
        if taker is None or taker.op != op:
            break
        constant = next((n for n in taker.inputs if n in graph.constants), "")
        if (
            not constant
            or len(graph.shape(constant)) > rank
            or graph.shape(taker.outputs[0]) != graph.shape(division.outputs[0])
        ):
            break
        chain.append(last)
        last, found[op] = taker, constant
    chain.append(last)
    return last, (found["Mul"], found["Add"])
