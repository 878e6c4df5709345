"""Pipelines that cannot fit a model are refused before any work, with what to change."""

from __future__ import annotations

from typing import Any

import pytest
from tests.runtime.pipelines import Step, spec

from edgec.artifact import Pipeline, TensorSpec
from edgec.errors import PipelineError
from edgec.runtime.pipeline import check_pipeline

IMAGE = (spec("image", "float32", 1, 3, 224, 224),)
SCORES = (spec("scores", "float32", 1, 3),)
DECODE: Step = {"step": "decode"}
SQUARE: Step = {"step": "resize", "width": 224, "height": 224}
FLOAT: Step = {"step": "normalize", "scale": 0.004}
PLANES: Step = {"step": "layout", "order": "NCHW"}
BOXES = (spec("boxes", "float32", 1, "n", 4), spec("scores", "float32", 1, "n", 3))


def check(before: list[Step], inputs: tuple[TensorSpec, ...] = IMAGE, **more: Any) -> None:
    outputs = more.pop("outputs", SCORES)
    check_pipeline(Pipeline.from_dict({"preprocess": before, **more}), inputs, outputs)


def test_what_fits_is_accepted() -> None:
    check([DECODE, SQUARE, FLOAT, PLANES], postprocess=[{"step": "softmax"}, {"step": "top_k"}])
    check([DECODE, SQUARE, PLANES], (spec("image", "uint8", "n", 3, "h", "w"),))
    check([DECODE, SQUARE], (spec("image", "uint8", 224, 224, 3),))
    check_pipeline(None, IMAGE, SCORES)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([DECODE, SQUARE, FLOAT], 'add a `layout` step with order = "NCHW"'),
        ([DECODE, SQUARE, PLANES], 'add a `normalize` step, or a `dtype` step with to = "float32"'),
        ([DECODE, {**SQUARE, "width": 225}, FLOAT, PLANES], "change the size in `resize` or `crop`"),
        ([{"step": "decode", "color": "GRAY"}, SQUARE, FLOAT, PLANES], "or the channels in `color`"),
        (
            [DECODE, SQUARE, {"step": "normalize", "mean": [1, 2]}, PLANES],
            "step 3: normalize: 2 values per channel",
        ),
        (
            [DECODE, SQUARE, FLOAT, PLANES, SQUARE],
            "step 5: resize takes an image .h, w, c., here it is NCHW: move",
        ),
        ([DECODE, SQUARE, FLOAT, PLANES, PLANES], "step 5: layout: the image is NCHW already"),
        ([SQUARE, FLOAT, PLANES], "step 1: resize takes an image: put a `decode` step first"),
        ([SQUARE, DECODE, FLOAT, PLANES], "step 1: resize takes an image: put a `decode` step first"),
        ([FLOAT, DECODE], "step 2: decode must be the first step of its input"),
        (
            [DECODE, SQUARE, {"step": "crop", "width": 300, "height": 100}],
            "step 3: crop: width 300 of an image",
        ),
        (
            [DECODE, {"step": "dtype", "to": "float16"}, SQUARE],
            "step 3: resize takes images of uint8 or float32",
        ),
        (
            [DECODE, {**SQUARE, "mode": "letterbox", "pad": [1, 2]}],
            "step 2: resize: pad has 2 values, the image",
        ),
        ([DECODE, SQUARE, FLOAT, {"step": "reshape", "shape": [7]}], "150528 values cannot be .7."),
        ([DECODE, SQUARE, FLOAT, {"step": "reshape", "shape": [7, -1]}], "change its shape with `reshape`"),
        ([{"step": "quantize"}], "step 1: quantize: the model's input image: .* takes no integers"),
        ([{**DECODE, "input": "picture"}], "step 1: decode: the model has no input 'picture'; it has image"),
        ([{"step": "tokenize", "file": "t.json"}], "step 1: tokenize: the model has no input 'input_ids'"),
    ],
)
def test_what_cannot_become_the_input_is_refused(before: list[Step], message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        check(before)
    assert str(caught.value).startswith("preprocess")


def test_a_layout_that_the_model_tells_is_kept() -> None:
    square = TensorSpec("image", "uint8", (1, 3, 3, 3), layout="NCHW")
    resize = {"step": "resize", "width": 3, "height": 3}
    with pytest.raises(PipelineError, match='order = "NCHW"'):
        check([DECODE, resize, {"step": "layout", "order": "NHWC"}], (square,))


def test_integers_need_to_be_quantized() -> None:
    with pytest.raises(PipelineError, match="add a `quantize` step"):
        check([DECODE, FLOAT, PLANES], (spec("image", "int8", 1, 3, "h", "w"),))


def test_several_inputs_need_names() -> None:
    two = (spec("a", "float32", 1, 4), spec("b", "float32", 1, 4))
    with pytest.raises(
        PipelineError, match=r"step 1: normalize: say which input it prepares \(key input\): a, b"
    ):
        check([FLOAT], two)
    with pytest.raises(PipelineError, match=r"reconstruction_error: say which input is reconstructed"):
        check([], two, postprocess=[{"step": "reconstruction_error"}], outputs=(spec("y", "float32", 1, 4),))


@pytest.mark.parametrize(
    ("inputs", "step", "message"),
    [
        ((spec("input_ids", "int64", 1, 128),), {}, 'max_length = 128 and padding = "max_length"'),
        ((spec("input_ids", "int64", 1, 128),), {"max_length": 128}, 'padding = "max_length"'),
        ((spec("input_ids", "float32", 1, "n"),), {}, "expected an input of integers .batch, tokens."),
        ((spec("input_ids", "int64", "n"),), {}, "expected an input of integers .batch, tokens."),
    ],
)
def test_token_rows_must_fit(inputs: tuple[TensorSpec, ...], step: Step, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        check([{"step": "tokenize", "file": "t.json", **step}], inputs)


def test_an_input_is_filled_once() -> None:
    ids = (spec("input_ids", "int64", 1, "n"),)
    tokenize = {"step": "tokenize", "file": "t.json"}
    for steps in ([tokenize, tokenize], [tokenize, {"step": "dtype", "to": "int64"}]):
        with pytest.raises(
            PipelineError, match="input 'input_ids' is filled by `tokenize` and by another step"
        ):
            check(steps, ids)


DETECT: Step = {"step": "detection", "format": "boxes_scores"}


@pytest.mark.parametrize(
    ("after", "outputs", "message"),
    [
        (
            [{"step": "softmax", "output": "y"}],
            SCORES,
            "step 1: softmax: the model has no output 'y'; it has scores",
        ),
        (
            [{"step": "softmax"}],
            BOXES,
            r"step 1: softmax: say which output it reads \(key output\): boxes, scores",
        ),
        ([{"step": "softmax", "axis": 2}], SCORES, "softmax: output scores: .* has no axis 2"),
        ([{"step": "dequantize"}], SCORES, "holds no integers: drop the step"),
        (
            [{"step": "top_k"}, {"step": "top_k"}],
            SCORES,
            "step 2: top_k: an earlier step makes the prediction",
        ),
        (
            [{"step": "top_k", "output": "scores"}],
            BOXES,
            r"expected scores \[1, classes\], the model has scores",
        ),
        (
            [{"step": "top_k"}, {"step": "softmax"}],
            SCORES,
            "step 2: softmax comes too late",
        ),
        ([{"step": "nms"}], SCORES, "step 1: nms works on boxes: put a `detection` step before it"),
        (
            [{"step": "embedding"}, {"step": "threshold", "value": 1}],
            SCORES,
            "threshold: an embedding has no score",
        ),
        ([{"step": "embedding", "pooling": "mean"}], SCORES, r"expects an output \[1, tokens, d\]"),
        ([{"step": "embedding", "output": "scores"}], BOXES, r"expects an output \[1, d\]"),
        ([{"step": "reconstruction_error"}], SCORES, "has not the shape of input image"),
        ([DETECT], SCORES, "step 1: detection: the model has no output 'boxes'"),
        ([{**DETECT, "boxes": "scores"}], BOXES, r"expected boxes \[1, n, 4\], the model has scores"),
        (
            [{**DETECT, "scores": "s"}],
            (BOXES[0], spec("s", "float32", 1, "n")),
            r"expected scores \[1, n, classes\]",
        ),
        ([{**DETECT, "background": 3}], BOXES, "background 3 is none of 3 classes"),
        ([{**DETECT, "classes": "scores"}], BOXES, "expected one score and class per box"),
        ([{**DETECT, "image": "picture"}], BOXES, "input 'picture' is no image; images are image"),
        ([{**DETECT, "format": "yolov5"}], SCORES, r"yolov5 expects an output \[1, n, 5 \+ classes\]"),
        ([{**DETECT, "format": "yolov8"}], SCORES, r"yolov8 expects an output \[1, 4 \+ classes, n\]"),
        (
            [{**DETECT, "format": "yolov8"}],
            (spec("y", "float32", 1, 4, 9),),
            "expects more than 4 values per box",
        ),
        (
            [{**DETECT, "format": "fastestdet"}],
            SCORES,
            r"fastestdet expects an output \[1, 5 \+ classes, h, w\]",
        ),
    ],
)
def test_what_cannot_read_the_outputs_is_refused(
    after: list[Step], outputs: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        check([DECODE, SQUARE, FLOAT, PLANES], postprocess=after, outputs=outputs)
    assert str(caught.value).startswith("postprocess step")


def test_detection_needs_an_image() -> None:
    with pytest.raises(PipelineError, match="images are none: put `decode` first in `preprocess`"):
        check([], postprocess=[DETECT], outputs=BOXES)


@pytest.mark.parametrize(
    ("step", "outputs", "classes"),
    [
        ({"step": "top_k"}, SCORES, 3),
        ({"step": "threshold", "value": 0.5}, SCORES, 3),
        (DETECT, BOXES, 3),
        ({**DETECT, "background": 0}, BOXES, 2),
        ({**DETECT, "format": "yolov5"}, (spec("y", "float32", 1, "n", 9),), 4),
        ({**DETECT, "format": "yolov8"}, (spec("y", "float32", 1, 9, "n"),), 5),
        ({**DETECT, "format": "fastestdet"}, (spec("y", "float32", 1, 9, 2, 2),), 4),
    ],
)
def test_labels_must_be_one_per_class(step: Step, outputs: tuple[TensorSpec, ...], classes: int) -> None:
    before = [DECODE, SQUARE, FLOAT, PLANES]
    labels = [f"class {i}" for i in range(classes)]
    check(before, postprocess=[step], outputs=outputs, labels=labels)
    with pytest.raises(PipelineError, match=f"tells {classes} classes apart, there are {classes + 1} labels"):
        check(before, postprocess=[step], outputs=outputs, labels=[*labels, "one more"])
