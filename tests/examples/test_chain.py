"""The example of a chain reads pages of digits that nobody trained it on."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgec.artifact import Manifest, TensorSpec, pack, read_pipeline
from edgec.runtime import load_chain
from edgec.runtime.testing import onnxruntime_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
HERE = EXAMPLES / "chain"

pytestmark = pytest.mark.slow


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    shape = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
    return TensorSpec(value.name, "float32", shape)


def put(path: Path, model: onnx.ModelProto, pipeline: str) -> None:
    """Pack a model as it is, which takes a second where compiling takes a minute."""
    inputs, outputs = (tuple(map(spec_of, values)) for values in (model.graph.input, model.graph.output))
    manifest = Manifest(
        model=path.stem,
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
        pipeline=read_pipeline(HERE / pipeline),
    )
    pack(path, manifest, {"model.onnx": model.SerializeToString()})


def test_pages_are_read_as_the_readme_says(tmp_path: Path) -> None:
    detector = runpy.run_path(str(HERE / "detector.py"))["detector"]()
    put(tmp_path / "detector-cpu-x86_64.edgec", detector, "detector.toml")
    digits = onnx.load(EXAMPLES / "digits" / "digits.onnx")
    put(tmp_path / "digits-cpu-x86_64.edgec", digits, "digit.toml")
    chain_file = tmp_path / "page.chain.toml"
    chain_file.write_text((HERE / "page.chain.toml").read_text(encoding="utf-8"), encoding="utf-8")
    make_page, rng = runpy.run_path(str(HERE / "pages.py"))["make_page"], np.random.default_rng(0)
    right = 0
    with load_chain(chain_file) as chain:
        for _ in range(40):
            page, written = make_page(rng)
            found = chain.predict(page)
            right += [int(label) for label in found["labels"]] == written
            assert (np.diff(found["boxes"][:, 0]) > 0).all()
    assert right >= 38
