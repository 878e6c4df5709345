"""From a trained model to proven artifacts that run: the main job of edgec, as a user would do it.

Run by ``make demo``. Everything goes through the command line that the README shows; results are left
in ``demo/``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edgec.runtime import load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUT = Path("demo")
EXAMPLE = Path("examples/digits")


def edgec(*arguments: str | Path) -> None:
    """Show a command, run it, and stop the demo if it fails."""
    words = ["edgec", *map(str, arguments)]
    print(f"\n$ {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "edgec.cli", *words[1:]], check=True, cwd=ROOT)


def main() -> None:
    """Compile, verify, evaluate and measure the digits example."""
    start = time.monotonic()
    print("The model: a small convolutional network that we trained on scikit-learn's digits.")
    edgec(
        *("compile", EXAMPLE / "digits.onnx", "--output", OUT, "--no-cache"),
        *("--target", "cpu", "--target", "openvino", "--target", "jetson"),
        *("--pipeline", EXAMPLE / "pipeline.toml"),
        *("--calibration", EXAMPLE / "calibration.npz"),
        *("--evaluation", EXAMPLE / "evaluation.npz", "--metric", "top1"),
    )
    artifacts = sorted((ROOT / OUT).glob("*.edgec"))
    for artifact in artifacts:
        edgec("verify", artifact.relative_to(ROOT))
    for artifact in artifacts:
        edgec(
            "evaluate", artifact.relative_to(ROOT), "--data", EXAMPLE / "evaluation.npz", "--metric", "top1"
        )
    edgec(
        "benchmark", artifacts[0].relative_to(ROOT), "--duration-s", "2", "--data", EXAMPLE / "evaluation.npz"
    )
    print("\nThe same from Python:")
    print(f'>>> session = load("{artifacts[0].relative_to(ROOT)}")')
    with np.load(HERE / "evaluation.npz") as data, load(artifacts[0]) as session:
        image, label = data["image"][0], int(data["labels"][0])
        print(f">>> session.predict(image)  # a {label}")
        print(session.predict(image))
    print(f"\nArtifacts and report are in {OUT}/ ({time.monotonic() - start:.0f} s):")
    for path in (*artifacts, *sorted((ROOT / OUT).glob("*-report.*"))):
        print(f"  {path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
