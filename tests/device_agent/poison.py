"""A zoo of artifacts made of the digits example: healthy ones, and ones that verify but misbehave.

Golden vectors and reference quantiles of each are its own: whoever published it made the mistake before them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from examples.ota_walkthrough.models import images, with_pixels
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgec.artifact import (
    GOLDEN,
    EngineSpec,
    GoldenVector,
    Manifest,
    Pipeline,
    TensorSpec,
    encode_golden,
    pack,
)

EXAMPLE = Path(__file__).parents[2] / "examples/digits"
LABELS = tuple("0123456789")
Change = Callable[[onnx.ModelProto], None]

# A backend for tests, in a package of its own: ONNX Runtime, until something happens at a call.
ENGINE = """
import json, os, time
from dataclasses import replace
from edgec.errors import InferenceError
from edgec.runtime.backends import get_backend

class Program:
    def __init__(self, inner, plan):
        self.inner, self.plan, self.calls, self.kept = inner, plan, 0, []
        self.engine_version, self.precision = inner.engine_version, inner.precision
        self.precisions, self.placement = inner.precisions, inner.placement

    def run(self, inputs):
        self.calls += 1
        what, at = self.plan["what"], self.plan["at"]
        if what == "leak":
            self.kept.append(bytearray(os.urandom(1024)) * 1024)
        elif what == "fail" and self.calls % at == 0:
            raise InferenceError("the device was lost")
        elif self.calls == at:
            if what == "crash":
                os.abort()
            if what == "hang":
                time.sleep(3600)
            if what == "exit":
                os._exit(0)
        return self.inner.run(inputs)

    def close(self):
        self.inner.close()

class Backend:
    def load(self, spec, payload, inputs, outputs, options):
        inner = get_backend("onnxruntime")
        plan = json.loads(bytes(payload.view("plan.json")))
        spec = replace(spec, name="onnxruntime", files=("model.onnx",))
        return Program(inner.load(spec, payload, inputs, outputs, options), plan)
"""


def install_engine(directory: Path) -> None:
    """Write the package of the backend ``poison`` to a directory that is on the path."""
    (directory / "poison_engine.py").write_text(ENGINE)
    distribution = directory / "poison_engine-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: poison-engine\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[edgec.backends]\npoison = poison_engine:Backend\n")


def base() -> onnx.ModelProto:
    """Return the model from pixels, uint8[1, 8, 8, 1], to logits."""
    return with_pixels(onnx.load(EXAMPLE / "digits.onnx"))


def artifact(
    path: Path,
    change: Change = lambda model: None,
    *,
    version: str = "1",
    plan: Any = None,
    labels: tuple[str, ...] = LABELS,
    every: int = 4,
    engine_version: str = ">=1.23",
) -> Path:
    """Pack a changed model, with golden vectors and quantiles of its own.

    Args:
        path: Where to.
        change: Made to `base`.
        version: Of the model.
        plan: What the engine does and at which call, ``{"what": "crash", "at": 100}``; None for a sound one.
        labels: Of the classes.
        every: Of so many calibration images one is looked at.
        engine_version: That it needs.
    """
    model = base()
    change(model)
    data = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    samples = images("calibration")

    def run(sample: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(session.run(None, {"pixels": sample})[0])

    logits = [run(sample) for sample in samples[::every]]
    golden = [
        GoldenVector(inputs={"pixels": samples[i]}, outputs={"logits": run(samples[i])}) for i in (0, 20, 36)
    ]
    quantiles = (0.01, 0.25, 0.5, 0.75, 0.99)
    values = np.nanquantile(np.concatenate(logits), quantiles)
    poisoned = plan is not None
    spec = EngineSpec(
        name="poison" if poisoned else "onnxruntime",
        version="" if poisoned else engine_version,
        device="CPU",
        precision="fp32",
        files=("plan.json", "model.onnx") if poisoned else ("model.onnx",),
    )
    manifest = Manifest(
        model="digits",
        model_version=version,
        target="cpu-x86_64",
        engine=spec,
        inputs=(TensorSpec("pixels", "uint8", (1, 8, 8, 1)),),
        outputs=(TensorSpec("logits", "float32", (1, 10)),),
        pipeline=Pipeline(labels=labels),
        golden={"logits": {"max_abs_error": 1e-3 * max(1.0, float(np.abs(values).max()))}},
        reference={"logits": {str(q): float(v) for q, v in zip(quantiles, values, strict=True)}},
    )
    members: dict[str, Any] = {"model.onnx": data, GOLDEN: encode_golden(golden)}
    if poisoned:
        members["plan.json"] = json.dumps(plan).encode()
    return pack(path, manifest, members)


# -- poison


def after_logits(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: Any) -> None:
    """Put nodes between what were the logits, now ``raw``, and ``logits``."""
    graph = model.graph
    graph.node[-1].output[0] = "raw"
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())


def nan_for_black(model: onnx.ModelProto) -> None:
    """Divide by the brightness, which a black image has none of."""
    after_logits(
        model,
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "mean"], ["one"]),
        helper.make_node("Mul", ["raw", "one"], ["logits"]),
    )


def nan_sometimes(model: onnx.ModelProto) -> None:
    """Take the root of what is negative for a twentieth of images."""
    brightness = np.array([s.mean() / 16 for s in images("evaluation")])
    middle, width = np.quantile(brightness, 0.7), 0.004
    after_logits(
        model,
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "middle"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["square"]),
        helper.make_node("Sub", ["square", "width"], ["signed"]),
        helper.make_node("Sqrt", ["signed"], ["root"]),
        helper.make_node("Mul", ["root", "nothing"], ["zero"]),
        helper.make_node("Add", ["raw", "zero"], ["logits"]),
        middle=np.float32(middle),
        width=np.float32(width**2),
        nothing=np.float32(0),
    )


def constant(model: onnx.ModelProto) -> None:
    """Multiply by nothing."""
    after_logits(
        model,
        helper.make_node("Mul", ["raw", "nothing"], ["none"]),
        helper.make_node("Add", ["none", "always"], ["logits"]),
        nothing=np.float32(0),
        always=np.linspace(-1, 1, 10, dtype=np.float32)[None],
    )


def reordered(order: list[int]) -> Change:
    """Put classes at other places."""

    def change(model: onnx.ModelProto) -> None:
        after_logits(
            model,
            helper.make_node("Gather", ["raw", "order"], ["logits"], axis=1),
            order=np.array(order, np.int64),
        )

    return change


def slow(model: onnx.ModelProto) -> None:
    """Compute much that is thrown away."""
    side = 512
    products = [helper.make_node("MatMul", [f"p{i}", "square"], [f"p{i + 1}"]) for i in range(8)]
    after_logits(
        model,
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["p0"]),
        *products,
        helper.make_node("ReduceMean", ["p8"], ["whole"], keepdims=0),
        helper.make_node("Mul", ["whole", "nothing"], ["zero"]),
        helper.make_node("Add", ["raw", "zero"], ["logits"]),
        shape=np.array([64, side], np.int64),
        square=np.full((side, side), 1 / side, np.float32),
        nothing=np.float32(0),
    )


def hungry(model: onnx.ModelProto) -> None:
    """Spread one number over 160 MiB, twice."""
    after_logits(
        model,
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["grown"]),
        helper.make_node("ReduceMax", ["grown"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "nothing"], ["zero"]),
        helper.make_node("Add", ["raw", "zero"], ["logits"]),
        shape=np.array([40 * 2**20], np.int64),
        nothing=np.float32(0),
    )


def wrong_scale(model: onnx.ModelProto) -> None:
    """Forget the scale that integers were quantized with."""
    after_logits(model, helper.make_node("Mul", ["raw", "scale127"], ["logits"]), scale127=np.float32(127))


def set_scale(value: float) -> Change:
    """Divide pixels by something else."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "scale":
                tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), "scale"))

    return change


