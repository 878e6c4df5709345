from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgec.artifact import Pipeline, TensorSpec
from edgec.artifact.steps import Dtype
from edgec.errors import DataError
from edgec.evaluation import Boxes, Dataset, Sample, open_dataset

IMAGE = (TensorSpec("image", "float32", (1, 1, 2, 2)),)
PREPARED = Pipeline(preprocess=(Dtype(to="float32"),), labels=("cat", "dog"))
NAMED = Pipeline(labels=("cat", "dog"))


def save(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def images(n: int) -> NDArray[np.float32]:
    return np.arange(n * 4, dtype=np.float32).reshape(n, 1, 2, 2)


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def make(compressed: bool = False, **arrays: Any) -> Path:
        return save(tmp_path / "data.npz", compressed, **arrays)

    return make


# .npz


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_gives_inputs_as_batches_of_one(npz: Callable[..., Path], compressed: bool, order: Any) -> None:
    arrays = np.asarray(images(3), order=order)
    data = open_dataset(npz(compressed, image=arrays, labels=np.array([2, 0, 1])), inputs=IMAGE)
    assert (len(data), data.labelled) == (3, True)
    for _ in range(2):  # iterating again starts again
        samples = list(data)
        assert [s.label for s in samples] == [2, 0, 1]
        assert [s.name for s in samples] == ["0", "1", "2"]
        for i, sample in enumerate(samples):
            assert sample.data["image"].dtype == np.float32
            assert np.array_equal(sample.data["image"], images(3)[i : i + 1])
    assert data[2].label == 1
    assert np.array_equal(data[2].data["image"], images(3)[2:])
    for index in (-1, 3):
        with pytest.raises(IndexError, match="has 3 samples"):
            data[index]


def test_npz_samples_can_be_written_to(npz: Callable[..., Path]) -> None:
    for compressed in (False, True):
        (sample,) = open_dataset(npz(compressed, image=images(1)), inputs=IMAGE)
        sample.data["image"][:] = 9
        assert sample.label is None


def test_npz_fits_inputs_with_and_without_a_batch_axis(npz: Callable[..., Path]) -> None:
    path = npz(image=images(3)[:, None], state=np.zeros((3, 5), np.float32), rate=np.array([8, 8, 8]))
    specs = (
        TensorSpec("image", "float32", (1, 1, 2, "width")),
        TensorSpec("state", "float32", (5,)),
        TensorSpec("rate", "int64", ()),
    )
    sample = open_dataset(path, inputs=specs)[1]
    assert {name: a.shape for name, a in sample.data.items()} == {
        "image": (1, 1, 2, 2), "state": (5,), "rate": (),
    }  # fmt: skip


def test_npz_for_a_pipeline_is_left_as_it_is(npz: Callable[..., Path]) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    data = open_dataset(npz(image=pixels, labels=np.array(["dog", "cat"])), inputs=IMAGE, pipeline=PREPARED)
    assert np.array_equal(data[1].data["image"], pixels[1])
    assert [s.label for s in data] == [1, 0]
    with pytest.raises(DataError, match="expected the model's inputs 'image'"):
        open_dataset(npz(pixels=pixels), inputs=IMAGE, pipeline=PREPARED)


def test_npz_is_checked_against_inputs_where_the_pipeline_prepares_nothing(npz: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="is uint8, expected float32"):
        open_dataset(npz(image=images(2).astype(np.uint8)), inputs=IMAGE, pipeline=NAMED)


def test_npz_labels_may_be_arrays_names_and_booleans(npz: Callable[..., Path]) -> None:
    data = open_dataset(npz(image=images(2), labels=np.ones((2, 3))), inputs=IMAGE)
    assert data[0].label.shape == (3,)
    assert [s.label for s in open_dataset(npz(image=images(2), labels=np.array([True, False])))] == [
        True,
        False,
    ]
    assert [s.label for s in open_dataset(npz(image=images(2), labels=np.array(["b", "a"])))] == ["b", "a"]
    with pytest.raises(DataError, match="label 'bird' of sample 1 is none of the model's labels"):
        list(open_dataset(npz(image=images(2), labels=np.array(["cat", "bird"])), pipeline=NAMED))


@pytest.mark.parametrize(
    ("dtype", "spec", "note"),
    [
        ("float32", "float32", None),
        ("float64", "float32", "x: float64 read as float32 (rounded)"),
        ("float16", "float32", "x: float16 read as float32"),
        (">f4", "float32", "x: >f4 read as float32"),
        ("int32", "int64", "x: int32 read as int64"),
        ("int64", "int32", "x: int64 read as int32"),
        ("int64", "uint8", "x: int64 read as uint8"),
        ("uint8", "int16", "x: uint8 read as int16"),
        ("uint8", "int8", "x: uint8 read as int8"),
    ],
)
def test_dtypes_that_lose_nothing_are_cast_and_said(
    npz: Callable[..., Path], dtype: str, spec: str, note: str | None
) -> None:
    data = open_dataset(
        npz(x=np.arange(6).reshape(3, 2).astype(dtype)), inputs=(TensorSpec("x", spec, (1, 2)),)
    )
    assert data.notes == ((note,) if note else ())
    assert note is None or note in data.description
    assert data[2].data["x"].dtype == np.dtype(spec)
    assert data[2].data["x"].tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("dtype", "spec"),
    [
        ("uint8", "float32"),
        ("float32", "uint8"),
        ("float32", "float16"),
        ("float64", "float16"),
        ("bool", "float32"),
        ("int64", "bool"),
        ("float32", "int64"),
    ],
)
def test_dtypes_that_change_the_meaning_are_refused(npz: Callable[..., Path], dtype: str, spec: str) -> None:
    with pytest.raises(
        DataError, match=rf"array 'x' is {dtype}, expected {spec} for x: .*convert it, or declare"
    ):
        open_dataset(npz(x=np.zeros((3, 2), dtype)), inputs=(TensorSpec("x", spec, (1, 2)),))


