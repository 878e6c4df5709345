"""The models that benchmarks compile, with the data that calibrates and judges them.

Real models and data are in the folder that EDGEC_TEST_MODELS names, the two examples in this repository,
and MiniLM where `benchmarks/export_minilm.py` has put it. What a case needs beyond its model is written to
a folder that the caller gives; the same inputs give the same bytes.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Pipeline, read_pipeline

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
MINILM = ROOT / "build" / "minilm"

CROPS, CROP_CALIBRATION, CROP_EVALUATION = 600, 100, 1000
PHOTO_EVALUATION = 250  # at 224x224: enough to show an agreement of 99 %, and done in a minute
CLIP_CALIBRATION = 100
STSB_CALIBRATION, STSB_EVALUATION = 64, 400
_SPEECH_BLOCKS, _SPEECH_JUDGED = 64, 190

_SPEECH = (
    f"{_SPEECH_BLOCKS} blocks of a noisy sentence with their states calibrate, {_SPEECH_JUDGED} others are "
    "compared with fp32"
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, ready to be compiled.

    Attributes:
        name: Of its row.
        model: The ``.onnx`` file.
        shapes: Sizes to pin, by input.
        pipeline: Around it.
        calibration: Representative samples: an ``.npz``, a folder or a text file; None where there are none.
        evaluation: Labelled samples.
        metric: That scores them.
        agreement: Unlabelled samples on which the artifact's first class is held against the source's.
        data: What the data is, in words.
    """

    name: str
    model: Path
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pipeline: Pipeline | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    metric: str | None = None
    agreement: Path | None = None
    data: str = "none: inputs are made up"


Maker = Callable[[Path, Path], Case]


def models_folder() -> Path:
    """Return the folder of real models.

    Raises:
        SystemExit: EDGEC_TEST_MODELS names none.
    """
    folder = os.environ.get("EDGEC_TEST_MODELS")
    if not folder:
        raise SystemExit("set EDGEC_TEST_MODELS to the folder of real models")
    return Path(folder)


def case_names() -> list[str]:
    """Return the names of all cases."""
    return list(_MAKERS)


def make_case(name: str, work: Path) -> Case:
    """Return a case; its data is written to `work`."""
    work.mkdir(parents=True, exist_ok=True)
    return _MAKERS[name](models_folder(), work)


def _save(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, allow_pickle=False, **arrays)
    return path


def _example(name: str, metric: str) -> Maker:
    def make(models: Path, work: Path) -> Case:
        folder = EXAMPLES / name
        return Case(
            name=name,
            model=folder / f"{name}.onnx",
            pipeline=read_pipeline(folder / "pipeline.toml"),
            calibration=folder / "calibration.npz",
            evaluation=folder / "evaluation.npz",
            metric=metric,
            data="held-out samples of the example",
        )

    return make


# -- keywords ----------------------------------------------------------------------------------------------


