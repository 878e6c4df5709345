"""The models that `benchmarks/tflite.py` compares tools on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from benchmarks.cases import Case, crops, make_case, models_folder
from benchmarks.structures import mobilenet_v2, pictures
from onnx import numpy_helper

_PAIRS = 120
_PICTURES, _JUDGED = 64, 300
_EDGE = 224


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its data, and what is made of it.

    Attributes:
        case: The model.
        mode: ``int8``, full-integer; or ``dynamic``.
        random: Whether its weights are random, so that nothing is known of accuracy.
        authors: The integer file that its author made, judged beside the others.
    """

    case: Case
    mode: str = "int8"
    random: bool = False
    authors: Path | None = None


def subject_names() -> list[str]:
    """Return the names of all models."""
    return [*_OF_THE_ZOO, *_MAKERS]


def make_subject(name: str, work: Path) -> Subject:
    """Return a model; what it needs is written to `work`."""
    work.mkdir(parents=True, exist_ok=True)
    if name in _OF_THE_ZOO:
        return Subject(case=make_case(name, work))
    return _MAKERS[name](work)


def _trained_mobilenet(work: Path) -> Subject:
    """Return Coral's MobileNetV2 with the weights that its author rounded, and all else in float again."""
    folder = models_folder() / "coral_mobilenet_v2_224_quant" / "derived"
    model = in_float(onnx.load(folder / "mobilenet_v2_1.0_224_quant.qdq.onnx"))
    onnx.save(model, work / "mobilenet_v2.onnx")
    name = model.graph.input[0].name
    images = crops(models_folder(), _PICTURES + _JUDGED, _EDGE).astype(np.float32) / 127.5 - 1
    for kind, part in (("calibration", images[:_PICTURES]), ("evaluation", images[_PICTURES:])):
        np.savez(work / f"{kind}.npz", allow_pickle=False, **{name: part})
    case = Case(
        name="mobilenet_v2",
        model=work / "mobilenet_v2.onnx",
        calibration=work / "calibration.npz",
        evaluation=work / "evaluation.npz",
        data=f"{_PICTURES} crops of photos calibrate, {_JUDGED} others are compared with fp32",
    )
    return Subject(case=case, authors=folder.parent / "mobilenet_v2_1.0_224_quant.tflite")


def in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a Q/DQ model with float input and output: constants unpacked, nothing else rounded."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    same: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            value, scale, zero = (constants[n] for n in node.input)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            if scale.ndim:
                wide = [-1 if i == axis else 1 for i in range(value.ndim)]
                scale, zero = scale.reshape(wide), zero.reshape(wide)
            unpacked = ((value.astype(np.float64) - zero) * scale).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(unpacked, node.output[0]))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        else:
            for i, value_name in enumerate(node.input):
                node.input[i] = same.get(value_name, value_name)
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.value_info[:]
    (output,) = model.graph.output
    output.name = same.get(output.name, output.name)
    for value in (model.graph.input[0], output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    used = {n for node in kept for n in node.input}
    weights = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    onnx.checker.check_model(model)
    return model


def _random_mobilenet(work: Path) -> Subject:
    onnx.save(mobilenet_v2(), work / "mobilenet_v2.onnx")
    np.savez(work / "calibration.npz", allow_pickle=False, image=pictures(_PICTURES))
    case = Case(
        name="mobilenet_v2-random",
        model=work / "mobilenet_v2.onnx",
        calibration=work / "calibration.npz",
        data=f"{_PICTURES} made-up pictures; half calibrate, half are compared with fp32",
    )
    return Subject(case=case, random=True)


def _minilm(work: Path) -> Subject:
    case = make_case("minilm", work)
    assert case.evaluation is not None
    lines = case.evaluation.read_text(encoding="utf-8").splitlines()[:_PAIRS]
    case.evaluation.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    data = f"{_PAIRS} pairs of STS-b dev judge; 16 other sentences make ready for dynamic int8"
    case = replace(case, data=data)
    return Subject(case=case, mode="dynamic")


_OF_THE_ZOO = ("digits", "vibration", "dscnn", "resnet8", "ad01", "nab_dense", "nab_conv")
_MAKERS: dict[str, Callable[[Path], Subject]] = {
    "mobilenet_v2": _trained_mobilenet,
    "mobilenet_v2-random": _random_mobilenet,
    "minilm": _minilm,
}
