"""What the pipeline costs: `Processor` against the same written by hand with OpenCV and numpy.

    python -m benchmarks.pipeline [--duration-s 5] [--output benchmarks/results/pipeline.json]

By hand means what the code of a model's author does: no checks, no geometry but what boxes need, steps in an
order that is cheap. Both are called in turn, in an order drawn anew for each round, on one thread, and give
the same numbers, which is checked first. Before: photos of 1280 x 720 and of 640 x 640 for a detector of
640 x 640, and the crop of a classifier. After: 8400 boxes of 80 classes, of which some dozens remain. The
claim it checks: at most 5 % over the code by hand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec, read_pipeline
from edgec.runtime.benchmark import measure_interleaved, median_ratio, this_machine
from edgec.runtime.pipeline import Processor

ROOT = Path(__file__).resolve().parent.parent
MOST_OVER = 0.05
SIZE = 640
CLASSES = 80
BOXES = 8400
Array = NDArray[Any]

DETECTOR = """
[[preprocess]]
step = "decode"
color = "BGR"

[[preprocess]]
step = "resize"
width = 640
height = 640
mode = "letterbox"
pad = [114]

[[preprocess]]
step = "color"
order = "RGB"

[[preprocess]]
step = "normalize"
scale = 0.00392156862745098

[[preprocess]]
step = "layout"
order = "NCHW"

[[postprocess]]
step = "detection"
format = "yolov8"
min_score = 0.25

[[postprocess]]
step = "nms"
iou = 0.45
max_detections = 300
"""

CLASSIFIER = """
[[preprocess]]
step = "decode"
color = "RGB"

[[preprocess]]
step = "resize"
width = 256
height = 256
mode = "cover"

[[preprocess]]
step = "crop"
width = 224
height = 224

[[preprocess]]
step = "normalize"
scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[[preprocess]]
step = "layout"
order = "NCHW"

[[postprocess]]
step = "softmax"

[[postprocess]]
step = "top_k"
k = 5
"""


def processor(text: str, shape: tuple[int, ...], outputs: tuple[int, ...], folder: Path) -> Processor:
    """Return a pipeline, planned for a model."""
    path = folder / "pipeline.toml"
    path.write_text(text)
    return Processor(
        read_pipeline(path), (TensorSpec("image", "float32", shape),), (TensorSpec("y", "float32", outputs),)
    )


def letterbox_by_hand(image: Array) -> Array:
    """Return a photo as float32[1, 3, 640, 640], letterboxed in grey."""
    height, width = image.shape[:2]
    factor = min(SIZE / width, SIZE / height)
    inner_width, inner_height = round(width * factor), round(height * factor)
    if (inner_width, inner_height) != (width, height):
        image = cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    left, top = (SIZE - inner_width) // 2, (SIZE - inner_height) // 2
    if (inner_width, inner_height) != (SIZE, SIZE):
        image = cv2.copyMakeBorder(
            image,
            top,
            SIZE - inner_height - top,
            left,
            SIZE - inner_width - left,
            cv2.BORDER_CONSTANT,
            value=(114, 114, 114),
        )
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    array = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    array *= np.float32(1 / 255)
    return array[None]


def blob_by_hand(image: Array) -> Array:
    """Return a photo that has the size as float32[1, 3, 640, 640], by OpenCV's function for that."""
    return np.asarray(cv2.dnn.blobFromImage(image, 1 / 255, swapRB=True))


def crop_by_hand(image: Array) -> Array:
    """Return the middle of a photo as float32[1, 3, 224, 224], as ImageNet's classifiers take it."""
    height, width = image.shape[:2]
    factor = max(256 / width, 256 / height)
    outer_width, outer_height = round(width * factor), round(height * factor)
    image = cv2.resize(image, (outer_width, outer_height), interpolation=cv2.INTER_LINEAR)
    left, top = (outer_width - 256) // 2 + 16, (outer_height - 256) // 2 + 16
    array = np.ascontiguousarray(image[top : top + 224, left : left + 224].transpose(2, 0, 1))
    result = array.astype(np.float32)
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    result *= (np.float32(1 / 255) / std)[:, None, None]
    result -= (mean / std)[:, None, None]
    return result[None]


def boxes_by_hand(output: Array, width: int, height: int) -> tuple[Array, Array, Array]:
    """Return boxes in pixels of the photo, scores and classes that non-maximum suppression keeps."""
    columns = output[0]
    scores = columns[4:].max(axis=0)
    kept = np.nonzero(scores >= 0.25)[0]
    rows, scores = columns[:, kept].T, scores[kept]
    classes = rows[:, 4:].argmax(axis=1)
    order = np.argsort(-scores, kind="stable")
    rows, scores, classes = rows[order, :4], scores[order], classes[order]
    factor = min(SIZE / width, SIZE / height)
    left, top = (SIZE - round(width * factor)) // 2, (SIZE - round(height * factor)) // 2
    boxes = np.empty((len(rows), 4), np.float32)
    boxes[:, :2] = rows[:, :2] - rows[:, 2:] / 2
    boxes[:, 2:] = boxes[:, :2] + rows[:, 2:]
    boxes -= np.array((left, top, left, top), np.float32)
    boxes /= np.float32(factor)
    rectangles = boxes.astype(np.float64)
    rectangles[:, 2:] -= rectangles[:, :2]
    suppress: Any = cv2.dnn.NMSBoxesBatched
    best: Array = np.asarray(suppress(rectangles, scores, classes, 0.0, 0.45)).reshape(-1)[:300]
    boxes = boxes[best]
    np.clip(boxes[:, 0::2], 0, width, out=boxes[:, 0::2])
    np.clip(boxes[:, 1::2], 0, height, out=boxes[:, 1::2])
    return boxes, scores[best], classes[best]


