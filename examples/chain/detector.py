"""Build the detector of the chain: connected regions of ink, found by a graph of max-pooling.

Nothing is trained. Each pixel of ink carries the extent of what it knows of its region; 3x3 max-pooling,
masked by the ink, spreads it one pixel per round until every pixel of a region knows the box around it. One
pixel of each region, the one of the largest number, speaks for it.

    python examples/chain/detector.py build/chain/detector.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 64, 192
INK = 0.25
BRIDGE = 3  # pixels: gaps of a stroke up to this are closed
ROUNDS = 72


def detector() -> onnx.ModelProto:
    """Return the graph: from ``image``, float32[1, 1, 64, 192] from 0 to 1, to a box and a score per pixel.

    ``boxes`` are corners in pixels, float32[1, 12288, 4]; ``scores``, float32[1, 12288, 1], are the
    darkest ink of the region at the pixel that speaks for it, and 0 at the others.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    number = rows * WIDTH + columns + 1
    places = np.stack([columns + 1, rows + 1, WIDTH - columns, HEIGHT - rows, number])[None]
    size = 2 * (BRIDGE // 2) + 1
    nodes = [
        helper.make_node("Greater", ["image", "ink"], ["dark"]),
        helper.make_node("Cast", ["dark"], ["stroke"], to=TensorProto.FLOAT),
        helper.make_node(
            "MaxPool", ["stroke"], ["mask"], kernel_shape=[size, size], pads=[size // 2] * 4, name="bridge"
        ),
        # What a bridged gap lies within is known by its ink alone, so that boxes do not grow.
        helper.make_node("Mul", ["places", "stroke"], ["known_places"]),
        helper.make_node("Mul", ["image", "stroke"], ["known_ink"]),
        helper.make_node("Concat", ["known_places", "known_ink"], ["spread_0"], axis=1),
    ]
    for i in range(ROUNDS):
        nodes.append(
            helper.make_node("MaxPool", [f"spread_{i}"], [f"pooled_{i}"], kernel_shape=[3, 3], pads=[1] * 4)
        )
        nodes.append(helper.make_node("Mul", [f"pooled_{i}", "mask"], [f"spread_{i + 1}"]))
    parts = ["right", "bottom", "from_right", "from_bottom", "speaker", "darkest"]
    nodes += [
        helper.make_node("Split", [f"spread_{ROUNDS}", "six"], parts, axis=1),
        helper.make_node("Sub", ["width", "from_right"], ["left"]),
        helper.make_node("Sub", ["height", "from_bottom"], ["top"]),
        helper.make_node("Concat", ["left", "top", "right", "bottom"], ["corners"], axis=1),
        helper.make_node("Reshape", ["corners", "as_columns"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Equal", ["speaker", "number"], ["speaks"]),
        helper.make_node("Cast", ["speaks"], ["voice"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["voice", "darkest"], ["score"]),
        helper.make_node("Reshape", ["score", "as_rows"], ["scores"]),
    ]
    pixels = HEIGHT * WIDTH
    constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "ink": np.array(INK, np.float32),
        "places": places,
        "number": number[None, None],
        "width": np.array(WIDTH, np.float32),
        "height": np.array(HEIGHT, np.float32),
        "six": np.ones(6, np.int64),
        "as_columns": np.array([1, 4, pixels], np.int64),
        "as_rows": np.array([1, pixels, 1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "regions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, HEIGHT, WIDTH])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, pixels, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, pixels, 1]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Write the graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    onnx.save(detector(), parser.parse_args().output)


if __name__ == "__main__":
    main()
