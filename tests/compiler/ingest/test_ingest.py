"""Models of other frameworks: told apart, converted in their environments, and held against their source."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tests.compiler.networks import cnn

from edgec.compiler.environments import EnvironmentStore, call_worker, default_home, get_environment
from edgec.compiler.ingest import Origin, load_source
from edgec.compiler.ingest._comparison import compare
from edgec.compiler.ingest._kinds import Taken, find_framework
from edgec.compiler.model import SourceModel, load_model
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.errors import EdgecError, MissingEnvironmentError, ModelError, ParityError, UnsupportedModelError

HOME = Path(os.environ["EDGEC_HOME"]) if "EDGEC_HOME" in os.environ else default_home()


def interpreter(name: str) -> Path:
    try:
        return EnvironmentStore(HOME / "environments").python(get_environment(name))
    except MissingEnvironmentError as e:
        pytest.skip(str(e))


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "")
    return path


# -- what a file is ----------------------------------------------------------------------------------------


def test_frameworks_are_told_apart(tmp_path: Path) -> None:
    tflite, keras = tmp_path / "any.bin", tmp_path / "b.h5"
    tflite.write_bytes(b"\x1c\0\0\0TFL3....")
    keras.write_bytes(b"\x89HDF\r\n\x1a\n....")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").touch()
    onnx.save(cnn(), tmp_path / "c.onnx")
    found = [find_framework(p) for p in (tflite, keras, saved, tmp_path / "c.onnx", tmp_path / "no.onnx")]
    assert found == ["TFLite", "Keras", "SavedModel", None, None]
    assert find_framework(archive(tmp_path / "d.pt2", "d/models/model.json", "d/archive_format")) == "PyTorch"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"), "is TorchScript"),
        (("m/data.pkl", "m/data/0"), "weights or a pickled module"),
        (("something.txt",), "none that PyTorch wrote"),
    ],
)
def test_what_pytorch_saves_otherwise_gets_advice(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"{message}.*torch\.export\.save\(torch\.export\.export"):
        load_source(archive(tmp_path / "m.pt", *names), home=tmp_path)


def test_pickles_frozen_graphs_and_scraps_get_advice(tmp_path: Path) -> None:
    for name, content, message in (
        ("old.pth", b"\x80\x02\x8a\nl\xfc", "loading one runs code"),
        ("graph.pb", b"\x0a\x05", "frozen TensorFlow graph"),
        ("cut.pt2", b"PK\x03\x04", "cut off or corrupt"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            load_source(tmp_path / name, home=tmp_path)


def test_onnx_is_read_as_it_is_and_needs_no_home(tmp_path: Path) -> None:
    onnx.save(cnn(), tmp_path / "c.onnx")
    source = load_source(tmp_path / "c.onnx", home=tmp_path / "home")
    assert source.origin is None
    assert source.path == tmp_path / "c.onnx"
    assert not (tmp_path / "home").exists()


def test_without_the_environment_the_command_that_makes_it_is_said(tmp_path: Path) -> None:
    program = archive(tmp_path / "d.pt2", "d/models/model.json")
    with pytest.raises(MissingEnvironmentError, match="edgec doctor --install torch"):
        load_source(program, home=tmp_path)
    assert [p.name for p in (tmp_path / "ingest").iterdir()] == []


def test_damaged_tflite_is_refused_before_any_environment_is_needed(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 64)
    with pytest.raises(ModelError, match="refused by LiteRT"):
        load_source(tmp_path / "m.tflite", home=tmp_path)


# -- the comparison ----------------------------------------------------------------------------------------


def _taken(tmp_path: Path) -> tuple[SourceModel, Taken]:
    onnx.save(cnn(), tmp_path / "c.onnx")
    source = load_model(tmp_path / "c.onnx")
    inputs: list[dict[str, NDArray[Any]]] = [
        {"image": np.random.default_rng(n).standard_normal((1, 3, 16, 16)).astype(np.float32)}
        for n in range(2)
    ]
    with ReferenceProgram(source.proto) as program:
        outputs = [program.run(sample) for sample in inputs]
    return source, Taken(tools={"converter": "1"}, inputs=list(inputs), outputs=list(outputs))


def test_an_exact_conversion_passes_with_its_figures(tmp_path: Path) -> None:
    source, taken = _taken(tmp_path)
    sentence, parity = compare(source, taken)
    assert "output 'scores' is identical" in sentence
    assert parity.passed


def test_a_wrong_conversion_is_an_error_with_the_figures(tmp_path: Path) -> None:
    source, taken = _taken(tmp_path)
    wrong = [{"scores": o["scores"] * np.float32(1.001)} for o in taken.outputs]
    with pytest.raises(ParityError, match=r"output 'scores' is off by .* \(allowed .*\), .* dB"):
        compare(source, replace(taken, outputs=wrong))
    with pytest.raises(ParityError):
        compare(source, replace(taken, outputs=[{"scores": o["scores"] * np.nan} for o in taken.outputs]))
    # Where the framework itself computes in int8, a per mille is nothing; a wrong operator is.
    compare(source, replace(taken, outputs=wrong, rounds=True))
    with pytest.raises(ParityError):
        compare(
            source,
            replace(taken, outputs=[{"scores": o["scores"] * 1.3} for o in taken.outputs], rounds=True),
        )


def test_other_outputs_are_an_error(tmp_path: Path) -> None:
    source, taken = _taken(tmp_path)
    with pytest.raises(UnsupportedModelError, match="expected other, got scores"):
        compare(source, replace(taken, outputs=[{"other": o["scores"]} for o in taken.outputs]))


def test_an_origin_survives_json() -> None:
    origin = Origin(
        framework="Keras", file="a.keras", sha256="0", tools={"tf2onnx": "1"}, comparison="same", samples=4,
        outputs=({"name": "y", "max_abs_error": 0.0, "tolerance": 1.0, "snr_db": None},),
    )  # fmt: skip
    assert Origin.from_dict(origin.to_dict()) == origin
    assert origin.sentence == "the source is Keras, taken over to ONNX by tf2onnx 1: same"


# -- the real ones -----------------------------------------------------------------------------------------

_KERAS = """
def handle(request):
    import keras
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 16), name="x")
    y = keras.layers.MultiHeadAttention(2, 8)(x, x)
    y = keras.layers.LSTM(7)(y)
    model = keras.Model(x, keras.layers.Dense(3, name="scores")(y))
    model.save(request["to"] + "/m.keras")
    model.export(request["to"] + "/saved", verbose=False)
    keras.Model(x, keras.layers.Lambda(lambda t: t * 2)(x)).save(request["to"] + "/code.keras")
    return {}