def test_integers_that_do_not_fit_are_refused(npz: Callable[..., Path]) -> None:
    data = open_dataset(npz(x=np.array([[1, 2], [3, 300]])), inputs=(TensorSpec("x", "uint8", (1, 2)),))
    assert data[0].data["x"].tolist() == [[1, 2]]
    with pytest.raises(
        DataError, match="array 'x', sample 1, has values from 3 to 300, which do not fit in uint8"
    ):
        list(data)


BAD_ARRAYS: list[tuple[dict[str, Any], str]] = [
    ({"picture": images(2)}, "has 'picture', expected the model's inputs 'image': name each array"),
    ({"image": images(2), "extra": np.zeros(2)}, "has 'image', 'extra', expected the model's inputs 'image'"),
    ({"labels": np.zeros(2)}, "holds no arrays of inputs"),
    ({"image": images(2), "labels": np.zeros(3)}, r"different numbers of samples \('image' 2, 'labels' 3\)"),
    ({"image": images(0)}, "is empty, its arrays have 0 samples"),
    (
        {"image": images(2)[:, :, :1]},
        r"array 'image' has samples of shape \[1, 1, 2\], expected image: float32",
    ),
    ({"image": np.float32(1)}, "array 'image' is a single value, expected one per sample"),
    ({"image": np.array(["a", "b"])}, "array 'image' holds text, expected numbers"),
    ({"image": np.array([None, 1])}, "array 'image' holds Python objects, which are not read"),
    ({"image": np.zeros(2, np.complex64)}, "array 'image' is complex64, expected numbers"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS, ids=[m[:30] for _, m in BAD_ARRAYS])
def test_npz_that_does_not_fit_is_refused(npz: Callable[..., Path], arrays: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(npz(**arrays), inputs=IMAGE)
    assert "data.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_without_labels_is_refused_where_they_are_needed(npz: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="has no array 'labels', it has 'image', 'y': add one, with a label"):
        open_dataset(npz(image=images(2), y=np.zeros(2)), need_labels=True)


def test_npz_for_a_model_of_fixed_batches_says_what_to_do(npz: Callable[..., Path]) -> None:
    with pytest.raises(
        DataError, match=r"takes batches of 8, samples are fed one by one: compile it with .*image=1"
    ):
        open_dataset(npz(image=images(2)), inputs=(TensorSpec("image", "float32", (8, 1, 2, 2)),))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("pipeline", [None, PREPARED])
def test_npz_with_nan_is_refused(npz: Callable[..., Path], bad: float, pipeline: Pipeline | None) -> None:
    arrays = images(3)
    arrays[1, 0, 1, 1] = bad
    data = open_dataset(npz(image=arrays), inputs=IMAGE, pipeline=pipeline)
    with pytest.raises(DataError, match="'image', sample 1, holds NaN or infinity: correct it or leave"):
        list(data)


def _text_file(path: Path) -> None:
    path.write_text("no zip")


def _zip_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def _cut(path: Path) -> None:
    save(path, image=images(100))
    path.write_bytes(path.read_bytes()[:-200])


def _cut_member(path: Path) -> None:
    save(path, image=images(9))
    with zipfile.ZipFile(path) as file:
        content = file.read("image.npy")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image.npy", content[:-8])


def _endless_header(path: Path) -> None:
    header = b"\x93NUMPY\x02\x00" + (1 << 20).to_bytes(4, "little") + b"(" * (1 << 20)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image.npy", header)


def _flipped(path: Path) -> None:
    save(
        path, compressed=True, image=np.random.default_rng(0).normal(size=(1000, 1, 2, 2)).astype(np.float32)
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_text_file, "is no sound .npz file"),
        (_zip_of_something_else, "array 'readme.txt' is no numpy array"),
        (_cut, "is no sound .npz file"),
        (_cut_member, "array 'image' is cut off or damaged"),
        (_endless_header, "array 'image' is no numpy array"),
        (_flipped, "is no sound .npz file"),
    ],
)
def test_a_damaged_npz_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "data.npz"
    damage(path)
    with pytest.raises(DataError, match=message):
        list(open_dataset(path, inputs=IMAGE))


