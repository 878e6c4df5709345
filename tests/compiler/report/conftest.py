"""A build as the compiler describes it, with every section filled."""

from __future__ import annotations

from copy import deepcopy

import pytest

from edgec.compiler.report import Accuracy, ArtifactInfo, Build, CandidateInfo, Latency, Parity, TensorInfo

INPUTS: list[TensorInfo] = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
OUTPUTS: list[TensorInfo] = [{"name": "scores", "dtype": "float32", "shape": ["batch", 10]}]


def _latency(p50: float, p90: float, p99: float) -> Latency:
    return {"p50": p50, "p90": p90, "p99": p99, "mean": p50 * 1.02, "cv": 0.031, "n": 4000}


def _accuracy(score: float, low: float, high: float, bound: float) -> Accuracy:
    return {
        "metric": "top1",
        "source": 0.9907,
        "artifact": score,
        "ci95": [low, high],
        "n": 540,
        "drop_bound": bound,
        "verdict": "pass" if bound <= 0.01 else "inconclusive",
    }


def _parity(snr_db: float, error: float, tolerance: float, reference: str) -> Parity:
    return {
        "passed": error <= tolerance,
        "snr_db": snr_db,
        "max_abs_error": error,
        "tolerance": tolerance,
        "reference": reference,
        "outputs": [
            {
                "name": "scores",
                "max_abs_error": error,
                "snr_db": snr_db,
                "cosine": 0.99998,
                "tolerance": tolerance,
            }
        ],
    }


_SOURCE = "the source model in ONNX Runtime, fp32, optimizations off"
_QDQ = "its own Q/DQ graph in ONNX Runtime"


def _candidates() -> list[CandidateInfo]:
    return [
        {
            "name": "onnxruntime int8",
            "engine": "onnxruntime",
            "precision": "int8",
            "status": "winner",
            "reason": "the fastest of 3 that keep top-1 within 1 % of fp32",
            "size_bytes": 44_120,
            "parity": _parity(61.2, 0.0031, 0.012, _QDQ),
            "accuracy": _accuracy(0.9889, 0.976, 0.9949, 0.0064),
            "latency_ms": _latency(0.0182, 0.0194, 0.0311),
            "speedup": 2.31,
            "source_snr_db": 33.9,
        },
        {
            "name": "onnxruntime fp32",
            "engine": "onnxruntime",
            "precision": "fp32",
            "status": "admissible",
            "reason": "2.31 times slower than the winner",
            "size_bytes": 152_300,
            "parity": _parity(131.0, 2.1e-6, 9.4e-6, _SOURCE),
            "accuracy": _accuracy(0.9907, 0.9785, 0.996, 0.0),
            "latency_ms": _latency(0.042, 0.0447, 0.0713),
            "speedup": 1.0,
            "source_snr_db": 131.0,
        },
        {
            "name": "openvino fp32",
            "engine": "openvino",
            "precision": "fp32",
            "status": "admissible",
            "reason": "1.52 times slower than the winner",
            "size_bytes": 158_900,
            "parity": _parity(128.4, 2.9e-6, 9.4e-6, _SOURCE),
            "accuracy": _accuracy(0.9907, 0.9785, 0.996, 0.0),
            "latency_ms": _latency(0.0276, 0.0302, 0.0525),
            "speedup": 1.52,
            "source_snr_db": 128.4,
        },
        {
            "name": "openvino bf16",
            "engine": "openvino",
            "precision": "bf16",
            "status": "refused",
            "reason": "top-1 may be as much as 1.31 points below fp32 (allowed: 1)",
            "size_bytes": 158_900,
            "parity": _parity(44.1, 0.031, 0.055, _SOURCE),
            "accuracy": _accuracy(0.9815, 0.9662, 0.99, 0.0131),
            "latency_ms": _latency(0.0217, 0.023, 0.048),
            "speedup": 1.94,
            "source_snr_db": 44.1,
        },
        {
            "name": "openvino int8",
            "engine": "openvino",
            "precision": "int8",
            "status": "failed",
            "reason": "parity: 'scores' is off by 0.4 (allowed 0.012); first tensor that diverges: 'conv2'",
        },
    ]


