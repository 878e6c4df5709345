"""What an error in the output of a layer does to the outputs of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs

Arrays = Mapping[str, NDArray[Any]]

_MOST_SAMPLES, _RUNS = 12, 256  # samples that are looked at, and runs of the model where layers are many
_NOISE = 0.05  # energy of the noise, as a share of the variance of a channel
_SQUASHING = ("Softmax", "LogSoftmax", "Sigmoid")


def sensitivities(
    model: onnx.ModelProto, layers: Mapping[str, int], samples: Sequence[Arrays], seed: int = 0
) -> dict[str, float]:
    """Return by how much errors of layers reach the outputs of a model.

    Noise of a twentieth of the variance of each channel is added to the output of one layer at a time; the
    answer is the squared deviation that it makes at the model's outputs, as a share of their variance, for
    a unit of noise. Outputs of softmax and sigmoid are looked at before these.

    Args:
        model: The graph.
        layers: Names of their outputs, and the axis of their channels.
        samples: Inputs; a few are used.
        seed: Of the noise.
    """
    names = list(layers)
    count = max(2, min(_MOST_SAMPLES, _RUNS // max(1, len(names))))
    chosen = list(samples[:: max(1, len(samples) // count)])[:count]
    noisy, outputs = _with_noise(model, names)
    quiet: Arrays = {f"{name}/noise": np.zeros((1,), np.float32) for name in names}
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(names, 0.0)
    with ReferenceProgram(with_outputs(noisy, names), optimize=True) as program:
        runs = [program.run({**sample, **quiet}) for sample in chosen]
    shapes = {name: [np.shape(run[name]) for run in runs] for name in names}
    spreads = {name: _spread([run[name] for run in runs], layers[name]) for name in names}
    usual = [_flat(run, outputs) for run in runs]
    variance = float(np.square(np.array(usual) - np.mean(usual, axis=0)).sum()) if len(usual) > 1 else 0.0
    variance = variance or float(np.square(usual).sum()) or 1.0
    with ReferenceProgram(noisy, optimize=True) as program:
        for name in names:
            for number, sample in enumerate(chosen):
                size = shapes[name][number]
                noise = rng.standard_normal(size, np.float32) * spreads[name] * np.float32(np.sqrt(_NOISE))
                run = program.run({**sample, **quiet, f"{name}/noise": noise.astype(np.float32)})
                found[name] += float(np.square(_flat(run, outputs) - usual[number]).sum())
    return {name: lost / (_NOISE * variance) for name, lost in found.items()}


def _with_noise(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Return a copy that adds an input of its own to tensors, and which outputs to look at."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, nodes = copy.graph, list(copy.graph.node)
    made = {output: node for node in nodes for output in node.output}
    outputs = [
        made[o.name].input[0] if o.name in made and made[o.name].op_type in _SQUASHING else o.name
        for o in graph.output
    ]
    del graph.node[:]
    for node in nodes:
        own = [o for o in node.output if o in names]
        graph.node.append(node)
        for name in own:
            index = list(node.output).index(name)
            graph.node[-1].output[index] = f"{name}/quiet"
            graph.node.append(helper.make_node("Add", [f"{name}/quiet", f"{name}/noise"], [name]))
            graph.input.append(helper.make_tensor_value_info(f"{name}/noise", onnx.TensorProto.FLOAT, None))
    return with_outputs(copy, outputs), outputs


def _spread(values: Sequence[NDArray[Any]], axis: int) -> NDArray[np.float32]:
    """Return the standard deviation of each channel, in the shape that broadcasts to the tensor."""
    rows = np.concatenate([np.moveaxis(v, axis, -1).reshape(-1, v.shape[axis]) for v in values])
    shape = [1] * values[0].ndim
    shape[axis] = values[0].shape[axis]
    return np.asarray(rows.std(axis=0).reshape(shape), np.float32)


def _flat(values: Arrays, names: Sequence[str]) -> NDArray[np.float64]:
    return np.concatenate([np.ravel(values[name]).astype(np.float64) for name in names])