def _two_of_a_name(path: Path) -> None:
    save(path, image=images(2))
    with zipfile.ZipFile(path) as file:
        content = file.read("image.npy")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("image.npy", content)


def test_npz_with_two_arrays_of_one_name_is_refused(tmp_path: Path) -> None:
    _two_of_a_name(tmp_path / "data.npz")
    with pytest.raises(DataError, match="has two arrays of one name"):
        open_dataset(tmp_path / "data.npz")


@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=9), st.integers(0, 40)), max_size=4)
)
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_with_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, compressed: bool, edits: list[tuple[int, bytes, int]]
) -> None:
    path = tmp_path_factory.mktemp("damage") / "data.npz"
    save(path, compressed, x=images(3), labels=np.arange(3))
    content = bytearray(path.read_bytes())
    for place, inserted, cut in edits:
        start = place % (len(content) + 1)
        content[start : start + cut] = inserted
    path.write_bytes(content)
    try:
        samples = list(open_dataset(path))
    except DataError as e:
        assert "data.npz" in str(e)  # noqa: PT017 - either way is right
    else:
        assert len(samples) == len(open_dataset(path))


def test_npz_is_read_row_by_row(tmp_path: Path) -> None:
    """A thousand rows of 1 MB, compressed to little, are never in memory at once."""
    import tracemalloc

    path = tmp_path / "big.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (200, 1 << 18)}
        np.lib.format.write_array_header_1_0(file, header)
        for i in range(200):
            file.write(np.full(1 << 18, i, np.float32).tobytes())
    tracemalloc.start()
    try:
        seen = [float(sample.data["x"][0, -1]) for sample in open_dataset(path, inputs=(spec_of(1 << 18),))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == list(range(200))
    assert peak < 20 << 20


def spec_of(size: int) -> TensorSpec:
    return TensorSpec("x", "float32", (1, size))


def test_select_spreads_over_all(npz: Callable[..., Path]) -> None:
    data = open_dataset(npz(x=np.arange(10)[:, None], labels=np.repeat([0, 1], 5)))
    assert [s.name for s in data.select(4)] == ["0", "2", "5", "7"]
    assert [s.label for s in data.select(2)] == [0, 1]
    assert len(list(data.select(None))) == len(list(data.select(99))) == 10
    with pytest.raises(ValueError, match="limit is a number of samples from 1, got 0"):
        next(data.select(0))


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first = open_dataset(save(tmp_path / "a.npz", image=images(2)))
    same = open_dataset(save(tmp_path / "b.npz", image=images(2)))
    other = open_dataset(save(tmp_path / "c.npz", image=images(2) + 1))
    assert first.digest == same.digest != other.digest
    assert len(first.digest) == 64


# Images


def paint(path: Path, width: int = 8, height: int = 6) -> Path:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), len(path.name), np.uint8))
    return path


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in ("dog/a.png", "cat/b.jpg", "cat/deep/c.png", "cat/.hidden.png", "cat/notes.txt"):
        paint(tmp_path / name) if "txt" not in name else (tmp_path / name).write_text("x")
    data = open_dataset(tmp_path, need_labels=True)
    assert [(s.name, s.label) for s in data] == [("cat/b.jpg", 0), ("cat/deep/c.png", 0), ("dog/a.png", 1)]
    assert data[2].data == tmp_path / "dog/a.png"
    assert data.notes == ("classes are numbered in the order of their folders' names: cat = 0, dog = 1",)
    with pytest.raises(IndexError, match="has 3 samples"):
        data[3]


