from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.errors import DataError
from edgec.evaluation import METRICS, Boxes, get_metric

Prediction = Mapping[str, Any]


def classes(*order: int, labels: Sequence[str] = ()) -> Prediction:
    scores = np.linspace(1, 0, len(order), dtype=np.float32)
    return {"classes": np.array(order, np.int64), "scores": scores, "labels": list(labels)}


def raw(*scores: float) -> Prediction:
    return {"scores": np.array([scores], np.float32)}


def anomaly(score: float) -> Prediction:
    return {"anomaly_score": score}


def test_every_metric_is_found_by_its_name() -> None:
    assert METRICS == ("top1", "top5", "map50", "auc", "spearman", "mse")
    assert [get_metric(name).name for name in METRICS] == list(METRICS)
    with pytest.raises(ValueError, match="no metric 'top2'; there are top1, top5"):
        get_metric("top2")


# top1 and top5


def test_top1_is_the_share_of_right_first_classes() -> None:
    score = get_metric("top1").score([classes(2, 1), classes(0, 1), raw(0.1, 0.9), raw(3, 1)], [2, 1, 1, 0])
    assert (score.value, score.n, score.unit, score.higher_is_better) == (0.75, 4, "fraction", True)
    assert score.ci95 == pytest.approx((0.30064, 0.95441), abs=1e-5)  # Wilson, 3 of 4


def test_top5_looks_at_five_classes() -> None:
    metric = get_metric("top5")
    assert metric.score([raw(1, 2, 3, 4, 5, 6)] * 2, [0, 1]).value == 0.5
    assert metric.score([classes(5, 4, 3, 2, 1, 0)] * 2, [0, 1]).value == 0.5


def test_equal_scores_give_the_lower_class() -> None:
    assert get_metric("top1").score([raw(1, 1, 0)], [0]).value == 1.0


def test_unsigned_scores_do_not_wrap_around() -> None:
    assert get_metric("top1").score([{"y": np.array([[0, 255, 7]], np.uint8)}], [1]).value == 1.0


def test_nan_scores_are_wrong() -> None:
    score = get_metric("top1").score([raw(math.nan, 0.0, 1.0), raw(0, 0, 1)], [2, 2])
    assert score.value == 0.5


def test_labels_may_be_names_where_the_model_has_them() -> None:
    predictions = [classes(1, 0, labels=["dog", "cat"]), classes(0, 1, labels=["cat", "dog"])]
    assert get_metric("top1").score(predictions, ["dog", "dog"]).value == 0.5
    with pytest.raises(DataError, match="label 'dog' is a name but the model gives class numbers"):
        get_metric("top1").score([classes(1, 0)], ["dog"])


def test_a_threshold_that_leaves_no_class_is_wrong_not_an_error() -> None:
    assert get_metric("top1").score([classes(), classes(3)], [0, 3]).value == 0.5


def test_float_labels_that_are_whole_are_classes() -> None:
    assert get_metric("top1").score([raw(0, 1)], [np.float64(1.0)]).value == 1.0


