"""Artifacts for 64-bit Arm, verified and run with the real aarch64 wheels under qemu: correctness, no speed.

    make test-arm64
    python -m tests.arm64.check

The example model is compiled here for each engine; then ``edgec verify`` and ``edgec run`` run in a Debian
root for Arm (see `tests.arm64.root`), and the outputs are held against the same artifact's on this host.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.arm64.root import ROOT, Arm64, MissingError, prepare

from edgec.compiler import CompileOptions, compile_model
from edgec.runtime import load

SAMPLES = 64
DIGITS = ROOT / "examples/digits"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One artifact: a target, and the precision to build."""

    target: str
    precision: str


CASES = (
    Case("cpu-arm64", "fp32"),
    Case("cpu-arm64", "int8"),  # activations and weights of int8, as the target says
    Case(str(HERE / "litert-arm64.toml"), "fp32"),
    Case(str(HERE / "litert-arm64.toml"), "int8"),
    Case(str(HERE / "openvino-arm64.toml"), "fp32"),
)


def main() -> None:
    """Check every case; exit with 1 if one fails or this machine lacks something."""
    # That artifacts for Arm are tried on another CPU is the point here.
    logging.getLogger("edgec").setLevel(logging.ERROR)
    try:
        arm64 = prepare()
    except MissingError as e:
        sys.exit(f"test-arm64: {e}")
    with tempfile.TemporaryDirectory() as folder:
        failures = [
            failure
            for number, case in enumerate(CASES)
            for failure in check(arm64, case, Path(folder) / str(number))
        ]
    for failure in failures:
        print(f"FAILED {failure}")
    sys.exit(1 if failures else 0)


def check(arm64: Arm64, case: Case, folder: Path) -> list[str]:
    """Return what is wrong with one artifact there; print a line about it."""
    started = time.monotonic()
    artifact = build(case, folder)
    name = f"{artifact.stem} {case.precision}"
    verified = arm64.edgec("verify", artifact)
    if verified.returncode:
        return [f"{name}: verify: {verified.stderr.strip()}"]
    samples, there = samples_file(folder), folder / "there.npz"
    ran = arm64.edgec("run", artifact, "--raw", "--input", samples, "--output", there, "--threads", "1")
    if ran.returncode:
        return [f"{name}: run: {ran.stderr.strip()}"]
    engine = next(line for line in verified.stdout.splitlines() if line.startswith("engine"))
    failures, worst = compare(artifact, case.precision, samples, there)
    print(
        f"{name}: verified, {SAMPLES} samples within {worst:.3g} of this host's outputs, "
        f"{engine.removeprefix('engine').strip()}, {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return [f"{name}: {failure}" for failure in failures]


def build(case: Case, folder: Path) -> Path:
    """Compile the example model."""
    options = CompileOptions(precision=case.precision, max_drop=None)
    compile_model(
        DIGITS / "digits.onnx",
        [case.target],
        folder,
        pipeline=DIGITS / "pipeline.toml",
        calibration=DIGITS / "calibration.npz",
        options=options,
    )
    return next(folder.glob("*.edgec"))


def samples_file(folder: Path) -> Path:
    """Write some samples as the model takes them."""
    with np.load(DIGITS / "evaluation.npz") as data:
        scans = data["image"][:SAMPLES].reshape(SAMPLES, 1, 8, 8)
    path = folder / "samples.npz"
    np.savez(path, image=scans.astype(np.float32) / 16)
    return path


def compare(artifact: Path, precision: str, samples: Path, there: Path) -> tuple[list[str], float]:
    """Hold outputs against this host's; return what is wrong, and the largest difference.

    Both may be as far from the source as the golden vectors allow, so at most twice that from each other.
    """
    with np.load(samples) as data, load(artifact, strict=False) as session:
        here = np.concatenate([session.run({"image": x[None]})["logits"] for x in data["image"]])
        allowed = 2 * session.manifest.golden["logits"]["max_abs_error"]
        promised = session.manifest.engine.precision
    with np.load(there) as data:
        got: NDArray[Any] = data["logits"].reshape(here.shape)
    worst = float(np.abs(got - here).max())
    failures = [f"it is in {promised}"] if promised != precision else []
    if not worst <= allowed:  # also where one is NaN
        failures.append(f"outputs differ by {worst:.3g}, allowed is {allowed:.3g}")
    if not worst <= allowed or (got.argmax(axis=1) != here.argmax(axis=1)).any():
        failures.append("classes differ from this host's")
    return failures, worst


if __name__ == "__main__":
    main()