def test_folders_are_named_as_the_labels_of_the_model(tmp_path: Path) -> None:
    for name in ("dog/a.png", "1/b.png", "cat/c.png"):
        paint(tmp_path / name)
    data = open_dataset(tmp_path, pipeline=NAMED)
    assert {s.name: s.label for s in data} == {"1/b.png": 1, "cat/c.png": 0, "dog/a.png": 1}
    assert data.notes == ()
    paint(tmp_path / "bird/d.png")
    with pytest.raises(DataError, match=r"label 'bird' is none of the model's 2 labels \(cat, dog ...\)"):
        open_dataset(tmp_path, pipeline=NAMED)


def test_folders_that_are_numbers_are_the_classes(tmp_path: Path) -> None:
    for name in ("10/a.png", "2/b.png"):
        paint(tmp_path / name)
    assert {s.name: s.label for s in open_dataset(tmp_path)} == {"10/a.png": 10, "2/b.png": 2}


def test_images_without_labels(tmp_path: Path) -> None:
    paint(tmp_path / "b.png")
    paint(tmp_path / "a.png")
    data = open_dataset(tmp_path)
    assert not data.labelled
    assert [s.name for s in data] == ["a.png", "b.png"]
    assert data.description == f"{tmp_path}: 2 samples without labels"
    with pytest.raises(DataError, match=r"have no labels: use one sub-folder per class, labels.csv"):
        open_dataset(tmp_path, need_labels=True)


@pytest.mark.parametrize("bare", [None, NAMED], ids=["no pipeline", "one that prepares nothing"])
def test_images_and_texts_are_refused_where_nothing_makes_tensors_of_them(
    tmp_path: Path, bare: Pipeline | None
) -> None:
    paint(tmp_path / "images/a.png")
    (tmp_path / "texts.csv").write_text("text\nhello\n")
    with pytest.raises(DataError, match=r"would be images.*image: float32\[1, 1, 2, 2\].*--pipeline"):
        open_dataset(tmp_path / "images", inputs=IMAGE, pipeline=bare)
    with pytest.raises(DataError, match=r"would be texts.*--pipeline"):
        open_dataset(tmp_path / "texts.csv", inputs=IMAGE, pipeline=bare)
    assert len(open_dataset(tmp_path / "images", inputs=IMAGE, pipeline=PREPARED)) == 1