def _artifact() -> ArtifactInfo:
    parity, accuracy = _parity(61.2, 0.0031, 0.012, _QDQ), _accuracy(0.9889, 0.976, 0.9949, 0.0064)
    return {
        "target": "cpu-x86_64",
        "target_title": "PC or server, x86-64",
        "path": "build/digits-cpu-x86_64.edgec",
        "size_bytes": 63_801,
        "content_digest": "sha256:" + "5c" * 32,
        "engine": "onnxruntime",
        "engine_version": "1.31.1",
        "device": "CPU",
        "precision": "int8",
        "effective_precision": "int8",
        "state": "ready",
        "parity": parity,
        "accuracy": accuracy,
        "latency_ms": _latency(0.0182, 0.0194, 0.0311),
        "measured_on": "Measured on this machine in ONNX Runtime 1.31.1, 1 thread, candidates interleaved.",
        "placement": {"CPU": 12},
        "candidates": _candidates(),
        "decisions": [
            "onnxruntime int8 won: it is the fastest of 3 that keep top-1 within 1 % of fp32.",
            "openvino bf16 is faster than fp32, but 540 samples leave a loss of up to 1.31 points possible.",
            "Activations are uint8 and weights int8 per channel, as the target's description asks.",
        ],
        "warnings": [],
        "not_run": [],
        "pipeline": {
            "preprocess": [{"kind": "scale", "by": 0.0625}],
            "postprocess": [{"kind": "softmax"}, {"kind": "top_k", "k": 3}],
            "labels": [str(n) for n in range(10)],
        },
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }


def _jetson() -> ArtifactInfo:
    parity = _parity(58.0, 0.004, 0.012, _QDQ)
    return {
        "target": "jetson-orin-nano-jp6",
        "target_title": "Jetson Orin Nano, JetPack 6",
        "path": "build/digits-jetson-orin-nano-jp6.edgec",
        "size_bytes": 171_240,
        "content_digest": "sha256:" + "a1" * 32,
        "engine": "tensorrt",
        "engine_version": "1.31.1",
        "device": "GPU",
        "precision": "int8",
        "effective_precision": None,
        "state": "fallback",
        "parity": parity,
        "accuracy": _accuracy(0.9889, 0.976, 0.9949, 0.0064),
        "latency_ms": None,
        "measured_on": "Numerics ran in ONNX Runtime on this machine; no time was measured: it has no GPU.",
        "placement": {"CPU": 21},
        "candidates": [
            {
                "name": "tensorrt int8",
                "engine": "tensorrt",
                "precision": "int8",
                "status": "winner",
                "reason": "the only candidate with symmetric Q/DQ",
                "size_bytes": 153_000,
                "parity": parity,
                "accuracy": _accuracy(0.9889, 0.976, 0.9949, 0.0064),
            }
        ],
        "decisions": ["int8 was chosen by the target's order of preference: nothing could be timed here."],
        "warnings": [],
        "not_run": ["The TensorRT engine was not built: that needs the Jetson itself."],
        "pipeline": None,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }


_BUILD: Build = {
    "edgec": "0.1.0",
    "model": {
        "name": "digits",
        "version": "1.0",
        "file": "examples/digits/digits.onnx",
        "sha256": "e3" * 32,
        "size_bytes": 151_993,
        "nodes": 14,
        "parameters": 37_706,
        "opset": 17,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    },
    "command": [
        "edgec",
        "compile",
        "examples/digits/digits.onnx",
        "--target",
        "cpu",
        "--target",
        "jetson",
        "-o",
        "build",
    ],
    "options": {"precision": "auto", "max_drop": 0.01, "seed": 0},
    "data": {
        "calibration": {
            "description": "digits/calibration.npz",
            "digest": "0b" * 32,
            "samples": 128,
        },
        "evaluation": {"description": "examples/digits/test.npz", "digest": "7f" * 32, "samples": 540},
        "synthetic": None,
    },
    "machine": {
        "cpu": "AMD EPYC 9R14",
        "cores": 2,
        "arch": "x86_64",
        "os": "Linux 6.1",
        "python": "3.11.2",
        "governor": None,
        "load_1m": 0.42,
        "memory_mib": 7840,
    },
    "tools": {"onnx": "1.23.2", "onnxruntime": "1.31.1", "openvino": "2026.4.1", "onnxslim": "0.1.98"},
    "duration_s": 41.7,
    "artifacts": [_artifact(), _jetson()],
    "skipped": [],
}


@pytest.fixture
def build() -> Build:
    """A build for two targets, one measured here and one not; a new copy for each test."""
    return deepcopy(_BUILD)
