"""Train the recurrent detector on simulated sound and export it to ONNX.

Not part of any test: the exported model is beside this script. Needs numpy and onnx; takes about five
minutes on two cores. Seeded: the same versions on the same kind of processor give the same model.

    python examples/alarm/train.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.alarm.generate import RATE_HZ, WINDOW, Clip, pieces

Array = NDArray[Any]
Weights = dict[str, Array]

SEED = 0
# Where the power of each window is looked at: around the tones of sounders, and below them for the noise.
TONES_HZ = np.array([1700, 2000, 2300, *range(2600, 3800, 100)])
PARTS = 4  # of a window: a part is so short that no tone falls between two of these
HIDDEN = 32
BATCH = 64
# Windows of a piece, epochs and highest learning rate: the beginnings of the pieces first, then all of them.
STAGES = ((150, 60, 1e-2), (450, 25, 4e-3))


def tone_matrix() -> Array:
    """Cosines and sines under a Hann window: from a part to its spectrum; float32[160, 2 * tones]."""
    samples = WINDOW // PARTS
    angles = 2 * np.pi * np.outer(np.arange(samples), TONES_HZ) / RATE_HZ
    hann = np.hanning(samples)[:, None] / samples
    return np.concatenate([np.cos(angles) * hann, np.sin(angles) * hann], axis=1).astype(np.float32)


def features(sound: Array) -> Array:
    """Power of each tone in each window, as a logarithm: float32[windows, tones]."""
    spectrum = sound.reshape(-1, PARTS, WINDOW // PARTS) @ tone_matrix()
    power = (spectrum**2).mean(axis=1).reshape(-1, 2, len(TONES_HZ)).sum(axis=1)
    return np.asarray(np.log(power + 1e-9) * 0.4 + 5, np.float32)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def initial(rng: np.random.Generator) -> Weights:
    """Gates z and r and the candidate n of a GRU, and the output."""
    n, h = len(TONES_HZ), HIDDEN
    shapes = {"Wz": (n, h), "Wr": (n, h), "Wn": (n, h), "Uz": (h, h), "Ur": (h, h), "Un": (h, h), "v": (h, 1)}
    weights = {k: (rng.standard_normal(s) * s[0] ** -0.5).astype(np.float32) for k, s in shapes.items()}
    # Units remember for 1 to 50 windows at first (Tallec, Ollivier: Can recurrent networks warp time?).
    biases = {"bz": np.log(rng.uniform(1, 50, h)), "br": np.zeros(h), "bn": np.zeros(h), "c": np.zeros(1)}
    return weights | {k: b.astype(np.float32) for k, b in biases.items()}


def forward(w: Weights, x: Array) -> tuple[Array, list[tuple[Array, ...]]]:
    """Logits float32[t, batch, 1] of features float32[t, batch, tones], and what `backward` needs."""
    state = np.zeros((x.shape[1], HIDDEN), np.float32)
    kept: list[tuple[Array, ...]] = []
    states: list[Array] = []
    for xz, xr, xn in zip(x @ w["Wz"] + w["bz"], x @ w["Wr"] + w["br"], x @ w["Wn"] + w["bn"], strict=True):
        z, r = sigmoid(xz + state @ w["Uz"]), sigmoid(xr + state @ w["Ur"])
        n = np.tanh(xn + (r * state) @ w["Un"])
        kept.append((state, z, r, n))
        state = (1 - z) * n + z * state
        states.append(state)
    return np.stack(states) @ w["v"] + w["c"], kept


def backward(w: Weights, x: Array, kept: Sequence[tuple[Array, ...]], slope: Array) -> Weights:
    """Gradients of all weights, from those of the logits, back through time."""
    gradient = {k: np.zeros_like(v) for k, v in w.items()}
    carry = np.zeros((x.shape[1], HIDDEN), np.float32)
    for t in range(len(x) - 1, -1, -1):
        before, z, r, n = kept[t]
        gradient["v"] += ((1 - z) * n + z * before).T @ slope[t]
        carry = carry + slope[t] @ w["v"].T
        at_n = carry * (1 - z) * (1 - n * n)
        at_z = carry * (before - n) * z * (1 - z)
        through = at_n @ w["Un"].T
        at_r = through * before * r * (1 - r)
        for gate, at, seen in (("z", at_z, before), ("r", at_r, before), ("n", at_n, r * before)):
            gradient["W" + gate] += x[t].T @ at
            gradient["U" + gate] += seen.T @ at
            gradient["b" + gate] += at.sum(axis=0)
        carry = carry * z + through * r + at_z @ w["Uz"].T + at_r @ w["Ur"].T
    gradient["c"] += slope.sum()
    return gradient


def train(w: Weights, data: Sequence[Clip], rng: np.random.Generator) -> None:
    """Fit `w`, in place, to every window that is sure."""
    x = np.stack([features(piece.sound) for piece in data], axis=1)
    wanted = np.stack([piece.alarm for piece in data], axis=1)[..., None]
    sure = np.stack([piece.sure for piece in data], axis=1)[..., None].astype(np.float32)
    for windows, epochs, rate in STAGES:
        fit(w, x[:windows], wanted[:windows], sure[:windows], epochs, rate, rng)


def fit(
    w: Weights, x: Array, wanted: Array, sure: Array, epochs: int, highest: float, rng: np.random.Generator
) -> None:
    """Lower the cross entropy with Adam, at a rate that falls as a cosine; arrays [windows, pieces, n]."""
    first, second = ({k: np.zeros_like(v) for k, v in w.items()} for _ in range(2))
    count = x.shape[1] // BATCH * BATCH
    steps = epochs * count // BATCH
    step = 0
    for epoch in range(epochs):
        losses = []
        for batch in rng.permutation(x.shape[1])[:count].reshape(-1, BATCH):
            step += 1
            logits, kept = forward(w, x[:, batch])
            p, y, mask = sigmoid(logits), wanted[:, batch], sure[:, batch]
            losses.append(-np.mean(mask * np.log(np.where(y > 0, p, 1 - p) + 1e-7)))
            gradient = backward(w, x[:, batch], kept, (p - y) * mask / mask.sum())
            norm = np.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
            rate = highest * 0.5 * (1 + np.cos(np.pi * step / steps))
            for k, g in gradient.items():
                g *= min(1.0, 0.5 / norm)
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = 0.999 * second[k] + 0.001 * g * g
                mean, square = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
                w[k] -= (rate * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}", flush=True)


def export(w: Weights, path: Path) -> None:
    """Write the detector as ONNX: a window and the state before it, to a score and the state after."""
    tones = len(TONES_HZ)
    constants = {
        **w, "tones": tone_matrix(), "floor": np.float32(1e-9), "scale": np.float32(0.4),
        "shift": np.float32(5), "one": np.float32(1), "halves": np.array([tones, tones], np.int64),
        "by_part": np.array([PARTS, WINDOW // PARTS], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Reshape", ["window", "by_part"], ["parts"]),
        node("MatMul", ["parts", "tones"], ["spectrum"]),
        node("Mul", ["spectrum", "spectrum"], ["squares"]),
        node("ReduceMean", ["squares"], ["means"], axes=[0], keepdims=1),
        node("Split", ["means", "halves"], ["cosines", "sines"], axis=1),
        node("Add", ["cosines", "sines"], ["power"]),
        node("Add", ["power", "floor"], ["above"]),
        node("Log", ["above"], ["log"]),
        node("Mul", ["log", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["x"]),
    ]
    for gate in "zr":
        nodes += [
            node("Gemm", ["x", f"W{gate}", f"b{gate}"], [f"x{gate}"]),
            node("MatMul", ["state", f"U{gate}"], [f"s{gate}"]),
            node("Add", [f"x{gate}", f"s{gate}"], [f"a{gate}"]),
            node("Sigmoid", [f"a{gate}"], [gate]),
        ]
    nodes += [
        node("Mul", ["r", "state"], ["kept"]),
        node("MatMul", ["kept", "Un"], ["sn"]),
        node("Gemm", ["x", "Wn", "bn"], ["xn"]),
        node("Add", ["xn", "sn"], ["an"]),
        node("Tanh", ["an"], ["n"]),
        node("Sub", ["one", "z"], ["not_z"]),
        node("Mul", ["not_z", "n"], ["new"]),
        node("Mul", ["z", "state"], ["old"]),
        node("Add", ["new", "old"], ["next_state"]),
        node("Gemm", ["next_state", "v", "c"], ["logit"]),
        node("Sigmoid", ["logit"], ["alarm"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "alarm",
        [value("window", TensorProto.FLOAT, [1, WINDOW]), value("state", TensorProto.FLOAT, [1, HIDDEN])],
        [value("alarm", TensorProto.FLOAT, [1, 1]), value("next_state", TensorProto.FLOAT, [1, HIDDEN])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def quality(w: Weights, data: Sequence[Clip]) -> tuple[float, float]:
    """Shares of the windows that are sure, with an alarm and without, of which the detector says so."""
    alarm = np.stack([piece.alarm for piece in data], axis=1) > 0
    sure = np.stack([piece.sure for piece in data], axis=1)
    said = forward(w, np.stack([features(piece.sound) for piece in data], axis=1))[0][..., 0] > 0
    return float(said[alarm & sure].mean()), float((~said)[~alarm & sure].mean())


def main() -> None:
    """Train on 2048 pieces of sound of 36 seconds, score on 200 longer ones once, write ``alarm.onnx``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("alarm.onnx"))
    output: Path = parser.parse_args().output
    rng = np.random.default_rng(SEED)
    weights = initial(rng)
    train(weights, pieces(2048, 36.0, seed=1), rng)
    export(weights, output)
    heard, quiet = quality(weights, pieces(200, 90.0, seed=2))
    print(f"of the windows with an alarm {heard:.2%} are heard, of those without {quiet:.2%} are quiet")


if __name__ == "__main__":
    main()