def test_labels_in_a_csv(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        paint(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label\nc.png,dog\na.png,0\n")
    data = open_dataset(tmp_path, pipeline=NAMED)
    assert [(s.name, s.label) for s in data] == [("c.png", 1), ("a.png", 0)]
    assert data.notes == ("1 images that the labels do not name are left out",)
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text("label,file\n2.5,b.png\n")
    assert [s.label for s in open_dataset(tmp_path, labels=elsewhere)] == [2.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,class\na.png,1\n", "expected the columns file and label, got name, class"),
        ("file,label\nz.png,1\n", "labels.csv, line 2: there is no image .*z.png: paths are relative to"),
        ("file,label\na.png,1\na.png,2\n", "line 3: a.png is labelled twice"),
        ("file,label\na.png\n", "line 2: expected 2 cells as in the first row, got 1"),
        ("file,label\n", "holds no images"),
        ("file,label\na.png,bird\n", "line 2: label 'bird' is none of the model's 2 labels"),
        (b"\xff\xfe\x00", "is no CSV file in UTF-8"),
        ("file,label\n" + "x" * 200000 + ",1\n", "is no CSV file in UTF-8: field larger"),
    ],
)
def test_a_wrong_csv_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, pipeline=NAMED)


def coco(tmp_path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 3, "bbox": [0.5, 0, 2, 2], "iscrowd": 1},
        ],
    } | changes
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_boxes(tmp_path: Path) -> None:
    path = coco(tmp_path)
    data = open_dataset(tmp_path, need_labels=True)
    first, second = data
    assert isinstance(first.label, Boxes)
    assert first.label.boxes.tolist() == [[1, 2, 4, 6], [0.5, 0, 2.5, 2]]
    assert first.label.classes.tolist() == [1, 0]
    assert first.label.ignore.tolist() == [False, True]
    assert second.label.boxes.shape == (0, 4)
    assert data.notes == ("the 2 categories are numbered 0..1 in the order of their ids",)
    path.rename(tmp_path.parent / "other.json")
    assert len(open_dataset(tmp_path, labels=tmp_path.parent / "other.json")) == 2


def test_coco_categories_are_found_by_the_names_of_the_model(tmp_path: Path) -> None:
    coco(tmp_path)
    data = open_dataset(tmp_path, pipeline=Pipeline(labels=("dog", "cat", "car")))
    assert data[0].label.classes.tolist() == [0, 2]
    assert data.notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "expected COCO JSON with a list of images"),
        (
            {"images": [{"id": "7", "file_name": "a.png"}]},
            r"entry 0 of images: expected id \(int\), file_name",
        ),
        ({"images": [{"id": 7, "file_name": "z.png"}]}, "names the image .*z.png, which is not there"),
        ({"categories": [{"id": True, "name": "x"}]}, "entry 0 of categories"),
        (
            {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]},
            "annotation 0 is of an image",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 4, "bbox": [0, 0, 1, 1]}]},
            "annotation 0 is of an image",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1]}]},
            "expected x, y, width and height",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 1, float("nan")]}]},
            "expected x, y",
        ),
    ],
)
def test_wrong_coco_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    coco(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "expected COCO JSON with images"),
        ("[" * 100000, "is no JSON"),
        (b"\xff", "no text"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = coco(tmp_path)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, labels=path)


def test_other_json_beside_images_is_left_alone(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "licence.json").write_text('{"licence": "MIT"}')
    (tmp_path / "empty.json").write_text("")
    assert open_dataset(tmp_path).labelled
    (tmp_path / "second.json").write_text('{"annotations": []}')
    with pytest.raises(
        DataError, match="holds 2 COCO JSON files: say which one has the labels, with --labels"
    ):
        open_dataset(tmp_path)
    (tmp_path / "annotations.json").unlink()
    with pytest.raises(DataError, match=r"second.json: expected COCO JSON with a list of images"):
        open_dataset(tmp_path)
    (tmp_path / "second.json").unlink()
    assert not open_dataset(tmp_path).labelled


