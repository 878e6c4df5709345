"""Which inputs a call takes, and what it says of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.artifact import TensorSpec
from edgec.errors import InputError
from edgec.runtime._inputs import check_inputs, input_test

STATIC = (TensorSpec("x", "float32", (1, 4)),)
TWO = (TensorSpec("a", "float32", (2,)), TensorSpec("b", "int64", ()))
DYNAMIC = (TensorSpec("x", "float32", ("n", 4)),)
SHARED = (TensorSpec("ids", "int64", ("n", "t")), TensorSpec("mask", "bool", ("n", "t", 2)))
X = np.zeros((1, 4), np.float32)

CONFORMING: list[tuple[tuple[TensorSpec, ...], dict[str, Any]]] = [
    (STATIC, {"x": X}),
    (TWO, {"b": np.array(3), "a": np.zeros(2, np.float32)}),
    (DYNAMIC, {"x": X}),
    (DYNAMIC, {"x": np.zeros((0, 4), np.float32)}),
    (DYNAMIC, {"x": np.zeros((9, 4), np.float32)}),
    (SHARED, {"ids": np.zeros((2, 7), np.int64), "mask": np.zeros((2, 7, 2), bool)}),
    ((), {}),
]
REFUSED: list[tuple[tuple[TensorSpec, ...], Any, str]] = [
    (STATIC, {}, r"expected the inputs x: float32\[1, 4\]; got none"),
    (STATIC, {"y": X}, r"expected the inputs x: float32\[1, 4\]; got 'y'"),
    (STATIC, {"x": X, "y": X}, "got 'x', 'y'"),
    (STATIC, {"x": X.astype(np.float64)}, r"expected x: float32\[1, 4\], got float64\[1, 4\]"),
    (STATIC, {"x": X.astype(">f4")}, r"expected x: float32\[1, 4\], got >f4\[1, 4\]"),
    (STATIC, {"x": X[0]}, r"expected x: float32\[1, 4\], got float32\[4\]"),
    (STATIC, {"x": X.T}, r"got float32\[4, 1\]"),
    (STATIC, {"x": [[1, 2, 3, 4]]}, "as a numpy array, got list"),
    (STATIC, {"x": None}, "as a numpy array, got NoneType"),
    (STATIC, [X], r"expected a dict of arrays by name \(x: float32\[1, 4\]\), got list"),
    (STATIC, X, "got ndarray"),
    (STATIC, None, "got NoneType"),
    (
        TWO,
        {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.int64)},
        r"expected b: int64\[\], got int64\[1\]",
    ),
    (DYNAMIC, {"x": np.zeros((3, 5), np.float32)}, r"expected x: float32\[n, 4\], got float32\[3, 5\]"),
    (DYNAMIC, {"x": np.zeros((3, 4, 1), np.float32)}, r"got float32\[3, 4, 1\]"),
    (DYNAMIC, {"x": "text"}, "got str"),
    (
        SHARED,
        {"ids": np.zeros((2, 7), np.int64), "mask": np.zeros((2, 6, 2), bool)},
        "one size of the dimension 't' in one call, got 7 in 'ids' and 6 in 'mask'",
    ),
    (SHARED, {"ids": np.zeros((2, 7), np.int64)}, "got 'ids'"),
    (
        (TensorSpec("x", "float32", ("n", "n")),),
        {"x": np.zeros((2, 3), np.float32)},
        "got 2 in 'x' and 3 in 'x'",
    ),
    ((), {"x": X}, "expected the inputs none; got 'x'"),
]


@pytest.mark.parametrize(("specs", "inputs"), CONFORMING)
def test_conforming_inputs_pass(specs: tuple[TensorSpec, ...], inputs: dict[str, Any]) -> None:
    assert input_test(specs)(inputs)
    check_inputs(specs, inputs)


@pytest.mark.parametrize(("specs", "inputs", "message"), REFUSED)
def test_others_are_refused_with_what_was_expected_and_what_came(
    specs: tuple[TensorSpec, ...], inputs: Any, message: str
) -> None:
    assert not input_test(specs)(inputs)
    with pytest.raises(InputError, match=message):
        check_inputs(specs, inputs)


def test_a_dtype_that_is_equal_but_another_object_conforms() -> None:
    # As unpickled arrays and some libraries have it; the quick test does not know it.
    dtype = np.dtype("float32", metadata={"of": "somebody else"})
    x = np.zeros((1, 4), dtype)
    assert x.dtype is not np.dtype("float32")
    check_inputs(STATIC, {"x": x})


DIMENSIONS = st.sampled_from([1, 2, 3, "n", "m"])
SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["float32", "int64"]),
        st.lists(DIMENSIONS, max_size=3).map(tuple),
    ),
    max_size=3,
    unique_by=lambda spec: spec.name,
)
ARRAYS = st.builds(
    np.zeros, st.lists(st.integers(0, 3), max_size=3).map(tuple), st.sampled_from(["float32", "int64"])
)


@given(SPECS, st.dictionaries(st.sampled_from(["a", "b", "c"]), ARRAYS, max_size=3))
def test_the_quick_test_and_the_thorough_one_agree(specs: list[TensorSpec], inputs: dict[str, Any]) -> None:
    try:
        check_inputs(specs, inputs)
        conforms = True
    except InputError:
        conforms = False
    assert input_test(specs)(inputs) == conforms


@given(SPECS, st.dictionaries(st.sampled_from(["n", "m"]), st.integers(0, 3), min_size=2))
def test_they_agree_on_what_fits(specs: list[TensorSpec], sizes: dict[str, int]) -> None:
    inputs = {
        spec.name: np.zeros(
            [size if isinstance(size, int) else sizes[size] for size in spec.shape], spec.dtype
        )
        for spec in specs
    }
    check_inputs(specs, inputs)
    assert input_test(specs)(inputs)
