"""LiteRT: what the conformance suite does not ask of every engine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from edgec.artifact import TensorSpec
from edgec.errors import ArtifactError, BackendUnavailableError, ManifestError
from edgec.runtime.backends import LoadOptions
from edgec.runtime.backends.litert import LiteRtBackend, LiteRtProgram
from edgec.runtime.testing import MemoryPayload, Node
from edgec.runtime.testing.litert import int8_convolution_members, litert_members, litert_spec

# A delegate in as few lines as the interface has: it takes no operator.
DELEGATE = """
#include <stddef.h>
#include <stdint.h>
typedef struct Delegate {
    void *data; int (*prepare)(void *, struct Delegate *);
    void *from, *to, *release; int64_t flags; void *opaque;
} Delegate;
static int prepare(void *context, Delegate *delegate) { return 0; }
static Delegate only = {NULL, prepare};
Delegate *tflite_plugin_create_delegate(char **k, char **v, size_t n, void *report) { return &only; }
void tflite_plugin_destroy_delegate(Delegate *delegate) {}
"""
PERMUTED = {"boundary": {"x": {"permutation": [0, 2, 3, 1]}, "y": {"permutation": [0, 2, 3, 1]}}}


def convolution(device: str = "CPU", *, nchw: bool = False, **options: Any) -> LiteRtProgram:
    shapes = ((1, 8, 16, 16), (1, 16, 16, 16)) if nchw else ((1, 16, 16, 8), (1, 16, 16, 16))
    return LiteRtBackend().load(
        litert_spec(precision="int8", device=device),
        MemoryPayload(int8_convolution_members()),
        (TensorSpec("x", "float32", shapes[0]),),
        (TensorSpec("y", "float32", shapes[1]),),
        LoadOptions(**options),
    )


@pytest.fixture
def x() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((1, 16, 16, 8)).astype(np.float32)


def test_channels_change_places_as_the_recipe_says(x: np.ndarray[Any, Any]) -> None:
    expected = convolution().run({"x": x})["y"]
    assert np.ptp(expected) > 1
    got = convolution(nchw=True, recipe=PERMUTED).run({"x": x.transpose(0, 3, 1, 2)})["y"]
    np.testing.assert_array_equal(got, expected.transpose(0, 3, 1, 2))
    assert got.flags.c_contiguous


def test_the_reference_kernels_agree_within_a_step(x: np.ndarray[Any, Any]) -> None:
    fast, exact = (convolution(d).run({"x": x})["y"] for d in ("CPU", "CPU-reference"))
    assert np.abs(fast - exact).max() <= 0.05 + 1e-6


def test_floats_outside_the_range_and_nan_are_quantized_like_onnx_does() -> None:
    x = np.zeros((1, 16, 16, 8), np.float32)
    extreme = x.copy()
    extreme[0, 0, 0, :4] = [1e30, -1e30, np.inf, np.nan]
    clipped = x.copy()
    clipped[0, 0, 0, :3] = [127 * 0.05, -128 * 0.05, 127 * 0.05]
    program = convolution()
    np.testing.assert_array_equal(program.run({"x": extreme})["y"], program.run({"x": clipped})["y"])


@pytest.mark.parametrize("permutation", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, True], "0123", 3, [0.0, 1, 2, 3]])
def test_a_malformed_permutation_is_refused(permutation: Any) -> None:
    with pytest.raises(ManifestError, match=r"recipe\.boundary\.x\.permutation must be"):
        convolution(recipe={"boundary": {"x": {"permutation": permutation}}})


@pytest.mark.parametrize("boundary", [[], {"x": 3}, "x"])
def test_a_malformed_boundary_is_refused(boundary: Any) -> None:
    with pytest.raises(ManifestError):
        convolution(recipe={"boundary": boundary})


def test_other_axes_than_declared_are_refused() -> None:
    with pytest.raises(ArtifactError, match="the model has the axes"):
        convolution(nchw=True)


@pytest.mark.parametrize("device", ["NPU", "edgetpu"])
def test_an_npu_needs_a_delegate_that_the_application_names(device: str) -> None:
    with pytest.raises(BackendUnavailableError, match=r"delegate, and none was named.*load"):
        convolution(device)


def test_an_ethos_u_runs_nowhere_but_on_a_microcontroller() -> None:
    with pytest.raises(BackendUnavailableError, match="flash the artifact's Vela file"):
        convolution("ethos-u")


@pytest.mark.parametrize("library", ["/nowhere/libdelegate.so", "libm.so.6", __file__])
def test_what_is_no_delegate_is_refused(library: str) -> None:
    with pytest.raises(BackendUnavailableError, match="delegate"):
        convolution("NPU", delegate=Path(library))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="a delegate is C, and there is no compiler")
def test_a_delegate_is_loaded_and_what_it_leaves_runs_on_the_cpu(
    tmp_path: Path, x: np.ndarray[Any, Any]
) -> None:
    source, library = tmp_path / "delegate.c", tmp_path / "libdelegate.so"
    source.write_text(DELEGATE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    program = convolution("NPU", delegate=library)
    assert any("CONV_2D" in node for node in program.nodes_elsewhere())
    assert program.placement == {"CPU": 1}
    np.testing.assert_array_equal(program.run({"x": x})["y"], convolution().run({"x": x})["y"])


def test_axes_that_are_fixed_in_the_file_stay_so() -> None:
    members = litert_members(
        [Node("Relu", ["x"], ["y"])],
        [TensorSpec("x", "float32", (2, 3))],
        [TensorSpec("y", "float32", (2, 3))],
    )
    free = (TensorSpec("x", "float32", ("n", 3)),), (TensorSpec("y", "float32", ("n", 3)),)
    with pytest.raises(ArtifactError, match=r"the model has the axes \[2, 3\]"):
        LiteRtBackend().load(litert_spec(), MemoryPayload(members), *free, LoadOptions())
