from __future__ import annotations

import onnx
import pytest
from onnx import helper
from tests.compiler import networks

from edgec.compiler.passes.sort_nodes import sort_nodes
from edgec.errors import PassError


def test_nodes_come_after_what_they_take_and_compute_the_same() -> None:
    model = networks.residual()
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(model.graph.node))
    result = sort_nodes(shuffled)
    onnx.checker.check_model(result)
    sample = networks.samples(model, 1)[0]
    assert networks.run(result, sample)[0].tolist() == networks.run(model, sample)[0].tolist()


def test_an_order_that_is_right_is_kept() -> None:
    model = networks.residual()
    assert [n.name for n in sort_nodes(model).graph.node] == [n.name for n in model.graph.node]


def test_a_cycle_is_refused() -> None:
    model = networks.model_of([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": [1]}, ["y"])
    model.graph.node.extend(
        [
            helper.make_node("Add", ["y", "b"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["b"], "second"),
        ]
    )
    with pytest.raises(PassError, match="cannot be put in order"):
        sort_nodes(model)
