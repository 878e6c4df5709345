"""A program of torch.export -> ONNX by PyTorch's exporter, with what PyTorch computes on made-up inputs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Convert ``source`` to ``output``, and run it.

    ``samples`` is the ``.npz`` file for ``count`` samples with the inputs ``{n}/i/{name}`` and the outputs
    ``{n}/o/{name}``; free dimensions have the size that the author exported with.
    """
    import onnx
    import torch

    program = torch.export.load(request["source"])
    if any(node.op == "get_attr" and "submod" in str(node.target) for node in program.graph.nodes):
        raise ValueError("the program has control flow of its own")
    exported = torch.onnx.export(program, dynamo=True, opset_version=request["opset"], optimize=True)
    if exported is None:
        raise ValueError("the exporter gave nothing")
    exported.save(request["output"])
    header = onnx.load(request["output"], load_external_data=False).graph
    module = program.module()
    arrays: dict[str, Any] = {}
    for n in range(request["count"]):
        inputs = _inputs(program, np.random.default_rng(n))
        with torch.no_grad():
            outputs = torch.utils._pytree.tree_leaves(module(*(torch.from_numpy(a) for a in inputs)))
        arrays |= {f"{n}/i/{v.name}": a for v, a in zip(header.input, inputs, strict=True)}
        arrays |= {f"{n}/o/{v.name}": a.numpy() for v, a in zip(header.output, outputs, strict=True)}
    np.savez(request["samples"], **arrays)
    return {"tools": {name: version(name) for name in ("torch", "onnxscript")}}


def _inputs(program: Any, random: np.random.Generator) -> list[Any]:
    """Make up the inputs that a user gives; integers are small, and legal as indices."""
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    made = []
    for name in program.graph_signature.user_inputs:
        value = placeholders[name]
        shape = [int(n.node.hint) if hasattr(n, "node") else int(n) for n in value.shape]
        kind = value.dtype
        numbers = random.standard_normal(shape) if kind.is_floating_point else random.integers(0, 2, shape)
        made.append(np.asarray(numbers, str(kind).removeprefix("torch.")))
    return made
