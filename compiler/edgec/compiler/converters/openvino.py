"""OpenVINO: the payload is its intermediate representation."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import onnx
import openvino as ov

from edgec.artifact import EngineSpec, atomic_write
from edgec.compiler.converters import Converted, Prepared, fallback_spec
from edgec.compiler.model import first_line, walk_nodes
from edgec.compiler.onnx_payload import GRAPH, write_onnx_payload
from edgec.compiler.passes.fold_zero_points import fold_zero_points
from edgec.compiler.weight_only import BITS, compress_weights
from edgec.errors import ConversionError
from edgec.targets import Engine, Target

_XML, _BIN = "model.xml", "model.bin"
_NOT_RUN = (
    "the {device} plugin compiles the model on the device; where none is at hand here, numerics are proven "
    "on the CPU, and placement and speed on the {device} are not"
)


class OpenVinoConverter:
    """Writes ``model.xml`` and ``model.bin``.

    The precision of the arithmetic is no property of the representation: the runtime asks for it
    when it loads, for otherwise a CPU with bf16 would run an fp32 model in bf16 without a word.
    """

    precisions = ("fp32", "fp16", "bf16", "int8", "int8-weights", "int4-weights", "mixed")
    mixes = "bf16"

    def prepare(self, model: onnx.ModelProto, precision: str, target: Target) -> onnx.ModelProto:
        """Return the model itself, or one with DequantizeLinear before its products.

        fp16 and bf16 are matters of storage and of the loading device.
        """
        return compress_weights(model, BITS[precision], "dequantize") if precision in BITS else model

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        """Convert by OpenVINO's ONNX frontend; weights are stored as fp16 where arithmetic is not finer.

        Zero points of Q/DQ graphs are folded first: its kernels are faster without.
        """
        source = fold_zero_points(prepared.model)
        with tempfile.TemporaryDirectory(prefix="edgec-", dir=directory.parent) as scratch:
            write_onnx_payload(source, Path(scratch), prepared.weights_from)
            try:
                model = ov.Core().read_model(str(Path(scratch) / GRAPH))
                ov.save_model(
                    model, str(directory / _XML), compress_to_fp16=prepared.precision in ("fp16", "bf16")
                )
            except RuntimeError as e:
                raise ConversionError(
                    f"OpenVINO {self.version()} refuses the model: {_reason(str(e))}"
                ) from e
            del model  # it maps the files of the scratch directory
        _renumber(directory / _XML, source)
        spec = EngineSpec(
            name=engine.name,
            version=engine.version,
            device=engine.device,
            precision=prepared.precision,
            files=(_XML, _BIN),
        )
        on_cpu = engine.device == "CPU"
        return Converted(
            files={_BIN: directory / _BIN, _XML: directory / _XML},
            engine=spec,
            fallback=fallback_spec(target, prepared.precision, spec.files),
            not_run=() if on_cpu else (_NOT_RUN.format(device=engine.device),),
        )

    def version(self) -> str:
        """Return the version of OpenVINO, without its build."""
        return str(ov.__version__).split("-", maxsplit=1)[0]


def _renumber(xml: Path, source: onnx.ModelProto) -> None:
    """Give the layers that OpenVINO named by a counter of the whole process names that stay the same.

    Names from the source stay, whatever they look like.
    """
    mine = {node.name for node in walk_nodes(source.graph)}
    mine |= {name for node in walk_nodes(source.graph) for name in node.output}
    numbers: dict[str, int] = {}

    def stable(match: re.Match[str]) -> str:
        name = match[2]
        if name in mine:
            return match[0]
        kind = name.rpartition("_")[0]
        return f"{match[1]}{kind}_{numbers.setdefault(name, len(numbers))}{match[3]}"

    text = xml.read_text(encoding="utf-8")
    renamed = re.sub(r'(<layer id="\d+" name=")(\w+_\d+)(")', stable, text)
    with atomic_write(xml) as file:
        file.write(renamed.encode())


_TELLS_NOTHING = (
    "Exception from",
    "Check '",
    "FrontEnd API failed",
    "Model wasn't fully converted",
    "Summary:",
)


def _reason(message: str) -> str:
    # OpenVINO's first lines name its own source file, or announce a summary; what helps comes later.
    lines = [line.strip().removeprefix("-- ") for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_TELLS_NOTHING)]
    return first_line("\n".join(telling or lines))