@pytest.mark.parametrize(
    ("name", "prediction", "label", "message"),
    [
        ("top1", raw(0, 1), 2, r"label 0 is 2, but the model has classes 0..1: check"),
        ("top1", raw(0, 1), -1, "label 0 is -1, expected a class number from 0"),
        ("top1", raw(0, 1), 0.5, "label 0 is 0.5, expected a class number"),
        ("top1", raw(0, 1), math.nan, "label 0 is nan"),
        ("top1", raw(0, 1), np.array([0, 1]), r"label 0 is int64\[2\], expected one class number"),
        ("top1", {"a": np.zeros(3), "b": np.zeros(3)}, 0, r"predicts a \[3\], b \[3\]: add a"),
        ("top1", {"y": np.zeros((1, 4, 9))}, 0, r"one score per class, the model predicts y \[1, 4, 9\]"),
        ("top1", {"y": np.zeros((1, 1))}, 0, "needs one score per class"),
        ("top1", {"boxes": np.zeros((0, 4)), "scores": 0, "classes": 0}, 0, "needs one score per class"),
        ("top5", raw(0, 1, 2), 0, "top5 needs 5 classes per prediction, the model gives 3: raise k"),
        ("top5", classes(0, 1, 2), 0, "top5 needs 5 classes"),
        ("map50", raw(0, 1), np.zeros((1, 5)), "map50 needs boxes, scores and classes"),
        ("map50", {"boxes": np.zeros((1, 4)), "scores": np.zeros(2), "classes": np.zeros(1)},
         np.zeros((1, 5)), "needs boxes"),
        ("auc", raw(0, 1, 2), 1, "auc needs one score, or the scores of two classes"),
        ("auc", classes(1), 1, "auc needs the scores of classes 0 and 1"),
        ("spearman", raw(0, 1), 1.0, "spearman needs one value, or the embeddings"),
        ("spearman", raw(1), "high", "spearman needs one number per sample"),
        ("mse", {"a": np.zeros(3), "b": np.zeros(3)}, np.zeros(3), "mse needs one output"),
        ("mse", raw(0, 1), np.zeros(3), r"label 0 is float64\[3\], expected the true values of the output"),
        ("mse", raw(0, 1), np.array([0, math.nan]), "label 0 holds NaN"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_fit_says_why(
    name: str, prediction: Prediction, label: Any, message: str
) -> None:
    predictions, labels = [prediction], [label]
    if name == "auc":
        predictions, labels = predictions * 2, [0, 1]
    with pytest.raises(DataError, match=message):
        get_metric(name).score(predictions, labels)


@pytest.mark.parametrize("name", METRICS)
def test_numbers_of_predictions_and_labels_must_match(name: str) -> None:
    with pytest.raises(DataError, match="got 1 labels for 2"):
        get_metric(name).score([anomaly(1)] * 2, [1])
    with pytest.raises(DataError, match="no labelled samples"):
        get_metric(name).score([], [])


# map50: each table is worked out by hand


def image(*rows: tuple[float, float, float, float, float, int]) -> Prediction:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return {
        "boxes": table[:, :4].astype(np.float32),
        "scores": table[:, 4].astype(np.float32),
        "classes": table[:, 5].astype(np.int64),
    }


def boxes(table: NDArray[np.float64]) -> Boxes:
    return Boxes(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(np.bool_))


BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)
OFF = (90.0, 90.0, 99.0, 99.0)
TRUTH = np.array([[*BOX, 0], [*FAR, 0]])

HAND_TABLES: list[tuple[str, list[Prediction], list[Any], float]] = [
    ("all found", [image((*BOX, 0.9, 0), (*FAR, 0.8, 0))], [TRUTH], 1.0),
    ("one of two", [image((*BOX, 0.9, 0))], [TRUTH], 0.5),
    ("nothing found", [image()], [TRUTH], 0.0),
    # Precision 0/1, 1/2, 2/3; made monotone it is 2/3 throughout: area 2/3.
    ("a false alarm first", [image((*OFF, 0.95, 0), (*BOX, 0.9, 0), (*FAR, 0.8, 0))], [TRUTH], 2 / 3),
    # 1/1, 1/2, 2/3: half at 1, half at 2/3.
    ("a false alarm between", [image((*BOX, 0.9, 0), (*OFF, 0.85, 0), (*FAR, 0.8, 0))], [TRUTH], 5 / 6),
    # The second detection of one box is a false alarm.
    ("found twice", [image((*BOX, 0.9, 0), (*BOX, 0.85, 0), (*FAR, 0.8, 0))], [TRUTH], 5 / 6),
    ("after all others", [image((*BOX, 0.9, 0), (*FAR, 0.8, 0), (*OFF, 0.7, 0))], [TRUTH], 1.0),
    # 5 of 10 columns: intersection 50, union 100, exactly one half: found. 49/101 would not be.
    ("overlap of one half", [image((0, 0, 10, 5, 0.9, 0))], [TRUTH[:1]], 1.0),
    ("overlap below one half", [image((0, 0, 10, 4.9, 0.9, 0))], [TRUTH[:1]], 0.0),
    ("another class", [image((*BOX, 0.9, 1))], [TRUTH[:1]], 0.0),
    # Class 1 is not in the data: its detections do not count. Class 2 is, and is not found.
    ("mean over classes present", [image((*BOX, 0.9, 0), (*FAR, 0.9, 1))],
     [np.array([[*BOX, 0], [*FAR, 2]])], 0.5),
    ("padding is no box", [image((*BOX, 0.9, 0))], [np.array([[*BOX, 0], [0, 0, 0, 0, -1]])], 1.0),
    # The same box in another image is no match.
    ("images are apart", [image((*BOX, 0.9, 0)), image()], [np.zeros((0, 5)), TRUTH[:1]], 0.0),
    ("NaN is no detection", [image((*BOX, math.nan, 0), (math.nan, 0, 1, 1, 0.99, 0), (*BOX, 0.9, 0))],
     [TRUTH[:1]], 1.0),
    # The best-scoring detection takes the box that it overlaps most, though it comes second in the labels.
    ("best overlap first", [image((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 13, 0.8, 0))],
     [np.array([[0, 0, 10, 12, 0], [0, 0, 10, 10, 0]])], 1.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"), [t[1:] for t in HAND_TABLES], ids=[t[0] for t in HAND_TABLES]
)
def test_map50_is_what_is_worked_out_by_hand(
    predictions: list[Prediction], labels: list[Any], expected: float
) -> None:
    score = get_metric("map50").score(predictions, labels)
    assert score.value == pytest.approx(expected)
    assert score.n == len(labels)
    assert score.ci95[0] <= score.value <= score.ci95[1]


def test_map50_needs_boxes_in_the_data() -> None:
    with pytest.raises(DataError, match="map50 needs labelled boxes, the data has none"):
        get_metric("map50").score([image((*BOX, 0.9, 0))], [np.zeros((0, 5))])
    with pytest.raises(DataError, match=r"rows of left, top, right, bottom, class, got float64\[4\]"):
        get_metric("map50").score([image()], [np.zeros(4)])
    with pytest.raises(DataError, match="hold NaN"):
        get_metric("map50").score([image()], [np.full((1, 5), math.nan)])


def _formula_data(crowds: bool) -> tuple[list[Prediction], list[Any]]:
    predictions: list[Prediction] = []
    labels: list[Any] = []
    for i in range(12):
        truth, found = [], []
        for j in range(2 + i % 4):
            x, y = 20 + (i * 37 + j * 61) % 300, 15 + (i * 53 + j * 29) % 200
            w, h = 30 + (i * 11 + j * 17) % 60, 25 + (i * 7 + j * 23) % 70
            truth.append((x, y, x + w, y + h, (i + j) % 3, crowds and (i * 5 + j) % 9 == 0))
        for j, (x1, y1, x2, y2, number, _) in enumerate(truth):
            for r in range((i + j) % 3):
                dx, dy = (i * 13 + j * 7 + r * 19) % 21 - 10, (i * 3 + j * 11 + r * 5) % 15 - 7
                guess = number if (i + 2 * j + r) % 6 else (number + 1) % 3
                score = ((i * 101 + j * 37 + r * 53) % 97) / 100
                found.append((x1 + dx, y1 + dy, x2 + dx / 2, y2 - dy / 3, score, guess))
        found += [
            (
                10 + r * 40 + i,
                12 + i * 3,
                60 + r * 30 + i,
                70 + i * 2,
                ((i * 29 + r * 41) % 89) / 100,
                (i + r) % 3,
            )
            for r in range(i % 3)
        ]
        predictions.append(image(*found))
        table = np.array(truth, np.float64)
        labels.append(boxes(table))
    return predictions, labels


@pytest.mark.parametrize(
    ("crowds", "dense", "coco"),
    [
        # pycocotools 2.0.11, no limit of detections: with 100001 recall thresholds, then with its 101.
        (True, 0.5521195049878317, 0.551469357462062),
        (False, 0.5619682232360149, 0.559888471878862),
    ],
)
def test_map50_is_that_of_pycocotools(crowds: bool, dense: float, coco: float) -> None:
    value = get_metric("map50").score(*_formula_data(crowds)).value
    assert value == pytest.approx(dense, abs=1e-5)
    assert value == pytest.approx(coco, abs=0.01)


def test_map50_is_that_of_pycocotools_on_random_images() -> None:
    path = Path(__file__).with_name("pycocotools.json")
    for case in json.loads(path.read_text())["cases"]:
        predictions = [image(*map(tuple, rows)) for rows in case["detections"]]
        labels = [boxes(np.array(rows, np.float64).reshape(-1, 6)) for rows in case["truth"]]
        value = get_metric("map50").score(predictions, labels).value
        assert value == pytest.approx(case["map50"], abs=2e-5)


def test_map50_interval_is_that_of_leaving_images_out() -> None:
    """Against leaving each image out in a loop and scoring what is left as data of its own."""
    predictions, labels = _formula_data(crowds=True)
    metric = get_metric("map50")
    found = metric.score(predictions, labels)
    values = [
        metric.score(predictions[:i] + predictions[i + 1 :], labels[:i] + labels[i + 1 :]).value
        for i in range(12)
    ]
    error = math.sqrt(11 / 12 * sum((v - np.mean(values)) ** 2 for v in values))
    assert found.ci95 == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), abs=1e-4)


# auc


def test_auc_takes_scores_in_every_form() -> None:
    labels = [0, 1, 0, 1]
    scores = [0.1, 0.4, 0.35, 0.8]
    metric = get_metric("auc")
    forms: list[list[Prediction]] = [
        [anomaly(s) for s in scores],
        [{"y": np.array([[s]], np.float32)} for s in scores],
        [raw(1 - s, s) for s in scores],
        [{"classes": np.array([1, 0]), "scores": np.array([s, 1 - s])} for s in scores],
        [raw(-s, s) for s in scores],  # logits
    ]
    for form in forms:
        assert metric.score(form, labels).value == 1.0
    assert metric.score([anomaly(s) for s in (0.1, 0.4, 0.4, 0.8)], labels).value == 0.875


def test_auc_needs_both_classes_and_no_others() -> None:
    with pytest.raises(DataError, match=r"needs labels 0 and 1, both of them, got \[1\]"):
        get_metric("auc").score([anomaly(1)] * 2, [1, 1])
    with pytest.raises(DataError, match=r"got \[0, 1, 2\]"):
        get_metric("auc").score([anomaly(1)] * 3, [0, 1, 2])


def test_auc_takes_booleans_as_labels() -> None:
    assert get_metric("auc").score([anomaly(1), anomaly(2)], [np.False_, np.True_]).value == 1.0


def test_nan_is_ranked_on_the_wrong_side() -> None:
    good = [anomaly(0), anomaly(1), anomaly(2), anomaly(3)]
    assert get_metric("auc").score(good, [0, 0, 1, 1]).value == 1.0
    good[3] = anomaly(math.nan)
    assert get_metric("auc").score(good, [0, 0, 1, 1]).value == 0.5
    good[0] = anomaly(math.nan)
    assert get_metric("auc").score(good, [0, 0, 1, 1]).value == 0.25


# spearman


def test_spearman_takes_the_cosine_of_two_embeddings() -> None:
    angles = np.linspace(0, np.pi, 7)
    pairs: list[Prediction] = [
        {"embedding": np.array([1.0, 0.0]), "embedding_b": 3 * np.array([np.cos(a), np.sin(a)])}
        for a in angles
    ]
    score = get_metric("spearman").score(pairs, list(-angles))
    assert score.value == pytest.approx(1.0)
    assert score.unit == "correlation"
    assert get_metric("spearman").compact(pairs[3]) == {"similarity": pytest.approx(0.0, abs=1e-9)}


def test_spearman_of_embeddings_of_different_length_is_refused() -> None:
    with pytest.raises(DataError, match="differ in length: 2 and 3"):
        get_metric("spearman").compact({"embedding": np.zeros(2), "embedding_b": np.zeros(3)})


def test_spearman_ranks_nan_below_everything() -> None:
    scores = [raw(1), raw(2), raw(math.nan), raw(4)]
    assert get_metric("spearman").score(scores, [2, 3, 1, 4]).value == 1.0


# mse


def test_mse_is_the_mean_over_samples_of_their_own_mean() -> None:
    predictions = [raw(1, 2), raw(0, 0), {"embedding": np.array([1.0, 1.0])}]
    labels = [np.array([1, 4]), np.array([[1, 1]], np.float32), [0.0, 1.0]]
    score = get_metric("mse").score(predictions, labels)
    assert score.value == pytest.approx((2 + 1 + 0.5) / 3)
    assert not score.higher_is_better
    assert score.ci95[0] < score.value < score.ci95[1]


def test_mse_takes_one_number_per_sample() -> None:
    assert get_metric("mse").score([raw(2.0), anomaly(1.0)], [1.0, 1]).value == 0.5


def test_mse_of_nan_is_infinite() -> None:
    score = get_metric("mse").score([raw(math.nan), raw(1)], [1.0, 1.0])
    assert (score.value, score.ci95) == (math.inf, (0.0, math.inf))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("top1", raw(3, 1, 2, 0, 7, 9)),
        ("top5", classes(3, 2, 1, 0, 5, 4, labels=list("dcbafe"))),
        ("map50", image((*BOX, 0.9, 0), (*BOX, math.nan, 0))),
        ("auc", raw(0.2, 0.8)),
        ("auc", anomaly(3)),
        ("spearman", {"embedding": np.array([1.0, 0.0]), "embedding_b": np.array([1.0, 1.0])}),
        ("mse", raw(1, 2, 3)),
    ],
)
def test_what_is_kept_of_a_prediction_is_a_prediction(name: str, prediction: Prediction) -> None:
    metric = get_metric(name)
    kept = metric.compact(prediction)
    again = metric.compact(kept)
    assert kept.keys() == again.keys()
    for key in kept:
        assert np.array_equal(np.asarray(kept[key]), np.asarray(again[key]))
