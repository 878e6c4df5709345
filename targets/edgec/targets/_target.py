"""What a target is: the values that compiler, check and report read from ``data/*.toml``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

PRECISIONS = (
    "fp32", "fp16", "bf16", "int8", "int16x8", "int8-dynamic", "int8-weights", "int4-weights", "mixed"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that a target runs models with.

    Attributes:
        name: Name of the backend and the converter: ``openvino``.
        version: Version line, as a PEP 440 specifier: ``>=2026.2,<2027``.
        device: What the engine calls the place it runs on: ``CPU``, ``GPU``, ``NPU``.
        precisions: Precisions that are candidates here, each one of `PRECISIONS`.
        storage_only: Those of `precisions` that shrink the file but are computed in fp32, so that
            no speed-up is to be expected.
        needs: For a precision that not every device of the class has, the CPU features of which a
            device must have at least one: ``(("bf16", ("avx512_bf16", "amx_bf16")),)``.
    """

    name: str
    version: str
    device: str
    precisions: tuple[str, ...]
    storage_only: tuple[str, ...] = ()
    needs: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def precisions_on(self, features: Collection[str]) -> tuple[str, ...]:
        """Return those of `precisions` that a device whose CPU has `features` can compute."""
        needs = dict(self.needs)
        return tuple(p for p in self.precisions if p not in needs or any(f in features for f in needs[p]))


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
        residual_one_input: Whether a residual Add has one dequantized input: always where `weight_qdq` is set
            (TensorRT), otherwise where that spares a zero point (OpenVINO).
        full_integer: Whether every operator must be quantized.
        weight_qdq: Whether weights stay float32 in the file, behind an explicit Q and DQ (TensorRT).
        weight_zero_point: Whether weights that their author quantized around another zero point may keep it,
            moved to int8 (ONNX Runtime), where their integers do not fit around 0.
        saturates_without: CPU features of which a device must have at least one, or products of
            full-range weights and activations can saturate 16 bits; empty where they cannot.
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
    weight_qdq: bool = False
    weight_zero_point: bool = False
    saturates_without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttributeLimit:
    """What an attribute of an operator must keep to.

    Attributes:
        operator: ONNX operator: ``Conv``.
        attribute: Name of its attribute, as ONNX has it: ``strides``. Where the attribute is absent,
            its ONNX default is what counts.
        minimum: Smallest value, of every element where it is a list; None where there is no limit.
        maximum: Largest value, of every element where it is a list; None where there is no limit.
        allowed: The values it may have; empty where every one between the limits is.
        reason: Whose rule it is, and the way out.
    """

    operator: str
    attribute: str
    minimum: int | None = None
    maximum: int | None = None
    allowed: tuple[str | int, ...] = ()
    reason: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the operators of a model must keep to; None where there is no limit.

    Attributes:
        min_opset: Oldest ONNX opset that the target's form of the model can be written in.
        max_opset: Newest ONNX opset the engine takes.
        max_ir_version: Newest ONNX IR version the engine takes.
        max_rank: Most axes a tensor may have.
        static_shapes: Whether every dimension must be pinned.
        max_batch: Largest first dimension of an activation.
        refused_operators: ONNX operators that cannot run, with the reason and the way out.
        allowed_operators: ONNX operators that can run; empty where every one not refused can.
        refused_dtypes: dtypes of tensors that cannot run, with the reason and the way out.
        attributes: What attributes of operators must keep to.
    """

    min_opset: int | None = None
    max_opset: int | None = None
    max_ir_version: int | None = None
    max_rank: int | None = None
    static_shapes: bool = False
    max_batch: int | None = None
    refused_operators: tuple[tuple[str, str], ...] = ()
    allowed_operators: tuple[str, ...] = ()
    refused_dtypes: tuple[tuple[str, str], ...] = ()
    attributes: tuple[AttributeLimit, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """On which hosts a latency measured here says which candidate is the fastest on the target.

    Attributes:
        arch: Machine of such a host; None where no host's CPU stands in for the target.
        features: CPU features that such a host must have, every one.
        without: CPU features that such a host must not have, any of them.
        ranking: Precisions, fastest first, where nothing is measured.
        rule: In words: how candidates are ranked where no host stands in, and why.
    """

    arch: str | None
    features: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    ranking: tuple[str, ...]
    rule: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A class of device, as the compiler sees it.

    Attributes:
        name: Unique, lower case, with hyphens: ``jetson-orin-nano-jp6``.
        title: What people call it.
        family: Which toolchain builds for it: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``litert``.
        arch: Machine of the CPU, as ``platform.machine()`` names it on Linux: ``aarch64``; ``any``
            where the same artifact serves every one.
        engines: In order of preference.
        fallback: What to run on when the first engine cannot; None where there is nothing else.
        quantization: The legal form of int8; None where there is none.
        limits: Of operators and attributes.
        memory_mib: Memory that a model may take at run time, in MiB.
        storage_mib: Storage that an artifact may take, in MiB.
        simd: Features of the CPU that the values assume, as ``/proc/cpuinfo`` names them: ``avx2``.
        stand_in: On which hosts a measurement stands in for the target.
        accelerator: What the toolchain needs to know of the device: compute capability, DLA cores,
            Vela's accelerator configuration ...
        sources: Public sources of the values: what the comments of its file call it, and where it is.
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
    stand_in: StandIn
    fallback: Engine | None = None
    accelerator: tuple[tuple[str, str | int], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()

    def measured_on(self, arch: str, features: Collection[str]) -> bool:
        """Return whether a latency measured on such a host stands in for the target.

        Args:
            arch: Machine of the host: ``x86_64``, as `host_arch` gives it.
            features: CPU features of the host, as `host_features` gives them.
        """
        rule = self.stand_in
        return (
            rule.arch == arch
            and all(f in features for f in rule.features)
            and not any(f in features for f in rule.without)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every value in the form that ``edgec targets NAME --json`` prints.

        Tables of the file (needs, refused operators, accelerator, sources) are objects by name.
        """
        values = asdict(self)
        for engine in [*values["engines"], values["fallback"] or {"needs": ()}]:
            engine["needs"] = {precision: list(features) for precision, features in engine["needs"]}
        for table in ("refused_operators", "refused_dtypes"):
            values["limits"][table] = dict(values["limits"][table])
        for table in ("accelerator", "sources"):
            values[table] = dict(values[table])
        lists: dict[str, Any] = _with_lists(values)
        return lists


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_lists(item) for item in value]
    return value
