"""Train the digits classifier and export it to ONNX.

Not part of the demo: the exported model is beside this script. Needs PyTorch 2.13, onnx and
onnxscript; takes about a minute on two cores. Seeded: the same versions on the same kind of processor
give the same model.

    python examples/digits/split.py build/digits
    python examples/digits/train.py build/digits
"""

# mypy: disallow-subclassing-any=false
# (PyTorch is not among the tools of `make check`.)
from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
EPOCHS = 60
BATCH = 64
PEAK_LEARNING_RATE = 6e-3
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.1
LARGEST_PIXEL = 16


class ConvBlock(nn.Sequential):
    """Convolution without bias, batch normalization, and ReLU unless it is left out."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, *, groups: int = 1, relu: bool = True
    ):
        conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False)
        layers = [conv, nn.BatchNorm2d(channels_out)]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a skip connection (ResNet)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(ConvBlock(channels, channels), ConvBlock(channels, channels, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """float32[n, channels, h, w] to the same."""
        return functional.relu(x + self.body(x))


class InvertedResidual(nn.Module):
    """A depthwise convolution between two pointwise ones, beside a skip connection (MobileNetV2)."""

    def __init__(self, channels: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        self.body = nn.Sequential(
            ConvBlock(channels, wide, 1),
            ConvBlock(wide, wide, 3, groups=wide),
            ConvBlock(wide, channels, 1, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32[n, channels, h, w] to the same."""
        return x + self.body(x)


def build_net() -> nn.Sequential:
    """The classifier: float32[n, 1, 8, 8] from 0 to 1, to logits float32[n, 10]."""
    return nn.Sequential(
        OrderedDict(
            stem=ConvBlock(1, 32),
            widen=ConvBlock(32, 64),
            residual=Residual(64),
            inverted=InvertedResidual(64, expansion=2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.2),
            head=nn.Linear(64, 10),
        )
    )


def augment(images: Tensor) -> Tensor:
    """Rotate, scale, shear, shift, brighten and disturb each image at random."""

    def spread(largest: float, *shape: int) -> Tensor:
        return (torch.rand(len(images), *shape) * 2 - 1) * largest

    angle, scale, shear, shift = spread(0.25), 1 + spread(0.15, 2), spread(0.2), spread(0.2, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([cos * scale[:, 0], shear - sin, shift[:, 0]], dim=1)
    second = torch.stack([sin, cos * scale[:, 1], shift[:, 1]], dim=1)
    grid = functional.affine_grid(
        torch.stack([first, second], dim=1), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, align_corners=False)
    brightness = 1 + spread(0.2, 1, 1, 1)
    return (moved * brightness + 0.03 * torch.randn_like(moved)).clamp(0, 1)


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Images float32[n, 1, 8, 8] from 0 to 1, and labels int64[n]."""
    arrays = np.load(path)
    images = torch.from_numpy(arrays["image"]).permute(0, 3, 1, 2).float() / LARGEST_PIXEL
    return images, torch.from_numpy(arrays["labels"])


def train(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Fit `net` for a fixed number of epochs; nothing is selected on other data."""
    batches = len(images) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * batches
    )
    net.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        losses = []
        for batch in order[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            logits = net(augment(images[batch]))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {np.mean(losses):.4f}", flush=True)


def export(net: nn.Module, path: Path) -> None:
    """Write `net` as ONNX, opset 17, with batch normalization folded into the convolutions."""
    net.eval()
    # The newer exporter (dynamo=True) writes stack traces of this machine into the file, and ReduceMean and
    # Reshape where this one writes GlobalAveragePool and Flatten.
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        path,
        opset_version=17,
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)


def main() -> None:
    """Train on ``training.npz``, score on ``evaluation.npz`` once, write ``digits.onnx``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder that split.py wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("digits.onnx"))
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    net = build_net()
    train(net, *load(arguments.data / "training.npz"))
    export(net, arguments.output)
    images, labels = load(arguments.data / "evaluation.npz")
    with torch.no_grad():
        accuracy = (net(images).argmax(dim=1) == labels).float().mean().item()
    print(f"held-out top-1: {accuracy:.4f}")


if __name__ == "__main__":
    main()
