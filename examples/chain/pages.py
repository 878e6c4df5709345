"""Pages with several handwritten digits, made of the held-out scans of ``examples/digits``.

python examples/chain/pages.py build/chain/pages --count 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 192
SCANS = Path(__file__).parents[1] / "digits" / "evaluation.npz"


def make_page(rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[int]]:
    """Return a page, uint8[64, 192, 1] with ink from 0 to 255, and its digits from left to right.

    Five or six digits, each two or three times its 8x8 pixels, some pixels apart and not on one line, on
    paper with a little noise.
    """
    with np.load(SCANS) as data:
        images, labels = data["image"][..., 0], data["labels"]
    page = rng.integers(0, 16, (HEIGHT, WIDTH)).astype(np.uint8)
    written, left = [], 6
    while left < WIDTH - 30:
        index, scale = int(rng.integers(len(images))), int(rng.integers(2, 4))
        scan = np.kron(images[index], np.ones((scale, scale), np.uint8)) * np.uint8(15)
        top = int(rng.integers(4, HEIGHT - 8 * scale - 4))
        area = page[top : top + 8 * scale, left : left + 8 * scale]
        np.maximum(area, scan, out=area)
        written.append(int(labels[index]))
        left += 8 * scale + int(rng.integers(6, 12))
    return page[..., None], written


def main() -> None:
    """Write pages as PNG, each named for what it says: ``003-51906.png``."""
    import cv2

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    for number in range(arguments.count):
        page, written = make_page(rng)
        name = f"{number:03}-{''.join(map(str, written))}.png"
        cv2.imwrite(str(arguments.folder / name), page)


if __name__ == "__main__":
    main()
