"""Tiny models for OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino as ov

from edgec.artifact import EngineSpec


def openvino_members(members: Mapping[str, bytes], *, precision: str = "fp32") -> dict[str, bytes]:
    """Turn an ONNX payload into one for OpenVINO, which does it itself.

    Args:
        members: As `onnx_members` gives them.
        precision: ``fp16`` to store weights in half the space, ``fp32`` to leave them.

    Returns:
        ``model.bin``, where there are weights, and ``model.xml``.
    """
    with TemporaryDirectory(prefix="edgec-") as directory:
        for name, data in members.items():
            Path(directory, name).write_bytes(data)
        model = ov.Core().read_model(f"{directory}/model.onnx")
        ov.save_model(model, f"{directory}/model.xml", compress_to_fp16=precision == "fp16")
        return {
            name: data for name in ("model.bin", "model.xml") if (data := Path(directory, name).read_bytes())
        }


def openvino_spec(*, weights: bool = True, precision: str = "fp32") -> EngineSpec:
    """Return how OpenVINO runs a payload of `openvino_members`."""
    files = ("model.xml", "model.bin") if weights else ("model.xml",)
    return EngineSpec(name="openvino", version=">=2026.2", device="CPU", precision=precision, files=files)
