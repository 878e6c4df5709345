"""Steps from the outputs of a model to a prediction."""

from __future__ import annotations

from edgec.artifact.steps._step import Step, flag, key, number, one_of, text, whole

MAX_RESULTS = 65536
"""Most classes or boxes that a step may be asked for."""


class OutputStep(Step, step=""):
    """A step of `postprocess`; `output` names the model output it reads."""

    output: str | None = key(
        text(), "Model output that the step reads; needed where there are several.", default=None
    )


class Dequantize(OutputStep, step="dequantize"):
    """Turn the integers of an output into the real numbers they stand for, (q - zero_point) * scale.

    Without `scale` and `zero_point` those of the model's output are used.
    """

    scale: float | None = key(number(1e-30, 1e30), "Real number that one step stands for.", default=None)
    zero_point: int | None = key(whole(-(2**31), 2**31), "Integer that stands for 0.", default=None)

    def validate(self) -> None:
        if (self.scale is None) != (self.zero_point is None):
            raise self.refuse("scale and zero_point: give both, or none to use those of the model's output")


class Softmax(OutputStep, step="softmax"):
    """Turn scores into probabilities that sum to 1."""

    axis: int = key(whole(-8, 7), "Axis of the classes.", default=-1)


class Sigmoid(OutputStep, step="sigmoid"):
    """Turn each score into a probability of its own."""


class TopK(OutputStep, step="top_k"):
    """Keep the classes of the highest scores, best first: gives `classes`, `scores` and `labels`."""

    k: int = key(whole(1, MAX_RESULTS), "How many classes; all where there are fewer.", default=5)


class Threshold(OutputStep, step="threshold"):
    """Keep what scores at least `value`.

    After `top_k`, `detection` or `nms` it drops classes or boxes; after `reconstruction_error` it adds
    `anomaly`, true where the score is at least `value`; on a bare output it gives every class that
    passes, best first.
    """

    value: float = key(number(), "Least score.")


class Detection(OutputStep, step="detection"):
    """Decode boxes: gives `boxes`, `scores`, `classes` and `labels`, one of each per box.

    A box is its corners x1, y1, x2, y2 in pixels of the source image. The formats: `boxes_scores`, two
    outputs, boxes [1, n, 4] and scores [1, n, classes] (SSD, UltraFace), or scores [1, n] with the
    classes in a third; `yolov5`, one output [1, n, 5 + classes]; `yolov8`, one output
    [1, 4 + classes, n]; `fastestdet`, one output [1, 5 + classes, h, w].
    """

    format: str = key(
        one_of("boxes_scores", "yolov5", "yolov8", "fastestdet"), "How the outputs hold the boxes."
    )
    boxes: str = key(text(), "Output that holds the boxes (`boxes_scores`).", default="boxes")
    scores: str = key(text(), "Output that holds the scores (`boxes_scores`).", default="scores")
    classes: str | None = key(
        text(),
        "Output that holds the class of each box (`boxes_scores`); absent where scores are per class.",
        default=None,
    )
    corners: str = key(
        one_of("xyxy", "yxyx", "cxcywh", "xywh"),
        "What the 4 numbers of a box are (`boxes_scores`): two corners, or a centre or corner and a size.",
        default="xyxy",
    )
    unit: str | None = key(
        one_of("fraction", "pixel"),
        "Whether boxes are fractions of the model's input or its pixels (all but `fastestdet`); by default "
        "`fraction` for `boxes_scores` and `pixel` for the others.",
        default=None,
    )
    background: int | None = key(
        whole(0, MAX_RESULTS),
        "Class that means no object (`boxes_scores`); later ones move down by 1.",
        default=None,
    )
    min_score: float = key(number(0, 1), "Boxes that score less are dropped at once.", default=0.25)
    multi_label: bool = key(
        flag(),
        "Whether a box counts once per class that passes, instead of for its best class.",
        default=False,
    )
    objectness_power: float = key(
        number(0, 1), "Score is objectness^p * class score^(1 - p) (`fastestdet`).", default=0.6
    )
    image: str | None = key(
        text(), "Model input that holds the image; needed where several do.", default=None
    )


class Nms(Step, step="nms"):
    """Non-maximum suppression: of boxes that overlap, keep the one that scores best."""

    iou: float = key(number(0, 1), "Intersection over union above which two boxes are one.", default=0.45)
    min_score: float = key(number(0, 1), "Boxes that score less are dropped first.", default=0.0)
    max_candidates: int = key(
        whole(1, MAX_RESULTS),
        "How many boxes are compared, best first; the time grows with its square.",
        default=4096,
    )
    max_detections: int = key(whole(1, MAX_RESULTS), "How many boxes are kept, best first.", default=300)
    per_class: bool = key(flag(), "Whether only boxes of one class suppress each other.", default=True)


class Embedding(OutputStep, step="embedding"):
    """Turn an output into one vector: gives `embedding`, float32[d]."""

    pooling: str = key(
        one_of("none", "mean", "first"),
        "How [1, tokens, d] becomes [d]: `mean` over the tokens, or the `first` token.",
        default="none",
    )
    mask: str = key(
        text(),
        "Model input whose zeros are left out of `mean`; unused where the model has none.",
        default="attention_mask",
    )
    normalize: bool = key(flag(), "Whether it is divided by its Euclidean length.", default=True)


class ReconstructionError(OutputStep, step="reconstruction_error"):
    """Compare an output with the input it reconstructs: gives `anomaly_score`, a float."""

    input: str | None = key(
        text(), "Model input that is reconstructed; needed where there are several.", default=None
    )
    metric: str = key(one_of("mse", "mae"), "Mean squared error or mean absolute error.", default="mse")
