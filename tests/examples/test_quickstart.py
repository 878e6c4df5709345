"""The quick start runs as it stands."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgec.compiler import CompileOptions, compile_model

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_quickstart_reads_a_digit(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip(f"the quick start names the artifact for x86-64, this machine is {platform.machine()}")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    compile_model(
        EXAMPLES / "digits" / "digits.onnx",
        ["cpu-x86_64"],
        tmp_path / "demo",
        pipeline=EXAMPLES / "digits" / "pipeline.toml",
        options=CompileOptions(precision="fp32", measure_s=0.1),
    )
    script = tmp_path / "examples" / "quickstart.py"
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    label = int(run.stdout.split()[1].rstrip(","))
    with np.load(EXAMPLES / "digits" / "evaluation.npz") as data:
        assert label == data["labels"][0]