def _keywords(models: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return every clip that is there, 500 to a file: about 540 judge int8 to a point, 400 do not."""
    features, labels = [], []
    for path in sorted((models / "speechcommands_kws01_open").glob("clips_*.npz")):
        with np.load(path) as arrays:
            features.append(arrays["mfcc"][..., None])
            labels.append(arrays["label"].astype(np.int64))
    return np.concatenate(features), np.concatenate(labels)


def _dscnn(models: Path, work: Path) -> Case:
    features, labels = _keywords(models)
    return Case(
        name="dscnn",
        model=models / "mlperf_tiny_kws_dscnn" / "derived" / "kws_ref_model_float32.onnx",
        shapes={"input_1": (1, 49, 10, 1)},
        calibration=_save(work / "calibration.npz", input_1=features[:CLIP_CALIBRATION]),
        evaluation=_save(
            work / "evaluation.npz", input_1=features[CLIP_CALIBRATION:], labels=labels[CLIP_CALIBRATION:]
        ),
        metric="top1",
        data=f"{CLIP_CALIBRATION} clips of Speech Commands calibrate, "
        f"{len(labels) - CLIP_CALIBRATION} others judge",
    )


def _dscnn_qdq(models: Path, work: Path) -> Case:
    # The input's scale and zero point are those of the TFLite file that it was made from.
    features, labels = _keywords(models)
    quantized = np.clip(np.rint(features / 0.5847029089927673) + 83, -128, 127).astype(np.int8)
    return Case(
        name="dscnn (quantized by its author)",
        model=models / "mlperf_tiny_kws_dscnn" / "derived" / "kws_ref_model.qdq.onnx",
        shapes={"input_1": (1, 49, 10, 1)},
        calibration=_save(work / "calibration.npz", input_1=quantized[:CLIP_CALIBRATION]),
        evaluation=_save(
            work / "evaluation.npz", input_1=quantized[CLIP_CALIBRATION:], labels=labels[CLIP_CALIBRATION:]
        ),
        metric="top1",
        data=f"{len(labels) - CLIP_CALIBRATION} clips of Speech Commands judge",
    )


# -- pictures ----------------------------------------------------------------------------------------------


def _photos(models: Path) -> list[Path]:
    folders = (models / "coco128_train" / "images", models / "coral_images")
    return [p for f in folders for p in sorted(f.iterdir()) if p.suffix in (".jpg", ".bmp")]


def crops(models: Path, count: int, size: int = 32) -> NDArray[np.uint8]:
    """Cut squares of a third to the whole of the shorter side from photos, and scale them to `size`.

    Returns:
        uint8[count, size, size, 3], red, green, blue; photos take turns.
    """
    import cv2  # here, because most cases need no pictures

    rng, made = np.random.default_rng(0), []
    photos = [image for path in _photos(models) if (image := cv2.imread(str(path))) is not None]
    for index in range(count):
        photo = photos[index % len(photos)]
        height, width = photo.shape[:2]
        side = int(min(height, width) * rng.uniform(1 / 3, 1))
        top, left = (int(rng.integers(0, n - side, endpoint=True)) for n in (height, width))
        square = photo[top : top + side, left : left + side, ::-1]
        made.append(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA))
    return np.asarray(made, np.uint8)


def _resnet8(models: Path, work: Path) -> Case:
    squares = crops(models, CROP_CALIBRATION + CROPS + CROP_EVALUATION).astype(np.float32)
    first, second = CROP_CALIBRATION, CROP_CALIBRATION + CROPS
    return Case(
        name="resnet8",
        model=models / "mlperf_tiny_resnet8" / "derived" / "pretrainedResnet.onnx",
        shapes={"input_1": (1, 32, 32, 3)},
        calibration=_save(work / "calibration.npz", input_1=squares[:first]),
        evaluation=_save(work / "evaluation.npz", input_1=squares[second:]),
        agreement=_save(work / "agreement.npz", input_1=squares[first:second]),
        data=f"{CROP_CALIBRATION} crops of photos calibrate, {CROP_EVALUATION} judge, {CROPS} others are "
        "compared with fp32",
    )


def _resnet8_qdq(models: Path, work: Path) -> Case:
    squares = crops(models, CROP_CALIBRATION + CROPS + CROP_EVALUATION).astype(np.int16) - 128
    first, second = CROP_CALIBRATION, CROP_CALIBRATION + CROPS
    return Case(
        name="resnet8 (quantized by its author)",
        model=models / "mlperf_tiny_resnet8" / "derived" / "pretrainedResnet_quant.qdq.onnx",
        shapes={"input_1_int8": (1, 32, 32, 3)},
        calibration=_save(work / "calibration.npz", input_1_int8=squares[:first].astype(np.int8)),
        evaluation=_save(work / "evaluation.npz", input_1_int8=squares[second:].astype(np.int8)),
        agreement=_save(work / "agreement.npz", input_1_int8=squares[first:second].astype(np.int8)),
        data=f"{CROP_EVALUATION} crops of photos judge, {CROPS} others are compared with the source",
    )


def _mobilenet_qdq(models: Path, work: Path) -> Case:
    squares = crops(models, CROP_CALIBRATION + PHOTO_EVALUATION + PHOTO_EVALUATION, 224)
    first, second = CROP_CALIBRATION, CROP_CALIBRATION + PHOTO_EVALUATION
    return Case(
        name="mobilenet_v2 (quantized by its author)",
        model=models / "coral_mobilenet_v2_224_quant" / "derived" / "mobilenet_v2_1.0_224_quant.qdq.onnx",
        calibration=_save(work / "calibration.npz", input=squares[:first]),
        evaluation=_save(work / "evaluation.npz", input=squares[first:second]),
        agreement=_save(work / "agreement.npz", input=squares[second:]),
        data=f"{PHOTO_EVALUATION} crops of photos judge, {PHOTO_EVALUATION} others are compared with the "
        "source",
    )


def _folder_of(photos: list[Path], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for photo in photos:
        link = folder / f"{photo.parent.name}-{photo.name}"
        if not link.is_symlink():
            link.symlink_to(photo)
    return folder


def _fastestdet(models: Path, work: Path) -> Case:
    coco = models / "coco128_train" / "images"
    others = [p for p in _photos(models) if p.parent != coco]
    others += sorted((models / "ultraface" / "imgs").glob("*.jpg"))
    return Case(
        name="fastestdet",
        model=models / "fastestdet_coco" / "FastestDet.onnx",
        pipeline=read_pipeline(ROOT / "tests" / "models" / "fastestdet.toml"),
        calibration=_folder_of(others, work / "calibration"),
        evaluation=coco,
        metric="map50",
        data=f"{len(others)} other photos calibrate, 64 labelled photos of COCO judge",
    )


def _ultraface(models: Path, work: Path) -> Case:
    return Case(
        name="ultraface",
        model=models / "ultraface" / "version-RFB-320.onnx",
        pipeline=read_pipeline(ROOT / "tests" / "models" / "ultraface.toml"),
        calibration=models / "ultraface" / "imgs",
        data="24 photos, compared with fp32",
    )


# -- sound -------------------------------------------------------------------------------------------------


def _noisy_speech(models: Path) -> NDArray[np.float32]:
    """Read a sentence of LibriSpeech, with noise 5 dB below it from the first to the last sample."""
    import soundfile  # here, because few cases need audio

    path = models / "armzoo_librispeech_sample" / "84-121550-0000.flac"
    speech, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    noise = np.random.default_rng(0).standard_normal(len(speech)) * speech.std() * 10 ** (-5 / 20)
    return np.asarray(speech + noise, np.float32)


def _recorded(model: Path, feeds: Callable[[int, Arrays], Arrays | None]) -> list[Arrays]:
    """Run a model with states from block to block, and keep what it was given."""
    import onnxruntime  # here, because few cases need it

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    outputs: Arrays = {}
    kept: list[Arrays] = []
    while (inputs := feeds(len(kept), outputs)) is not None:
        kept.append(inputs)
        outputs = dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))
    return kept


def _thinned(samples: list[Arrays], count: int) -> Arrays:
    """Return every n-th sample, without the batch axis, as arrays of an ``.npz``."""
    chosen = samples[:: max(1, len(samples) // count)][:count]
    return {name: np.stack([s[name] for s in chosen]) for name in chosen[0]}


def _judged(samples: list[Arrays]) -> Arrays:
    """Return samples between those of `_thinned`, as many as judge."""
    step = max(1, len(samples) // _SPEECH_BLOCKS)
    return _thinned([s for i, s in enumerate(samples) if i % step], _SPEECH_JUDGED)


def _unbatched(arrays: Arrays) -> Arrays:
    return {n: a[:, 0] if a.ndim > 1 and a.shape[1] == 1 else a for n, a in arrays.items()}


def _dtln_blocks(models: Path) -> tuple[list[Arrays], list[Arrays]]:
    """Return what the two halves of DTLN are given for a noisy sentence, as its authors run it."""
    import onnxruntime

    halves = [
        onnxruntime.InferenceSession(
            models / "dtln_denoise" / f"model_{n}.onnx", providers=["CPUExecutionProvider"]
        )
        for n in (1, 2)
    ]
    audio, block = _noisy_speech(models), np.zeros(512, np.float32)
    state_1, state_2 = np.zeros((2, 1, 2, 128, 2), np.float32)
    first: list[Arrays] = []
    second: list[Arrays] = []
    for start in range(0, len(audio) - 512 + 1, 128):
        block = np.concatenate([block[128:], audio[start : start + 128]])
        spectrum = np.fft.rfft(block)
        first.append({"input_2": np.abs(spectrum).astype(np.float32).reshape(1, 1, -1), "input_3": state_1})
        mask, state_1 = (np.asarray(a) for a in halves[0].run(None, first[-1]))
        masked = np.fft.irfft(spectrum * mask.ravel()).astype(np.float32)
        second.append({"input_4": masked.reshape(1, 1, -1), "input_5": state_2})
        state_2 = np.asarray(halves[1].run(None, second[-1])[1])
    return first, second


def _dtln(number: int) -> Maker:
    def make(models: Path, work: Path) -> Case:
        samples = _dtln_blocks(models)[number - 1]
        shapes = {"input_4": (1, 1, 512), "input_5": (1, 2, 128, 2)} if number == 2 else {}
        return Case(
            name=f"dtln_{number}",
            model=models / "dtln_denoise" / f"model_{number}.onnx",
            shapes=shapes,
            calibration=_save(work / "calibration.npz", **_unbatched(_thinned(samples, _SPEECH_BLOCKS))),
            evaluation=_save(work / "evaluation.npz", **_unbatched(_judged(samples))),
            data=_SPEECH,
        )

    return make


def _silero(name: str, file: str, rate: bool) -> Maker:
    def make(models: Path, work: Path) -> Case:
        model, audio = models / "silero_vad_v6" / file, _noisy_speech(models)

        def feeds(index: int, outputs: Arrays) -> Arrays | None:
            start = index * 512
            if start + 576 > len(audio):
                return None
            state = outputs["stateN"] if outputs else np.zeros((2, 1, 128), np.float32)
            inputs: Arrays = {"input": audio[None, start : start + 576], "state": state}
            return inputs | ({"sr": np.array(16_000, np.int64)} if rate else {})

        samples = _recorded(model, feeds)
        return Case(
            name=name,
            model=model,
            shapes={"input": (1, 576), "state": (2, 1, 128)},
            calibration=_save(work / "calibration.npz", **_thinned(samples, _SPEECH_BLOCKS)),
            evaluation=_save(work / "evaluation.npz", **_judged(samples)),
            data=_SPEECH,
        )

    return make


def _machine_sound(models: Path, work: Path) -> Case:
    return Case(
        name="ad01",
        model=models / "mlperf_tiny_ad_ae" / "derived" / "ad01_fp32.onnx",
        shapes={"input_1": (1, 640)},
    )


# -- tables and series -------------------------------------------------------------------------------------


def _temperature(kind: str) -> Maker:
    def make(models: Path, work: Path) -> Case:
        folder = models / "nab_autoencoders"
        with np.load(folder / f"nab_machine_temp_{kind}_ae_test.npz") as arrays:
            windows, labels = arrays["x"], arrays["y"].astype(np.int64)
        usual = np.flatnonzero(labels == 0)[:100]
        rest = np.setdiff1d(np.arange(len(windows)), usual)
        return Case(
            name=f"nab_{kind}",
            model=folder / f"nab_machine_temp_{kind}_ae.onnx",
            shapes={"window": (1, 64)},
            pipeline=Pipeline.from_dict({"postprocess": [{"step": "reconstruction_error"}]}),
            calibration=_save(work / "calibration.npz", window=windows[usual]),
            evaluation=_save(work / "evaluation.npz", window=windows[rest], labels=labels[rest]),
            metric="auc",
            data=f"100 usual windows calibrate, {len(rest)} others judge",
        )

    return make


def _table(name: str, columns: int, metric: str) -> Maker:
    def make(models: Path, work: Path) -> Case:
        folder = models / "tabular_sklearn"
        with np.load(folder / f"{name}_test.npz") as arrays:
            rows, labels = arrays["x"], arrays["y"]
        top = {"step": "top_k", "k": 1, "output": "probabilities"}
        return Case(
            name=name,
            model=folder / f"{name}.onnx",
            shapes={"X": (1, columns)},
            pipeline=Pipeline.from_dict({"postprocess": [top]}) if metric == "top1" else None,
            calibration=_save(work / "calibration.npz", X=rows[:30]),
            evaluation=_save(work / "evaluation.npz", X=rows, labels=labels),
            metric=metric,
            data=f"{len(rows)} held-out rows judge",
        )

    return make


# -- text --------------------------------------------------------------------------------------------------


def _minilm(models: Path, work: Path) -> Case:
    with open(models / "stsb_en" / "stsb-en-dev.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    order = np.random.default_rng(0).permutation(len(rows))
    chosen = [rows[i] for i in order[: STSB_CALIBRATION + STSB_EVALUATION]]
    calibration, evaluation = work / "calibration.jsonl", work / "evaluation.jsonl"
    calibration.write_text(
        "".join(json.dumps({"text": first}) + "\n" for first, _, _ in chosen[:STSB_CALIBRATION])
    )
    evaluation.write_text(
        "".join(
            json.dumps({"text_a": a, "text_b": b, "score": float(score)}) + "\n"
            for a, b, score in chosen[STSB_CALIBRATION:]
        )
    )
    return Case(
        name="minilm",
        model=MINILM / "minilm.onnx",
        pipeline=read_pipeline(MINILM / "pipeline.toml"),
        calibration=calibration,
        evaluation=evaluation,
        metric="spearman",
        data=f"{STSB_CALIBRATION} sentences calibrate, {STSB_EVALUATION} other pairs of STS-b dev judge",
    )


_MAKERS: dict[str, Maker] = {
    "digits": _example("digits", "top1"),
    "vibration": _example("vibration", "auc"),
    "dscnn": _dscnn,
    "dscnn-qdq": _dscnn_qdq,
    "resnet8": _resnet8,
    "resnet8-qdq": _resnet8_qdq,
    "mobilenet_v2-qdq": _mobilenet_qdq,
    "fastestdet": _fastestdet,
    "ultraface": _ultraface,
    "dtln_1": _dtln(1),
    "dtln_2": _dtln(2),
    "silero": _silero("silero", "silero_vad_16k_op15.onnx", True),
    "silero-openvino": _silero("silero (without If)", "silero_vad_openvino_16k.onnx", False),
    "ad01": _machine_sound,
    "nab_dense": _temperature("dense"),
    "nab_conv": _temperature("conv"),
    "breast_cancer_logreg": _table("breast_cancer_logreg", 30, "top1"),
    "breast_cancer_mlp": _table("breast_cancer_mlp", 30, "top1"),
    "wine_random_forest": _table("wine_random_forest", 13, "top1"),
    "diabetes_gbdt": _table("diabetes_gbdt_reg", 10, "mse"),
    "minilm": _minilm,
}