@pytest.mark.parametrize("layout", ["beside", "twin", "inside", "given"])
def test_yolo_boxes(tmp_path: Path, layout: str) -> None:
    where = {"beside": "", "twin": "labels", "inside": "labels", "given": "annotated"}[layout]
    pictures = tmp_path / ("images" if layout in ("twin", "inside") else "")
    for name in ("a.png", "b.png"):
        paint(pictures / name, width=100, height=50)
    (tmp_path / where).mkdir(exist_ok=True)
    (tmp_path / where / "a.txt").write_text("3 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 1.0\n")
    data = open_dataset(
        pictures if layout == "inside" else tmp_path, labels=tmp_path / where if layout == "given" else None
    )
    first, second = data
    assert first.label.boxes.tolist() == pytest.approx(np.array([[40, 15, 60, 35], [0, 0, 50, 50]]))
    assert first.label.classes.tolist() == [3, 0]
    assert not first.label.ignore.any()
    assert second.label.boxes.shape == (0, 4)
    assert data.notes == ("1 of 2 images have no .txt file and count as images without boxes",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "line 1: expected a class number, then centre x"),
        ("0 320 240 20 40", "as fractions of the image, got '0 320 240 20 40'"),
        ("-1 0.5 0.5 0.2 0.2", "expected a class number"),
        ("0.5 0.5 0.5 0.2 0.2", "expected a class number"),
        ("cat 0.5 0.5 0.2 0.2", "could not convert string to float"),
        ("0 nan 0.5 0.2 0.2", "expected a class number"),
        ("inf 0.5 0.5 0.2 0.2", "expected a class number"),
    ],
)
def test_wrong_yolo_is_refused(tmp_path: Path, line: str, message: str) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        list(open_dataset(tmp_path))


def test_yolo_of_a_broken_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4")
    with pytest.raises(DataError, match=r"a.png is no image that OpenCV can read"):
        list(open_dataset(tmp_path))


def test_labels_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"expected a .csv with the columns file and label, a COCO .json, or"):
        open_dataset(tmp_path, labels=tmp_path / "labels.xml")
    with pytest.raises(DataError, match="are for a folder of images"):
        open_dataset(save(tmp_path / "a.npz", x=images(1)), labels=tmp_path / "labels.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none of the images in .* has a .txt file of labels"):
        open_dataset(tmp_path, labels=tmp_path / "empty")
    with pytest.raises(DataError, match=r"cannot read .*no.csv: No such file"):
        open_dataset(tmp_path, labels=tmp_path / "no.csv")


def test_digest_of_images_holds_pixels_names_and_labels(tmp_path: Path) -> None:
    def make(folder: str, name: str = "a.png", label: str = "1", width: int = 8) -> str:
        paint(tmp_path / folder / name, width=width)
        (tmp_path / folder / "labels.csv").write_text(f"file,label\n{name},{label}\n")
        return open_dataset(tmp_path / folder).digest

    assert make("1") == make("2")
    assert len({make("3"), make("4", name="b.png"), make("5", label="2"), make("6", width=9)}) == 4


# Text


