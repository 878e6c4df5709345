"""Split scikit-learn's digits into training, calibration and evaluation sets.

The images keep the order of the source, in which consecutive images are not independent: the last
500 are held out, in one piece, because a shuffled split would be easier than the real task (an RBF
support vector machine scores .996 on a shuffled one and .964 on this one). Every sixth image of the
training part calibrates.

    python examples/digits/split.py build/digits
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

HELD_OUT = 500
CALIBRATION_STRIDE = 6


def split() -> dict[str, dict[str, Any]]:
    """Arrays of each set by name: ``image``, uint8[n, 8, 8, 1] from 0 to 16, and ``labels``, int64[n]."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    training = {"image": images[:-HELD_OUT], "labels": labels[:-HELD_OUT]}
    return {
        "training": training,
        "calibration": {"image": training["image"][::CALIBRATION_STRIDE]},
        "evaluation": {"image": images[-HELD_OUT:], "labels": labels[-HELD_OUT:]},
    }


def main() -> None:
    """Write one ``.npz`` per set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="where the .npz files go; made if missing")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name, arrays in split().items():
        np.savez_compressed(directory / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
