"""From samples to inputs: every step of `preprocess`, and what does not fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.pipelines import Step, processor, spec

from edgec.artifact import Pipeline, Quantization
from edgec.errors import MissingExtraError, PipelineError
from edgec.runtime.pipeline import Processor, check_pipeline, split_batch, stack_batch

Array = NDArray[Any]
DECODE: Step = {"step": "decode"}
PLANES: Step = {"step": "layout", "order": "NCHW"}


@pytest.fixture
def image() -> Array:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.fixture
def cv2() -> Any:
    return pytest.importorskip("cv2")


def prepare(before: list[Step], sample: Any, dtype: str, *shape: int | str, **more: Any) -> Array:
    """Return the only input that steps make of a sample."""
    inputs, _ = processor(before, [], [spec("x", dtype, *shape, **more)]).preprocess(sample)
    assert list(inputs) == ["x"]
    assert inputs["x"].dtype == np.dtype(dtype)
    assert inputs["x"].flags.c_contiguous
    return inputs["x"]


class TestImages:
    def test_a_file_its_bytes_and_its_pixels_give_the_same(
        self, cv2: Any, image: Array, tmp_path: Path
    ) -> None:
        path = tmp_path / "photo.png"
        cv2.imwrite(str(path), image[..., ::-1])
        samples = (path, str(path), path.read_bytes(), memoryview(path.read_bytes()), image)
        for sample in samples:
            np.testing.assert_array_equal(prepare([DECODE], sample, "uint8", 1, "h", "w", 3)[0], image)

    def test_a_photo_is_turned_as_its_camera_was(self, cv2: Any, tmp_path: Path) -> None:
        photo = np.zeros((16, 32, 3), np.uint8)
        photo[:, :16] = 255
        jpeg = cv2.imencode(".jpg", photo)[1].tobytes()
        # One EXIF entry, the orientation (0x0112, a short): 6, to be turned a quarter clockwise.
        tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        segment = b"Exif\0\0" + tiff
        turned = jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]
        got = prepare([DECODE], turned, "uint8", 1, "h", "w", 3)[0]
        assert got.shape == (32, 16, 3)
        assert got[:12].min() > 200
        assert got[20:].max() < 50

    def test_channels_come_in_the_order_asked_for(self, cv2: Any, image: Array, tmp_path: Path) -> None:
        path = tmp_path / "photo.png"
        cv2.imwrite(str(path), image[..., ::-1])
        bgr = prepare([{"step": "decode", "color": "BGR"}], path, "uint8", 1, "h", "w", 3)
        np.testing.assert_array_equal(bgr[0], image[..., ::-1])
        again = prepare([DECODE, {"step": "color", "order": "BGR"}], path, "uint8", 1, "h", "w", 3)
        np.testing.assert_array_equal(again, bgr)

    def test_gray_is_the_usual_weighting_of_the_channels(self, cv2: Any, image: Array) -> None:
        gray = prepare([DECODE, {"step": "color", "order": "GRAY"}], image, "uint8", 1, 30, 40, 1)
        expected = image @ np.array([0.299, 0.587, 0.114])
        assert np.abs(gray[0, ..., 0] - expected).max() < 1
        # An array of one channel may come without its axis, and goes through every step.
        steps: list[Step] = [
            {"step": "decode", "color": "GRAY"},
            {"step": "resize", "width": 40, "height": 30},
            PLANES,
        ]
        same = prepare(steps, gray[0, ..., 0], "uint8", 1, 1, 30, 40)
        np.testing.assert_array_equal(same[0, 0], gray[0, ..., 0])

    @pytest.mark.parametrize(
        ("sample", "message"),
        [
            ("none.png", "cannot read none.png: No such file"),
            (".", r"cannot read \.: Is a directory"),
            (b"", "0 bytes is empty"),
            (b"GIF or so", "9 bytes is no image that OpenCV can read"),
            (3, "expected the path of an image, its bytes or an array .* got int"),
            (np.zeros((2, 2, 3), np.float32), r"expected an image as uint8\[h, w, 3\] \(RGB\), got float32"),
            (np.zeros((2, 2, 4), np.uint8), r"got uint8\[2, 2, 4\]"),
            (np.zeros((2, 2), np.uint8), r"got uint8\[2, 2\]"),
            (np.zeros((0, 2, 3), np.uint8), r"got uint8\[0, 2, 3\]"),
        ],
    )
    def test_what_is_no_image_is_refused(
        self, cv2: Any, sample: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PipelineError, match=message):
            prepare([DECODE], sample, "uint8", 1, "h", "w", 3)

    def test_stretch_is_what_opencv_computes(self, cv2: Any, image: Array) -> None:
        for name in ("nearest", "linear", "cubic", "area"):
            steps = [DECODE, {"step": "resize", "width": 17, "height": 23, "interpolation": name}]
            expected = cv2.resize(image, (17, 23), interpolation=getattr(cv2, f"INTER_{name.upper()}"))
            np.testing.assert_array_equal(prepare(steps, image, "uint8", 1, 23, 17, 3)[0], expected)

    @pytest.mark.parametrize(("align", "left"), [("center", 1), ("top-left", 0)])
    def test_letterbox_keeps_the_aspect_ratio_and_pads(self, cv2: Any, align: str, left: int) -> None:
        image = np.arange(8 * 3, dtype=np.uint8).reshape(4, 2, 3)
        resize = {
            "step": "resize",
            "width": 4,
            "height": 4,
            "mode": "letterbox",
            "pad": [7, 8, 9],
            "align": align,
        }
        got = prepare([DECODE, resize], image, "uint8", 1, 4, 4, 3)[0]
        expected = np.full((4, 4, 3), (7, 8, 9), np.uint8)
        expected[:, left : left + 2] = image
        np.testing.assert_array_equal(got, expected)

    def test_cover_and_crop_keep_the_middle(self, cv2: Any) -> None:
        image = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
        cover = {"step": "resize", "width": 4, "height": 4, "mode": "cover"}
        np.testing.assert_array_equal(prepare([DECODE, cover], image, "uint8", 1, 4, 4, 3)[0], image[:, 2:6])
        crop = {"step": "crop", "width": 6, "height": 2}
        np.testing.assert_array_equal(prepare([DECODE, crop], image, "uint8", 1, 2, 6, 3)[0], image[1:3, 1:7])

    def test_an_image_too_small_to_crop_is_refused(self, cv2: Any, image: Array) -> None:
        with pytest.raises(PipelineError, match="at least 41 x 2 pixels, got 40 x 30: add a `resize` step"):
            prepare([DECODE, {"step": "crop", "width": 41, "height": 2}], image, "uint8", 1, 2, 41, 3)

    def test_an_image_of_another_size_is_refused(self, cv2: Any, image: Array) -> None:
        with pytest.raises(PipelineError, match=r"got a sample uint8\[30, 40, 3\]: add a `resize` step"):
            prepare([DECODE], image, "uint8", 1, 30, 41, 3)

    def test_a_strip_is_not_blown_up_to_gigabytes(self, cv2: Any) -> None:
        strip = np.zeros((1, 100_000, 3), np.uint8)
        cover = {"step": "resize", "width": 1000, "height": 1000, "mode": "cover"}
        with pytest.raises(PipelineError, match="too long and thin to cover"):
            prepare([DECODE, cover], strip, "uint8", 1, 1000, 1000, 3)
        letterbox = {"step": "resize", "width": 10, "height": 10, "mode": "letterbox"}
        assert prepare([DECODE, letterbox], strip, "uint8", 1, 10, 10, 3).max() == 114

    @pytest.mark.parametrize("order", ["NHWC", "NCHW", "HWC", "CHW"])
    def test_layouts(self, cv2: Any, image: Array, order: str) -> None:
        shape = (30, 40, 3) if order.endswith("C") else (3, 30, 40)
        batch = (1,) if order.startswith("N") else ()
        got = prepare([DECODE, {"step": "layout", "order": order}], image, "uint8", *batch, *shape)
        expected = image if order.endswith("C") else image.transpose(2, 0, 1)
        np.testing.assert_array_equal(got.reshape(shape), expected)

    def test_normalize_and_layout_commute(self, cv2: Any, image: Array) -> None:
        normalize = {"step": "normalize", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
        first = prepare([DECODE, normalize, PLANES], image, "float32", 1, 3, 30, 40)
        last = prepare([DECODE, PLANES, normalize], image, "float32", 1, 3, 30, 40)
        np.testing.assert_array_equal(first, last)
        expected = (image / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
        np.testing.assert_allclose(first[0], expected.transpose(2, 0, 1), rtol=1e-6, atol=1e-6)
        rows = prepare([DECODE, normalize], image, "float32", 1, 30, 40, 3)
        np.testing.assert_array_equal(rows[0].transpose(2, 0, 1), first[0])

    def test_a_sample_is_left_as_it_was(self, cv2: Any, image: Array) -> None:
        before = image.copy()
        steps = [DECODE, {"step": "resize", "width": 40, "height": 30}, {"step": "normalize", "mean": 3}]
        prepare(steps, image, "float32", 1, 30, 40, 3)
        floats = np.ones((1, 4), np.float32)
        prepare([{"step": "normalize", "scale": 3}], floats, "float32", 1, 4)
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(floats, np.ones((1, 4)))

    def test_threads_share_a_processor(self, cv2: Any) -> None:
        normalize = {"step": "normalize", "mean": [1, 2, 3]}
        shared = processor([DECODE, normalize], [], [spec("x", "float32", 1, "h", "w", 3)])
        images = [np.full((5, 1 + i % 7, 3), i, np.uint8) for i in range(200)]
        with ThreadPoolExecutor(4) as pool:
            prepared = list(pool.map(lambda image: shared.preprocess(image)[0]["x"], images))
        for image, got in zip(images, prepared, strict=True):
            np.testing.assert_array_equal(got[0], image - np.array([1, 2, 3], np.float32))


class TestTensors:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
    def test_normalize_works_along_the_last_axis(self, dtype: type) -> None:
        window: Array = np.random.default_rng(1).integers(0, 100, (6, 4)).astype(dtype)
        step = {"step": "normalize", "scale": 0.5, "mean": [1, 2, 3, 4], "std": [1, 2, 4, 8]}
        expected = (window * 0.5 - [1, 2, 3, 4]) / [1, 2, 4, 8]
        np.testing.assert_allclose(prepare([step], window, "float32", 1, 6, 4)[0], expected, rtol=1e-6)
        np.testing.assert_allclose(prepare([step], window[0], "float32", 1, 4)[0], expected[0], rtol=1e-6)
        one = prepare([{"step": "normalize", "mean": 3}], window, "float32", 1, 6, 4)
        np.testing.assert_allclose(one[0], window - 3.0)

    def test_normalize_refuses_other_channels(self) -> None:
        step = {"step": "normalize", "mean": [1, 2, 3]}
        with pytest.raises(PipelineError, match=r"expected 3 channels, got an array \[2, 4\]"):
            prepare([step], np.zeros((2, 4)), "float32", 1, 2, 4)

    def test_reshape(self) -> None:
        flat = np.arange(12, dtype=np.float32)
        assert prepare([{"step": "reshape", "shape": [3, -1]}], flat, "float32", 1, 3, 4).shape == (1, 3, 4)
        with pytest.raises(PipelineError, match=r"an array \[12\] cannot be \[5, -1\]"):
            prepare([{"step": "reshape", "shape": [5, -1]}], flat, "float32", "n", "a", "b")

    def test_dtype_keeps_values_or_refuses(self) -> None:
        def to(dtype: str, values: Sequence[float]) -> list[Any]:
            step = {"step": "dtype", "to": dtype}
            array: list[Any] = prepare([step], np.array(values), dtype, 1, len(values))[0].tolist()
            return array

        assert to("int8", [-128, 1.4, 126.6]) == [-128, 1, 127]
        assert to("bool", [0, 2]) == [False, True]
        assert to("float16", [0.5]) == [0.5]
        for values in ([128], [float("nan")], [float("inf")]):
            with pytest.raises(PipelineError, match="do not fit in int8"):
                to("int8", values)

    def test_quantize_uses_the_inputs_own_scale(self) -> None:
        values = np.array([-1, 0, 0.26, 0.24, 63, 1000], np.float32)
        own = Quantization((0.5,), (-3,))
        got = prepare([{"step": "quantize"}], values, "int8", 1, 6, quantization=own)
        assert got.tolist() == [[-5, -3, -2, -3, 123, 127]]
        step = {"step": "quantize", "scale": 1, "zero_point": 128}
        assert prepare([step], values, "uint8", 1, 6).tolist() == [[127, 128, 128, 128, 191, 255]]

    def test_quantize_needs_a_scale(self) -> None:
        per_channel = Quantization((0.5, 0.25), (0, 0), axis=1)
        for quantization in (None, per_channel):
            with pytest.raises(PipelineError, match="has no scale and zero point for the whole tensor"):
                prepare([{"step": "quantize"}], np.zeros(2), "int8", 1, 2, quantization=quantization)


class TestSamples:
    """What a model without steps takes."""

    def test_a_batch_axis_is_added_where_it_lacks(self) -> None:
        x = np.arange(4, dtype=np.float32)
        for sample in (x, x[None], x.tolist(), [x.tolist()], {"x": x}):
            np.testing.assert_array_equal(prepare([], sample, "float32", 1, 4), x[None])
        assert prepare([], 3.5, "float32", 1).tolist() == [3.5]

    @pytest.mark.parametrize(
        ("sample", "dtype"),
        [
            (np.array([1.5], np.float64), "float32"),
            (np.array([3], np.uint8), "float32"),
            (np.array([3], np.int64), "uint8"),
            (np.array([True]), "float32"),
        ],
    )
    def test_a_dtype_changes_where_the_value_does_not(self, sample: Array, dtype: str) -> None:
        assert prepare([], sample, dtype, 1, 1)[0, 0] == sample[0]

    @pytest.mark.parametrize(
        ("sample", "dtype", "message"),
        [
            (np.array([1.0]), "int8", "got a sample of float64: quantize it first"),
            (np.array([300]), "uint8", "values from 300 to 300 do not fit in uint8"),
            (
                np.zeros((2, 1, 1)),
                "float32",
                r"expected input x: float32\[1, 1\], got a sample float64\[2, 1, 1\]",
            ),
            (np.zeros(2), "float32", r"got a sample float64\[2\]"),
            ("text", "float32", "expected an array or a list of numbers, got str"),
            ([[1], [1, 2]], "float32", "uneven rows"),
            (None, "float32", "expected an array or a list of numbers, got NoneType"),
            (np.array([{}], object), "float32", "got an array of object"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, sample: Any, dtype: str, message: str) -> None:
        with pytest.raises(PipelineError, match=message):
            prepare([], sample, dtype, 1, 1)

    def test_several_inputs_come_by_name(self) -> None:
        two = Processor(None, (spec("a", "float32", 1, 2), spec("b", "int64", 1)), ())
        inputs, _ = two.preprocess({"b": 3, "a": [1, 2]})
        assert list(inputs) == ["a", "b"]
        assert inputs["b"].tolist() == [3]
        wrong: list[tuple[Any, str]] = [
            (np.zeros(2), "several inputs: give a mapping by name, with a, b"),
            ({"a": [1, 2]}, "the sample lacks input b"),
            ({"a": [1, 2], "c": 1}, "the sample has an input 'c', the model takes a, b"),
        ]
        for sample, message in wrong:
            with pytest.raises(PipelineError, match=message):
                two.preprocess(sample)

    def test_steps_name_their_input_where_there_are_several(self) -> None:
        inputs = [spec("a", "float32", 1, 2), spec("b", "float32", 1, 2)]
        got, _ = processor([{"step": "normalize", "mean": 1, "input": "b"}], [], inputs).preprocess(
            {"a": [1, 2], "b": [1, 2]}
        )
        assert got["a"].tolist() == [[1, 2]]
        assert got["b"].tolist() == [[0, 1]]


def test_batches_are_stacked_and_split() -> None:
    one = Processor(None, (spec("x", "float32", "n", 2),), ())
    samples = [one.preprocess([i, i])[0] for i in range(3)]
    batch = stack_batch(samples)
    assert batch["x"].tolist() == [[0, 0], [1, 1], [2, 2]]
    for i, part in enumerate(split_batch(batch, 3)):
        np.testing.assert_array_equal(part["x"], samples[i]["x"])
    with pytest.raises(PipelineError, match="not a batch of 2"):
        split_batch(batch, 2)
    with pytest.raises(PipelineError, match="different shapes"):
        stack_batch([{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 3))}])
    with pytest.raises(ValueError, match="at least one"):
        stack_batch([])


def test_without_a_pipeline_the_outputs_are_the_prediction() -> None:
    bare = Processor(None, (spec("x", "float32", 1),), (spec("y", "float32", 1),))
    outputs: Mapping[str, Array] = {"y": np.ones(1, np.float32)}
    prediction = bare.postprocess(outputs, bare.preprocess(1.0)[1])
    assert prediction == outputs
    assert prediction is not outputs


@pytest.mark.parametrize(
    ("steps", "name", "module", "extra"),
    [
        ([DECODE], "x", "cv2", "vision"),
        ([{"step": "tokenize", "file": "t.json"}], "input_ids", "tokenizers", "text"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, steps: list[Step], name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    inputs = [spec(name, "uint8", 1, "n")] if name == "input_ids" else [spec(name, "uint8", 1, "h", "w", 3)]
    with pytest.raises(
        MissingExtraError, match=rf"needs '{module}', .* pip install 'edgec\[{extra}\]'"
    ) as caught:
        processor(steps, [], inputs, files=lambda _: b"{}")
    assert caught.value.extra == extra


def test_a_pipeline_is_checked_without_the_libraries_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    pipeline = Pipeline.from_dict({"preprocess": [DECODE, {"step": "resize", "width": 2, "height": 3}]})
    check_pipeline(pipeline, (spec("x", "uint8", 1, 3, 2, 3),), ())


def test_a_scalar_input_stays_a_scalar() -> None:
    # A sampling rate, as speech models take it: numpy's ascontiguousarray would give it an axis.
    made = processor([], [], [spec("audio", "float32", 1, 4), spec("rate", "int64")])
    inputs, _ = made.preprocess({"audio": np.zeros(4, np.float32), "rate": np.array(16_000)})
    assert inputs["audio"].shape == (1, 4)
    assert inputs["rate"].shape == ()