def text(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


SINGLE = [("good", 1), ("bäd, really", 0)]
PAIRS = [(("a", "b"), 5.0), (("c", "d"), 0.25)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.jsonl", '{"text": "good", "label": 1}\n\n{"text": "bäd, really", "label": 0}\n', SINGLE),
        ("t.csv", 'text,label\ngood,1\n"bäd, really",0\n', SINGLE),
        ("t.csv", 'label,text,id\n1,good,x\n0,"bäd, really",y\n', SINGLE),
        ("t.csv", 'good,1\n"bäd, really",0\n', SINGLE),
        ("t.csv", "\ufefftext,label\r\ngood,1\r\n\"bäd, really\",0\r\n", SINGLE),
        ("t.csv", "text,label\ngood,dog\n\"bäd, really\",cat\n", SINGLE),
        ("t.jsonl", '{"text_a":"a","text_b":"b","score":5}\n{"text_a":"c","text_b":"d","score":0.25}', PAIRS),
        ("t.csv", "sentence1,sentence2,score\na,b,5.0\nc,d,.25\n", PAIRS),
        ("t.csv", "a,b,5.0\nc,d,.25\n", PAIRS),
        ("t.jsonl", '{"text": "good"}\n', [("good", None)]),
        ("t.csv", "good\n", [("good", None)]),
    ],
)  # fmt: skip
def test_texts(tmp_path: Path, name: str, content: str, expected: list[Any]) -> None:
    data = open_dataset(text(tmp_path, name, content), pipeline=NAMED)
    assert [(s.data, s.label) for s in data] == expected
    assert len(data) == len(expected)
    assert data.labelled == (expected[0][1] is not None)
    assert data[len(expected) - 1].data == expected[-1][0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "is empty: give at least one text"),
        ("t.csv", "text,label\n", "is empty: give at least one text"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": ', "line 2 is no JSON"),
        ("t.jsonl", "[" * 100000, "line 1 is no JSON"),
        ("t.jsonl", "[1]", "line 1: expected a JSON object"),
        (
            "t.jsonl",
            '{"body": "a"}',
            "line 1: expected text, or text_a and text_b, and label or score, got body",
        ),
        ("t.jsonl", "{}", "got nothing"),
        ("t.jsonl", '{"text": 5}', "line 1: text must be text that is not empty"),
        ("t.jsonl", '{"text_a": "a", "text_b": ""}', "text_a and text_b must be text that is not empty"),
        ("t.jsonl", '{"text": "a", "label": [1]}', r"label is '\[1\]', expected a number"),
        ("t.jsonl", '{"text": "a", "score": "high"}', "score is 'high', expected a number"),
        ("t.jsonl", '{"text": "a", "score": 1, "label": 1}', "not both"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "sample 1 has no label: add a label"),
        ("t.csv", "text,label\na,bird\n", "line 2: label 'bird' is none of the model's 2 labels"),
        ("t.csv", "a,b,c,d\n", "and label or score in the header, got a, b, c, d"),
        ("t.csv", "text,label\na\n", "line 2: expected 2 cells"),
    ],
)
def test_wrong_text_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(text(tmp_path, name, content), pipeline=NAMED, need_labels=True)


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for name in ("t.jsonl", "t.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\xff")
        with pytest.raises(DataError, match="UTF-8"):
            open_dataset(tmp_path / name)


# Functions


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    monkeypatch.chdir(tmp_path)
    made: list[str] = []

    def make(body: str) -> str:
        name = f"user_data_{len(made)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\nfrom pathlib import Path\n{body}\n")
        made.append(name)
        return f"{name}:samples"

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_a_function_gives_samples(module: Callable[[str], str]) -> None:
    path = list(sys.path)
    body = "def samples():\n    for i in range(3): yield {'image': np.full((1, 2, 2), i, np.float32)}, i"
    data = open_dataset(module(body), inputs=IMAGE, need_labels=True)
    assert [s.label for s in data] == [0, 1, 2]
    assert data[1].data["image"].shape == (1, 1, 2, 2)
    assert (len(data), data.labelled, data[2].name) == (3, True, "2")
    assert sys.path == path


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [np.zeros((1, 2, 2), np.float32)]", Sample(np.zeros((1, 1, 2, 2)))),
        ("return [(np.ones((1, 1, 2, 2), np.float64), 4)]", Sample(np.ones((1, 1, 2, 2)), 4)),
    ],
)
def test_a_function_may_give_bare_arrays(module: Callable[[str], str], body: str, expected: Sample) -> None:
    (sample,) = open_dataset(module(f"def samples():\n    {body}"), inputs=IMAGE)
    assert np.array_equal(sample.data["image"], expected.data)
    assert sample.data["image"].dtype == np.float32
    assert sample.label == expected.label


