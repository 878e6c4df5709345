"""Run a model over thousands of files, several at a time; killed and started again, it goes on where it was.

``make demo`` makes the model.

    python examples/batch.py                       two thousand images that are made here
    python examples/batch.py images/ -o results.jsonl --jobs 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from edgec.errors import EdgecError
from edgec.runtime import load
from edgec.runtime.batch import run_many
from edgec.runtime.journal import Journal
from edgec.runtime.results import Result, write_results

ROOT = Path(__file__).parents[1]


def make_images(folder: Path, count: int = 2000) -> Path:
    """Write digits of the evaluation set as PNG files, over and over, each a little different."""
    images = np.load(ROOT / "examples/digits/evaluation.npz")["image"]  # uint8[500, 8, 8, 1], up to 16
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noisy = images[number % len(images)] + rng.integers(0, 2, (8, 8, 1), np.uint8)
        cv2.imwrite(str(folder / f"{number:05}.png"), noisy)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="with .png files")
    parser.add_argument("--artifact", default=next(iter((ROOT / "demo").glob("digits-cpu-*.edgec")), None))
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "demo/batch.jsonl")
    parser.add_argument("--jobs", type=int, default=2, help="files at a time (default: 2)")
    arguments = parser.parse_args()
    if arguments.artifact is None:
        sys.exit("there is no artifact: run  make demo  first, or name one with --artifact")
    output: Path = arguments.output
    folder: Path = arguments.folder or make_images(ROOT / "demo/batch")
    files = sorted(folder.glob("*.png"))
    if not files:
        sys.exit(f"there is no .png file in {folder}")
    samples = ((path.name, path) for path in files)
    # What makes this run another one than that of the journal: then it refuses to mix them.
    identity = {"artifact": str(arguments.artifact), "files": len(files)}
    with (
        load(arguments.artifact, threads=1) as session,
        Journal(output.with_name(f"{output.name}.journal"), identity) as journal,
    ):
        summary = run_many(samples, session.predict, journal, jobs=arguments.jobs)
        write_results(output, [Result(name, values) for _, name, values in journal.rows()])
        if not summary.failed:
            journal.remove()
    print(
        f"{summary.done} files done, {summary.resumed} of them before, {len(summary.failed)} failed: {output}"
    )
    for name, error in summary.failed[:10]:
        print(f"failed: {name}: {error}")
    if summary.failed:
        sys.exit("started again, the same command tries only those that failed")


if __name__ == "__main__":
    try:
        main()
    except EdgecError as e:
        sys.exit(str(e))
