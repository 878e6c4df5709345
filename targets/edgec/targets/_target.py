"""Target descriptions, one TOML file each in ``data/``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that a target runs models with.

    Attributes:
        name: Name of the backend and the converter: ``openvino``.
        version: Version line, as a PEP 440 specifier: ``>=2026.2,<2027``.
        device: What the engine calls the place it runs on: ``CPU``, ``GPU``, ``NPU``.
        precisions: Precisions that are candidates here, names as in ``edgec.artifact.PRECISIONS``.
    """

    name: str
    version: str
    device: str
    precisions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QuantizationScheme:
    """The legal form of int8 on a target.

    Attributes:
        activation_dtype: ``uint8`` or ``int8``.
        activation_symmetric: Whether the zero point of activations must be 0 (int8) or 128 (uint8).
        weight_dtype: ``int8`` or ``uint8``.
        weight_symmetric: Whether the zero point of weights must be 0.
        per_channel: Whether weights have one scale per output channel.
        bias_dtype: ``int32`` (quantized) or ``float32``.
        io_dtype: dtype of graph inputs and outputs: ``float32``, or ``int8`` for full-integer engines.
        residual_one_input: Whether a residual Add may have one dequantized input only (TensorRT).
        full_integer: Whether every operator must be quantized.
    """

    activation_dtype: str
    activation_symmetric: bool
    weight_dtype: str
    weight_symmetric: bool
    per_channel: bool
    bias_dtype: str
    io_dtype: str
    residual_one_input: bool = False
    full_integer: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the operators of a model must keep to; None where there is no limit.

    Attributes:
        max_opset: Newest ONNX opset the engine takes.
        max_ir_version: Newest ONNX IR version the engine takes.
        max_rank: Most axes a tensor may have.
        static_shapes: Whether every dimension must be pinned.
        refused_operators: ONNX operators that cannot run, with the reason and the way out.
        allowed_operators: ONNX operators that can run; empty where every one not refused can.
    """

    max_opset: int | None = None
    max_ir_version: int | None = None
    max_rank: int | None = None
    static_shapes: bool = False
    refused_operators: tuple[tuple[str, str], ...] = ()
    allowed_operators: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A class of device, as the compiler sees it.

    Attributes:
        name: Unique, lower case, with hyphens: ``jetson-orin-nano-jp6``.
        title: What people call it.
        family: Which toolchain builds for it: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``litert``.
        arch: Machine of the CPU, as ``platform.machine()`` names it: ``aarch64``.
        engines: In order of preference.
        quantization: The legal form of int8; None where there is none.
        limits: Of operators and attributes.
        memory_mib: Memory that a model may take at run time, in MiB.
        storage_mib: Storage that an artifact may take, in MiB.
        simd: Features of the CPU that the figures assume: ``avx2``.
        accelerator: What the toolchain needs to know of the device: compute capability, DLA cores,
            Vela's accelerator configuration ...
        sources: Public sources of the values.
    """

    name: str
    title: str
    family: str
    arch: str
    engines: tuple[Engine, ...]
    quantization: QuantizationScheme | None
    limits: Limits
    memory_mib: int
    storage_mib: int
    simd: tuple[str, ...]
    accelerator: tuple[tuple[str, str | int], ...] = ()
    sources: tuple[str, ...] = ()
