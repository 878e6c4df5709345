"""Train the vibration autoencoder and export it to ONNX.

Not part of any test: the exported model is beside this script. Needs PyTorch 2.13, onnx and
onnxscript; takes about two minutes on two cores. Seeded: the same versions on the same kind of
processor give the same model.

    python examples/vibration/generate.py build/vibration
    python examples/vibration/train.py build/vibration
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SEED = 0
EPOCHS = 40
BATCH = 64
PEAK_LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-4
COUNTS_PER_G = 256


def encode(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """Shorten by 4: float32[n, channels_in, 4 * l] to float32[n, channels_out, l]."""
    conv = nn.Conv1d(channels_in, channels_out, kernel, stride=4, padding=(kernel - 4) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(channels_out), nn.ReLU())


def decode(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """Lengthen by 4: float32[n, channels_in, l] to float32[n, channels_out, 4 * l]."""
    conv = nn.ConvTranspose1d(
        channels_in, channels_out, kernel, stride=4, padding=(kernel - 4) // 2, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm1d(channels_out), nn.ReLU())


def build_net() -> nn.Sequential:
    """The autoencoder: float32[n, 1, 512] in g to the same, through 6 x 8 numbers.

    The code is as narrow as it is so that shaft and mesh tones, about 25 degrees of freedom in a
    window, pass, and what no healthy machine repeats does not.
    """
    return nn.Sequential(
        OrderedDict(
            encode_1=encode(1, 16, kernel=16),
            encode_2=encode(16, 32, kernel=8),
            encode_3=encode(32, 64, kernel=8),
            code=nn.Conv1d(64, 6, 1),
            decode_3=decode(6, 64, kernel=8),
            decode_2=decode(64, 32, kernel=8),
            decode_1=nn.ConvTranspose1d(32, 1, kernel_size=16, stride=4, padding=6),
        )
    )


def train(net: nn.Module, windows: Tensor) -> None:
    """Fit `net` to `windows`, float32[n, 1, 512], for a fixed number of epochs."""
    batches = len(windows) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * batches
    )
    net.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(windows))
        losses = []
        for batch in order[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(windows[batch]), windows[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {np.mean(losses):.5f}", flush=True)


def load(path: Path) -> tuple[Tensor, dict[str, NDArray[Any]]]:
    """Windows float32[n, 1, 512] in g, and all arrays of the file."""
    arrays = dict(np.load(path))
    return torch.from_numpy(arrays["signal"].astype(np.float32) / COUNTS_PER_G), arrays


def export(net: nn.Module, path: Path) -> None:
    """Write `net` as ONNX, opset 17."""
    net.eval()
    # The newer exporter (dynamo=True) writes stack traces of this machine into the file.
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 512),),
        path,
        opset_version=17,
        dynamo=False,
        input_names=["signal"],
        output_names=["reconstruction"],
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)


def area_under_curve(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """How often a defective window scores higher than a healthy one."""
    healthy, defective = scores[labels == 0], scores[labels == 1]
    return float((defective[:, None] > healthy).mean())


def main() -> None:
    """Train on ``training.npz``, score on ``evaluation.npz`` once, write ``vibration.onnx``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder that generate.py wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("vibration.onnx"))
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    net = build_net()
    train(net, load(arguments.data / "training.npz")[0])
    export(net, arguments.output)
    windows, arrays = load(arguments.data / "evaluation.npz")
    with torch.no_grad():
        errors = ((net(windows) - windows) ** 2).mean(dim=(1, 2)).numpy()
    print(f"AUC: {area_under_curve(errors, arrays['labels']):.4f}")


if __name__ == "__main__":
    main()