"""
_TORCH = """
def handle(request):
    import torch
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    model = torch.nn.Sequential(*layers)
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(1, 3, 8, 8),)), request["to"] + "/m.pt2")
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 8, 8)), request["to"] + "/script.pt")
    return {}
"""


def _made(tmp_path: Path, environment: str, code: str) -> None:
    path = tmp_path / "make.py"
    path.write_text(code)
    answer = call_worker(
        interpreter(environment), path, {"to": str(tmp_path)}, timeout_s=200, what=environment
    )
    assert answer.result == {}, answer


@pytest.mark.slow
def test_keras_and_saved_models_become_onnx(tmp_path: Path) -> None:
    _made(tmp_path, "tf2onnx", _KERAS)
    home = _home(tmp_path)
    told: list[str] = []
    source = load_source(tmp_path / "m.keras", home=home, progress=told.append)
    assert source.origin is not None
    assert (source.origin.framework, source.outputs[0].name) == ("Keras", "scores")
    assert source.origin.outputs[0]["max_abs_error"] < 1e-5
    again = load_source(tmp_path / "m.keras", {"x": (2, 6, 16)}, home=home, progress=told.append)
    assert again.inputs[0].shape == (2, 6, 16)
    load_source(tmp_path / "m.keras", home=home, progress=told.append)
    assert told[-1] == "m.keras was converted before"
    saved = load_source(tmp_path / "saved", home=home)
    assert saved.origin is not None
    assert saved.origin.framework == "SavedModel"
    with pytest.raises(UnsupportedModelError, match="edgec runs no code that is in a model file"):
        load_source(tmp_path / "code.keras", home=home)


@pytest.mark.slow
def test_exported_programs_become_onnx_and_torchscript_gets_advice(tmp_path: Path) -> None:
    _made(tmp_path, "torch", _TORCH)
    source = load_source(tmp_path / "m.pt2", home=_home(tmp_path))
    assert source.origin is not None
    assert (source.origin.framework, source.inputs[0].shape) == ("PyTorch", (1, 3, 8, 8))
    with pytest.raises(ModelError, match="is TorchScript"):
        load_source(tmp_path / "script.pt", home=tmp_path)


@pytest.mark.slow
@pytest.mark.models
def test_tflite_models_become_onnx_or_say_why_not(tmp_path: Path) -> None:
    root = Path(os.environ.get("EDGEC_TEST_MODELS") or pytest.skip("EDGEC_TEST_MODELS is not set"))
    pytest.importorskip("ai_edge_litert")
    interpreter("tf2onnx")
    home = _home(tmp_path)
    quantized = load_source(root / "mlperf_tiny_kws_dscnn" / "kws_ref_model.tflite", home=home)
    assert quantized.origin is not None
    assert quantized.origin.outputs[0]["max_abs_error"] == 0
    floats = load_source(root / "mlperf_tiny_resnet8" / "pretrainedResnet.tflite", home=home)
    assert floats.origin is not None
    assert floats.origin.outputs[0]["max_abs_error"] < 1e-5
    for name, kind, message in (
        ("tflm_person_detect/person_detect", ModelError, "quantized_dimension"),
        ("tflm_micro_speech/audio_preprocessor_int8", UnsupportedModelError, "no custom operators"),
    ):
        with pytest.raises(EdgecError, match=message) as caught:
            load_source(root / f"{name}.tflite", home=home)
        assert caught.type is kind


def _home(tmp_path: Path) -> Path:
    """Return a home with the environments of this user's, and no conversions."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "environments").symlink_to(HOME / "environments")
    return home
