"""CPUs on which sums of products in int8 saturate get weights of seven bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from tests.compiler.networks import cnn

from edgec.compiler import CompileOptions
from edgec.compiler.candidates import Shared, usual_recipe
from edgec.compiler.model import load_model
from edgec.compiler.samples import Samples
from edgec.compiler.targetbuild import saturates_on
from edgec.compiler.variants import plain_variant
from edgec.targets import load_target


def test_it_depends_on_target_and_cpu() -> None:
    x86, arm = load_target("cpu-x86_64"), load_target("cpu-arm64")
    assert saturates_on(x86, ["avx2"])
    assert not saturates_on(x86, ["avx2", "avx512_vnni"])
    assert not saturates_on(x86, ["avx2", "avx_vnni"])
    assert not saturates_on(arm, ["asimd"])
    assert saturates_on(load_target("intel-cpu"), ["avx2", "avx512f"])


def test_the_recipe_says_so_and_weights_have_seven_bits(tmp_path: Path) -> None:
    path = tmp_path / "cnn.onnx"
    onnx.save(cnn(), path)
    samples = Samples(calibration=None, evaluation=None, seed=0)
    variant = plain_variant(load_model(path), None, samples)
    shared = Shared(variants={"plain": variant}, baseline=None, options=CompileOptions(), scratch=tmp_path)
    recipe = usual_recipe(variant, "int8", saturates=True)
    assert recipe.name == "int8 (7-bit weights)"
    assert usual_recipe(variant, "int8").name == "int8"
    assert not usual_recipe(variant, "fp16", saturates=True).narrow_weights
    scheme = load_target("cpu-x86_64").quantization
    assert scheme is not None
    made = shared.graph(variant, scheme, recipe)
    weights = [numpy_helper.to_array(t) for t in made.graph.initializer if t.data_type == TensorProto.INT8]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights if w.ndim > 1) == 64
