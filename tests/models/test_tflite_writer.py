"""Real models as TFLite, in every mode that they have, against ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from tests.compiler.tflite.harness import run_onnx, run_tflite, samples_of, snr_db

from edgec.artifact import read_pipeline
from edgec.compiler.calibration import calibrate
from edgec.compiler.model import load_model, tensor_specs
from edgec.compiler.passes.simplify import simplify
from edgec.compiler.tflite import Mode, UnsupportedOperatorsError, unsupported, write_tflite
from edgec.compiler.variants import make_processor

pytestmark = [pytest.mark.models, pytest.mark.slow]

Shapes = dict[str, tuple[int, ...]]
MINILM = Path(__file__).parents[2] / "build" / "minilm" / "minilm.onnx"
RECURRENT: dict[str, Shapes] = {
    "dtln_denoise/model_1.onnx": {"input_2": (1, 1, 257), "input_3": (1, 2, 128, 2)},
    "dtln_denoise/model_2.onnx": {"input_4": (1, 1, 512), "input_5": (1, 2, 128, 2)},
    "silero_vad_v6/silero_vad_16k_op15.onnx": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad_v6/silero_vad_openvino_16k.onnx": {"input": (1, 576), "state": (2, 1, 128)},
}
OTHERS: dict[str, Shapes] = {
    "mlperf_tiny_ad_ae/derived/ad01_fp32.onnx": {"input_1": (1, 640)},
    "nab_autoencoders/nab_machine_temp_dense_ae.onnx": {"window": (1, 64)},
    "nab_autoencoders/nab_machine_temp_conv_ae.onnx": {"window": (1, 64)},
    "ultraface/version-RFB-320.onnx": {},
    "fastestdet_coco/FastestDet.onnx": {},
}


def source(name: str, shapes: Shapes) -> onnx.ModelProto:
    folder = os.environ.get("EDGEC_TEST_MODELS")
    if not folder:
        pytest.skip("EDGEC_TEST_MODELS names no folder of real models")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"there is no {name} below EDGEC_TEST_MODELS")
    return simplify(load_model(path, shapes).proto)


@pytest.mark.parametrize("name", [*RECURRENT, *OTHERS])
def test_in_float_it_computes_what_the_source_does(name: str) -> None:
    model = source(name, (RECURRENT | OTHERS)[name])
    sample = samples_of(model, 1)[0]
    expected = run_onnx(model, sample)
    assert snr_db(expected, run_tflite(write_tflite(model), sample)) >= 90
    assert snr_db(expected, run_tflite(write_tflite(model, mode=Mode.FLOAT16), sample)) >= 40


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_keep_their_states_in_int16(name: str) -> None:
    model = source(name, RECURRENT[name])
    samples = samples_of(model)
    expected = run_onnx(model, samples[0])
    table = calibrate(model, samples)
    written = write_tflite(model, mode=Mode.INT16X8, table=table, float_fallback=True)
    assert snr_db(expected, run_tflite(written, samples[0])) >= 30
    written = write_tflite(model, mode=Mode.INT8, table=table, float_fallback=True)
    assert snr_db(expected, run_tflite(written, samples[0])) >= 12
    assert snr_db(expected, run_tflite(write_tflite(model, mode=Mode.DYNAMIC), samples[0])) >= 27


@pytest.mark.parametrize(
    ("name", "columns"), [("wine_random_forest", 13), ("diabetes_gbdt_reg", 10), ("breast_cancer_mlp", 30)]
)
def test_classical_models_are_refused_with_a_way_out(name: str, columns: int) -> None:
    model = source(f"tabular_sklearn/{name}.onnx", {"X": (1, columns)})
    refused = unsupported(model)
    assert refused
    assert all("compile the model for ONNX Runtime" in u.fix for u in refused)
    with pytest.raises(UnsupportedOperatorsError, match=r"ai\.onnx\.ml\."):
        write_tflite(model)


# The fully connected layers of which int8 loses most, found by leaving out one at a time.
SENSITIVE = ["val_184", "val_101", "val_55", "val_230", "val_213", "val_92", "val_276", "val_105"]


TEXT = """A man is playing a large flute. A woman is slicing an onion while two children watch. Three dogs
run through the snow, and a plane is taking off behind the hills. The market fell by two percent on Tuesday,
after the bank had raised its rates for the third time this year. Officials said that no one was injured when
the old bridge over the river collapsed during the storm. She put the letter into her bag and closed the
door quietly."""


def test_minilm() -> None:
    if not MINILM.exists():
        pytest.skip("run benchmarks/export_minilm.py first")
    names: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    model = simplify(load_model(MINILM, dict.fromkeys(names, (1, 128))).proto)
    specs = tensor_specs(model.graph.input), tensor_specs(model.graph.output)
    processor = make_processor(read_pipeline(MINILM.with_name("pipeline.toml")), *specs)
    sample = dict(processor.preprocess(TEXT)[0])
    expected = run_onnx(model, sample)
    written = write_tflite(model)
    assert {t.dtype for t in written.inputs} == {"int64"}
    assert snr_db(expected, run_tflite(written, sample)) >= 90
    assert snr_db(expected, run_tflite(write_tflite(model, mode=Mode.FLOAT16), sample)) >= 55
    assert snr_db(expected, run_tflite(write_tflite(model, mode=Mode.DYNAMIC), sample)) >= 23
    written = write_tflite(model, mode=Mode.DYNAMIC, exclude=SENSITIVE)
    assert set(written.float_nodes) == set(SENSITIVE)
    assert snr_db(expected, run_tflite(written, sample)) >= 27