def top_by_hand(output: Array) -> tuple[Array, Array]:
    """Return the five best classes and their probabilities."""
    e = np.exp(output[0] - output[0].max())
    e /= e.sum()
    best = np.argsort(-e)[:5]
    return best, e[best]


def head() -> Array:
    """Return what a detector gives for a photo with some dozens of things in it, found several times each."""
    random = np.random.default_rng(0)
    output = np.zeros((1, 4 + CLASSES, BOXES), np.float32)
    output[0, :2] = random.uniform(0, SIZE, (2, BOXES))
    output[0, 2:4] = random.uniform(10, 100, (2, BOXES))
    output[0, 4:] = random.uniform(0, 0.1, (CLASSES, BOXES))
    for thing in range(40):
        places = random.choice(BOXES, 12, replace=False)
        middle = random.uniform(100, SIZE - 100, (2, 1))
        output[0, :2, places] = (middle + random.uniform(-4, 4, (2, 12))).T
        output[0, 2:4, places] = random.uniform(60, 70, (12, 2))
        output[0, 4 + thing % CLASSES, places] = random.uniform(0.3, 0.95, 12)
    return output


def photo(width: int, height: int) -> Array:
    """Return uint8[height, width, 3] with structure, as photos have it."""
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def cases(folder: Path) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return edgec's call and that by hand, after they gave the same."""
    detector = processor(DETECTOR, (1, 3, SIZE, SIZE), (1, 4 + CLASSES, BOXES), folder)
    classifier = processor(CLASSIFIER, (1, 3, 224, 224), (1, 1000), folder)
    wide, square, output = photo(1280, 720), photo(SIZE, SIZE), head()
    scores = np.random.default_rng(2).standard_normal((1, 1000)).astype(np.float32)
    _, of_wide = detector.preprocess(wide)
    _, of_crop = classifier.preprocess(wide)
    outputs = {"y": output}
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "letterbox 1280x720 to 640x640": (
            lambda: detector.preprocess(wide)[0]["image"],
            lambda: letterbox_by_hand(wide),
        ),
        "640x640 as it is": (
            lambda: detector.preprocess(square)[0]["image"],
            lambda: letterbox_by_hand(square),
        ),
        "640x640 as it is, by blobFromImage": (
            lambda: detector.preprocess(square)[0]["image"],
            lambda: blob_by_hand(square),
        ),
        "resize and crop to 224x224": (
            lambda: classifier.preprocess(wide)[0]["image"],
            lambda: crop_by_hand(wide),
        ),
        "boxes of 8400 x 80, nms": (
            lambda: detector.postprocess(outputs, of_wide),
            lambda: boxes_by_hand(output, 1280, 720),
        ),
        "softmax and the best 5 of 1000": (
            lambda: classifier.postprocess({"y": scores}, of_crop),
            lambda: top_by_hand(scores),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        check(name, ours(), theirs())
    return pairs


def check(name: str, ours: Any, theirs: Any) -> None:
    """End the benchmark where the two do not give the same."""
    if isinstance(ours, dict):
        keys = ("boxes", "scores", "classes") if "boxes" in ours else ("classes", "scores")
        pairs = [(ours[key], value) for key, value in zip(keys, theirs, strict=True)]
    else:
        pairs = [(ours, theirs)]
    for a, b in pairs:
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-4, atol=2e-3):
            raise SystemExit(f"{name}: the code by hand gives other numbers: {a.shape}, {b.shape}")


def measure(
    name: str, ours: Callable[[], Any], theirs: Callable[[], Any], duration_s: float
) -> dict[str, Any]:
    """Measure one case."""
    measured = measure_interleaved(
        {"edgec": ours, "by hand": theirs}, duration_s=duration_s, warmup_s=0.5, max_rounds=100_000
    )
    ratio = median_ratio(measured["edgec"], measured["by hand"])
    return {
        "case": name,
        "calls": measured["edgec"].n,
        "edgec_ms": figures(measured["edgec"]),
        "by_hand_ms": figures(measured["by hand"]),
        "ratio": {"median": round(ratio.ratio, 4), "ci95": [round(ratio.lower, 4), round(ratio.upper, 4)]},
        "kept": ratio.ratio <= 1 + MOST_OVER,
    }


def figures(samples: Any) -> dict[str, float]:
    """Return median, 95th percentile and minimum in milliseconds."""
    p50, p95 = (samples.percentile_ms(percent) for percent in (50, 95))
    return {"median": round(p50, 4), "p95": round(p95, 4), "min": round(samples.min_ms, 4)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--duration-s", type=float, default=5.0, help="of each comparison")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/pipeline.json")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    machine = this_machine()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (ours, theirs) in cases(Path(folder)).items():
            row = measure(name, ours, theirs, arguments.duration_s)
            rows.append(row)
            judged = "kept" if row["kept"] else "NOT KEPT"
            print(
                f"{name:36} by hand {row['by_hand_ms']['median']:8.3f}"
                f"  edgec {row['edgec_ms']['median']:8.3f} ms  {row['ratio']['median'] - 1:+.1%}  {judged}",
                flush=True,
            )
    result = {
        "what": "pre- and post-processing by the pipeline against the same by hand, interleaved",
        "method": {
            "warm_up_s": 0.5,
            "duration_s": arguments.duration_s,
            "threads": 1,
            "order": "drawn anew for each round",
            "interval": "circular block bootstrap over rounds, 1000 resamples",
        },
        "claim": {"most_over": MOST_OVER},
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {p: version(p) for p in ("edgec", "numpy", "opencv-python-headless")},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