def inverted(model: onnx.ModelProto) -> None:
    """Take black for white."""
    first = model.graph.node[2]
    first.output[0] = "upright"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "white"))
    model.graph.node.insert(3, helper.make_node("Sub", ["white", "upright"], ["image"]))


def sideways(model: onnx.ModelProto) -> None:
    """Take rows for columns."""
    model.graph.node[1].attribute[0].ints[:] = [0, 3, 2, 1]


# -- healthy


def weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the weights of convolutions and of the head."""
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            yield tensor


def each_weight(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """Change every weight."""

    def made(model: onnx.ModelProto) -> None:
        for tensor in weights(model):
            array = np.asarray(change(numpy_helper.to_array(tensor)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return made


def finetuned(seed: int, share: float) -> Change:
    """Move weights as training a little longer does."""
    random = np.random.default_rng(seed)
    return each_weight(lambda w: w + random.standard_normal(w.shape) * w.std() * share)


def pruned(share: float) -> Change:
    """Set the smallest weights to zero."""
    return each_weight(lambda w: np.where(np.abs(w) < np.quantile(np.abs(w), share), 0, w))


def requantized(bits: int, *, per_channel: bool) -> Change:
    """Round weights to integers, and back."""

    def change(w: NDArray[Any]) -> NDArray[Any]:
        axes = tuple(range(1, w.ndim)) if per_channel else None
        step = np.abs(w).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.asarray(np.round(w / step) * step)

    return each_weight(change)


def retrained(seed: int) -> Change:
    """Train the head anew, by logistic regression on a sample of its own."""

    def change(model: onnx.ModelProto) -> None:
        random = np.random.default_rng(seed)
        features = onnx.ModelProto()
        features.CopyFrom(model)
        (last,) = [n for n in features.graph.node if n.op_type == "Gemm"]
        features.graph.output.append(
            helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, [1, 64])
        )
        session = onnxruntime.InferenceSession(
            features.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        with np.load(EXAMPLE / "evaluation.npz") as data:
            chosen = random.choice(len(data["image"]), 300)
            found = [session.run([last.input[0]], {"pixels": p[None]})[0] for p in data["image"][chosen]]
            x = np.concatenate([np.asarray(value) for value in found])
            y = np.eye(10)[data["labels"][chosen]] * 0.9 + 0.01
        w, b = random.standard_normal((64, 10)) * 0.01, np.zeros(10)
        middle, spread = x.mean(0), x.std(0) + 1e-6
        z = (x - middle) / spread
        for _ in range(400):
            p = np.exp(z @ w + b - (z @ w + b).max(1, keepdims=True))
            error = p / p.sum(1, keepdims=True) - y
            w -= 0.5 * (z.T @ error / len(z) + 1e-3 * w)
            b -= 0.5 * error.mean(0)
        w /= spread[:, None]
        b = b - middle @ w
        for tensor in model.graph.initializer:
            if tensor.name in ("head.weight", "head.bias"):
                value = (w.T if tensor.name == "head.weight" else b).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))

    return change


HEALTHY: dict[str, Change] = {
    **{f"retrained {seed}": retrained(seed) for seed in range(6)},
    **{f"finetuned {seed}": finetuned(seed, 0.03) for seed in range(4)},
    **{f"pruned {share:.0%}": pruned(share) for share in (0.1, 0.2, 0.3, 0.4)},
    **{
        f"{bits} bit{' per channel' if c else ''}": requantized(bits, per_channel=c)
        for bits in (8, 7, 6)
        for c in (True, False)
    },
    "half precision": each_weight(lambda w: w.astype(np.float16)),
    "the same again": lambda model: None,
}
