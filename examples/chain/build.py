"""Compile the two models of the chain, and put it beside them.

python examples/chain/build.py build/chain
"""

from __future__ import annotations

import argparse
import runpy
import shutil
from pathlib import Path

import onnx

from edgec.compiler import CompileOptions, compile_model

HERE = Path(__file__).parent
TARGET = "cpu-x86_64"


def build(folder: Path) -> Path:
    """Compile both models in fp32 into a folder, and return the path of the chain there."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "detector.onnx"
    onnx.save(runpy.run_path(str(HERE / "detector.py"))["detector"](), source)
    options = CompileOptions(precision="fp32", measure_s=0.2)
    compile_model(source, [TARGET], folder, pipeline=HERE / "detector.toml", options=options)
    digits = HERE.parent / "digits" / "digits.onnx"
    compile_model(digits, [TARGET], folder, pipeline=HERE / "digit.toml", options=options)
    return Path(shutil.copy(HERE / "page.chain.toml", folder))


def main() -> None:
    """Build into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    print(build(parser.parse_args().folder))


if __name__ == "__main__":
    main()