def test_a_function_may_give_samples_and_paths(module: Callable[[str], str]) -> None:
    reference = module(
        "from edgec.evaluation import Sample\n"
        "def samples(): return [Sample(Path('a.png'), 1, 'first'), 'text']"
    )
    first, second = open_dataset(reference)
    assert (first.data, first.label, first.name) == (Path("a.png"), 1, "first")
    assert (second.data, second.label, second.name) == ("text", None, "1")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("samples = 5", "is int, expected a function"),
        ("other = 5", "cannot import 'user_data_0:samples': module .* has no attribute"),
        ("import no_such_package", "cannot import .*No module named 'no_such_package'"),
        ("def samples(): return 5", "returned int, expected an iterable"),
        ("def samples(): return []", "gave no samples"),
        ("def samples(): return [(1, 2, 3)]", "sample 0 is a tuple of 3, expected data and label"),
        ("def samples(): return [np.zeros((1, 2, 2), np.float32)]", "gives samples without labels"),
        ("def samples(): return [('x', 1)]", "sample 0, is str, expected arrays by input name"),
        (
            "def samples(): return [({'x': np.zeros(3)}, 1)]",
            "sample 0, has 'x', expected the model's inputs 'image'",
        ),
        ("def samples(): return [(np.zeros((1, 2, 3), np.float32), 1)]", r"has samples of shape \[1, 2, 3\]"),
        ("def samples(): return [(np.full((1, 2, 2), np.nan), 1)]", "holds NaN"),
    ],
)
def test_a_wrong_function_is_refused(module: Callable[[str], str], body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(module(body), inputs=IMAGE, need_labels=True)


def test_a_function_that_fails_keeps_its_traceback(module: Callable[[str], str]) -> None:
    with pytest.raises(ZeroDivisionError):
        open_dataset(module("def samples(): return 1 / 0"))


def test_digest_of_a_function_is_that_of_what_it_gives(module: Callable[[str], str]) -> None:
    def digest(item: str) -> str:
        return open_dataset(module(f"def samples(): return [{item}]")).digest

    items = [
        "np.zeros(4)",
        "np.zeros(4, 'f4')",
        "np.zeros((2, 2))",
        "{'a': np.zeros(4)}",
        "(np.zeros(4), 1)",
        "'a'",
        "('a', 'b')",
    ]
    digests = [digest(item) for item in items]
    assert len(set(digests)) == len(items)
    assert digest(items[0]) == digests[0]


def test_a_path_is_never_imported(module: Callable[[str], str]) -> None:
    reference = module("raise SystemExit")
    with pytest.raises(DataError, match=f"there is no data at {reference}"):
        open_dataset(Path(reference))


@pytest.mark.parametrize("spec", ["no.npz", "no/where", "os.path", "a b:c", "os:", ":path"])
def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"there is no data at {spec}: expected a \.npz file"):
        open_dataset(spec)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no data set that edgec reads"):
        open_dataset(text(tmp_path, "t.txt", "x"))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images: expected files that end in .bmp, .jpeg"):
        open_dataset(tmp_path)


def test_every_form_says_what_it_is(tmp_path: Path, module: Callable[[str], str]) -> None:
    paint(tmp_path / "pictures" / "a.png")
    sets: list[Dataset] = [
        open_dataset(save(tmp_path / "a.npz", image=images(1))),
        open_dataset(tmp_path / "pictures"),
        open_dataset(text(tmp_path, "t.csv", "hello\n")),
        open_dataset(module("def samples(): return ['a']")),
    ]
    for data in sets:
        assert data.description == f"{data.source}: 1 sample without labels"
        assert data.digest == data.digest
