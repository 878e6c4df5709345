"""Keras and SavedModel -> ONNX by tf2onnx, with what TensorFlow computes on made-up inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Convert ``source`` to ``output``, and run it.

    ``shapes`` pins inputs by name; free dimensions of the samples are 1. ``samples`` is the ``.npz`` file for
    ``count`` samples with the inputs ``{n}/i/{name}`` and the outputs ``{n}/o/{name}``.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx

    function, specs, names = _opened(request)
    pinned = request["shapes"]
    specs = [tf.TensorSpec(pinned.get(s.name, s.shape), s.dtype, name=s.name) for s in specs]
    wrapped = tf.function(lambda *inputs: tf.nest.flatten(function(*inputs)), input_signature=specs)
    model, _ = tf2onnx.convert.from_function(wrapped, input_signature=specs, opset=request["opset"])
    _rename_outputs(model, names)
    onnx.save(model, request["output"])
    inputs = [_sample(model, specs, np.random.default_rng(n)) for n in range(request["count"])]
    arrays: dict[str, Any] = {}
    for n, sample in enumerate(inputs):
        outputs = wrapped(*(tf.constant(a) for a in sample.values()))
        arrays |= {f"{n}/i/{name}": a for name, a in sample.items()}
        arrays |= {f"{n}/o/{o.name}": a.numpy() for o, a in zip(model.graph.output, outputs, strict=True)}
    np.savez(request["samples"], **arrays)
    return {"tools": {name: version(name) for name in ("tf2onnx", "tensorflow_cpu", "keras")}}


def _opened(request: dict[str, Any]) -> tuple[Callable[..., Any], Sequence[Any], list[str]]:
    """Return the function of a model, the specs of what it takes, and names of what it gives."""
    import keras
    import tensorflow as tf

    source = Path(request["source"])
    if source.is_dir():
        loaded = tf.saved_model.load(str(source))
        signatures = loaded.signatures
        name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        if name is None:
            raise ValueError(
                "the SavedModel has no signature: save it with tf.saved_model.save(..., signatures=...)"
            )
        call = signatures[name]
        specs = [tf.TensorSpec(s.shape, s.dtype, n) for n, s in call.structured_input_signature[1].items()]
        call._edgec_keeps = loaded  # a signature does not keep its model alive
        return (
            lambda *inputs: call(**{str(s.name): v for s, v in zip(specs, inputs, strict=True)}),
            specs,
            sorted(call.structured_outputs),
        )
    # safe_mode: code within a model file is refused.
    model = keras.models.load_model(source, compile=False, safe_mode=True)
    specs = [
        tf.TensorSpec(i.shape, i.dtype, name=i.name.split(":")[0]) for i in tf.nest.flatten(model.inputs)
    ]
    packed = model.input
    return (
        lambda *inputs: model(tf.nest.pack_sequence_as(packed, inputs), training=False),
        specs,
        [str(name) for name in model.output_names],
    )


def _rename_outputs(model: Any, names: Sequence[str]) -> None:
    """Call outputs what their author calls them, where no other tensor is called so."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {t.name for t in (*graph.input, *graph.initializer)}
    if len(names) != len(graph.output) or len(set(names)) != len(names) or taken & set(names):
        return
    new = {o.name: name for o, name in zip(graph.output, names, strict=True)}
    if len(new) != len(names) or new.keys() & {i.name for i in graph.input}:
        return
    for node in graph.node:
        node.input[:] = [new.get(n, n) for n in node.input]
        node.output[:] = [new.get(n, n) for n in node.output]
    for value in (*graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)


def _sample(model: Any, specs: Sequence[Any], random: np.random.Generator) -> dict[str, Any]:
    sample = {}
    for value, spec in zip(model.graph.input, specs, strict=True):
        shape = [1 if n is None else n for n in spec.shape]
        dtype = np.dtype(spec.dtype.as_numpy_dtype)
        made = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        sample[value.name] = np.asarray(made, dtype)
    return sample
