"""UltraFace before a classifier: every face of a photo is cut out and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.sources import Source
from tests.models.test_faces import MODEL, PIPELINE
from tests.runtime.chain_models import classifier

from edgec.artifact import Manifest, pack, read_pipeline
from edgec.runtime import load, load_chain
from edgec.runtime.pipeline import convert_color, read_image
from edgec.runtime.testing import onnxruntime_spec

pytestmark = [pytest.mark.models, pytest.mark.slow]

CHAIN = """
name = "faces"
inputs.photo = { kind = "image", color = "RGB" }
outputs = { boxes = "best.boxes", looks = "look.labels" }

[[stages]]
name = "faces"
artifact = "faces.edgec"
input = "photo"

[[stages]]
name = "best"
step = "select"
input = "faces"
min_score = 0.9
top_k = 8

[[stages]]
name = "crops"
step = "crop"
image = "photo"
boxes = "best"
square = true

[[stages]]
name = "look"
artifact = "classifier.edgec"
each = "crops"
"""


def put(path: Path, model: Path) -> None:
    """Pack the source as it is: what compiling does to it is tested elsewhere."""
    source = Source(model)
    manifest = Manifest(
        model="faces",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=source.inputs,
        outputs=source.outputs,
        pipeline=read_pipeline(PIPELINE),
    )
    pack(path, manifest, {"model.onnx": model.read_bytes()})


def test_faces_of_photos_are_cut_out_and_classified(models: Path, tmp_path: Path) -> None:
    put(tmp_path / "faces.edgec", models / MODEL)
    classifier(tmp_path / "classifier.edgec")
    (tmp_path / "faces.chain.toml").write_text(CHAIN, encoding="utf-8")
    photos = sorted((models / "ultraface" / "imgs").glob("*.jpg"))[:6]
    with (
        load_chain(tmp_path / "faces.chain.toml") as chain,
        load(tmp_path / "faces.edgec") as faces,
        load(tmp_path / "classifier.edgec") as classify,
    ):
        for photo in photos:
            result, found = chain.predict(photo), faces.predict(photo)
            boxes = found["boxes"][found["scores"] >= 0.9][:8]
            np.testing.assert_array_equal(result["boxes"], boxes)
            crops = [_square(read_image(photo, "RGB"), box) for box in boxes]
            looks = [classify.predict(convert_color(crop, "RGB", "GRAY")) for crop in crops]
            assert result["looks"] == [look["labels"] for look in looks]
            assert len(boxes)


def _square(image: NDArray[Any], box: NDArray[Any]) -> NDArray[Any]:
    """Cut a square around a box out of an image; what lies outside is 0."""
    box = box.astype(np.float64)
    half = (box[2:] - box[:2]).max() / 2
    low = np.floor((box[:2] + box[2:]) / 2 - half + 1e-6).astype(int)
    high = np.ceil((box[:2] + box[2:]) / 2 + half - 1e-6).astype(int)
    side = int((high - low).max())
    padded = np.pad(image, ((side, side), (side, side), (0, 0)))
    return padded[low[1] + side : low[1] + 2 * side, low[0] + side : low[0] + 2 * side]
