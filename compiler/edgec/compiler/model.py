"""Source models: read, checked, with the dimensions that the user pins."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper as external

from edgec.artifact import TensorSpec
from edgec.compiler.origin import Origin
from edgec.errors import ModelError

# A protobuf message cannot be larger than 2 GiB; from here on weights stay in their own files.
LARGE_BYTES = 1_900_000_000
_OLDEST_OPSET = 7  # the oldest that ONNX Runtime still promises to run


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """An ONNX model as its author gave it, read and checked.

    Attributes:
        path: The file.
        proto: Its content with the user's pins applied; the weights of a `large` model are not in it.
        inputs: Tensors it takes, initializers left out.
        outputs: Tensors it gives.
        sha256: Digest of the file and, in the order of their names, of its external data files; of a model of
            another framework, of what its author gave.
        size_bytes: Of the file and its external data.
        external_files: Names of the external data files, relative to the file's directory.
        origin: Where it came from, of a model of another framework.
    """

    path: Path
    proto: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str
    size_bytes: int
    external_files: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def large(self) -> bool:
        """Whether the weights are too big for one protobuf message."""
        return self.size_bytes > LARGE_BYTES

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return opset_of(self.proto)

    @property
    def parameters(self) -> int:
        """Elements in all initializers."""
        return sum(int(np.prod(t.dims, dtype=np.int64)) for t in self.proto.graph.initializer)


def load_model(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> SourceModel:
    """Read and check an ONNX model.

    Args:
        path: The ``.onnx`` file; external data is looked for beside it.
        shapes: Sizes to pin, by name of the input: ``{"image": (1, 3, 224, 224)}``.

    Raises:
        ModelError: It is missing, is no ONNX, is corrupt, lacks external data, is invalid, or has
            no such input.
    """
    proto = _read(path)
    external_files = _check_external_data(path, proto)
    size_bytes = path.stat().st_size + sum((path.parent / n).stat().st_size for n in external_files)
    _check_opsets(path, proto)
    if external_files and size_bytes <= LARGE_BYTES:
        external.load_external_data_for_model(proto, str(path.parent))
    _check_graph(path, proto, size_bytes > LARGE_BYTES)
    if shapes:
        pin_shapes(path, proto, shapes)
    elif _outputs_are_vague(proto):
        _take_outputs(proto, _inferred(proto))
    return SourceModel(
        path=path,
        proto=proto,
        inputs=tensor_specs(real_inputs(proto)),
        outputs=tensor_specs(proto.graph.output),
        sha256=_digest([path, *(path.parent / n for n in external_files)]),
        size_bytes=size_bytes,
        external_files=external_files,
    )


def _outputs_are_vague(proto: onnx.ModelProto) -> bool:
    """Whether outputs have sizes without a number although no input has: exporters leave a name there."""

    def free(values: Iterable[onnx.ValueInfoProto]) -> bool:
        dims = (dim for value in values for dim in value.type.tensor_type.shape.dim)
        return any(not dim.HasField("dim_value") for dim in dims)

    return free(proto.graph.output) and not free(real_inputs(proto))


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the default operator set that a model imports; 0 where it imports none."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def real_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph inputs that a caller must give: old models list their initializers there too."""
    initializers = {t.name for t in proto.graph.initializer}
    return [i for i in proto.graph.input if i.name not in initializers]


def shape_option(name: str, sizes: str) -> str:
    """Return the option that pins an input, such as ``--shape x=1,3,224,224``, quoted as a shell needs it."""
    return f"--shape {shlex.quote(f'{name}={sizes}')}"


def walk_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of the bodies of If, Loop and Scan included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from walk_nodes(body)


def _read(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(f"{path} is a directory: give the .onnx file in it")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path} is empty: export the model again")
    if size >= 2**31:
        raise ModelError(
            f"{path} is {size / 2**30:.1f} GiB, more than one ONNX file can hold: save it with external data"
        )
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror or e}") from e
    except DecodeError as e:
        raise ModelError(
            f"{path} is not ONNX, or is cut off or corrupt ({e}): export or copy the model again"
        ) from e
    if not proto.HasField("graph") or not proto.opset_import or not proto.graph.output:
        raise ModelError(
            f"{path} is not an ONNX model: it has no graph with outputs, or imports no operator set"
        )
    return proto


def _check_external_data(path: Path, proto: onnx.ModelProto) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for tensor in external._get_all_tensors(proto):
        if not external.uses_external_data(tensor):
            continue
        info = external.ExternalDataInfo(tensor)
        pure = PurePosixPath(info.location)
        if pure.is_absolute() or ".." in pure.parts or not info.location:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has its data at {info.location!r}, "
                "outside the model's directory"
            )
        file = path.parent / info.location
        if not file.is_file():
            raise ModelError(
                f"{path}: external data {info.location!r} is missing (tensor {tensor.name!r}): "
                "put the file beside the model"
            )
        end = (info.offset or 0) + (info.length or 0)
        if file.stat().st_size < end:
            raise ModelError(
                f"{path}: external data {info.location!r} is cut off: tensor {tensor.name!r} ends at byte "
                f"{end}, the file at {file.stat().st_size}: copy it again"
            )
        names[info.location] = None
    return tuple(sorted(names))


def _check_opsets(path: Path, proto: onnx.ModelProto) -> None:
    opset, newest = opset_of(proto), onnx.defs.onnx_opset_version()
    if opset and not _OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"{path} uses ONNX opset {opset}; this edgec reads {_OLDEST_OPSET} to {newest}: "
            "export it with another opset_version"
        )


def _check_graph(path: Path, proto: onnx.ModelProto, large: bool) -> None:
    # The checker knows the schemas of its own domains; operators of others are the converters' matter.
    try:
        onnx.checker.check_model(str(path) if large else proto)
    except onnx.checker.ValidationError as e:
        raise ModelError(f"{path} is not valid ONNX: {first_line(str(e))}") from e


def first_line(text: str) -> str:
    """Return the first line of a message that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


def pin_shapes(path: Path, proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the named inputs fixed sizes, in place, and infer the others anew.

    Raises:
        ModelError: No such input, another rank, or a size that the model fixes otherwise.
    """
    inputs = {i.name: i for i in real_inputs(proto)}
    pinned: dict[str, int] = {}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise ModelError(f"{path} has no input {name!r} to pin; its inputs are {', '.join(inputs)}")
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(sizes):
            raise ModelError(
                f"{path}: input {name!r} has {len(dims)} axes, --shape gives {len(sizes)}: {list(sizes)}"
            )
        for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise ModelError(
                    f"{path}: axis {axis} of input {name!r} is fixed at {dim.dim_value}, --shape says {size}"
                )
            if dim.dim_param and pinned.setdefault(dim.dim_param, size) != size:
                raise ModelError(
                    f"{path}: dimension {dim.dim_param!r} is pinned to {pinned[dim.dim_param]} and to {size}"
                )
            dim.dim_value = size
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in pinned:
                dim.dim_value = pinned[dim.dim_param]
    del proto.graph.value_info[:]
    inferred = _inferred(proto)
    proto.graph.value_info.extend(inferred.graph.value_info)
    _take_outputs(proto, inferred)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _take_outputs(proto: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
    for mine, theirs in zip(proto.graph.output, inferred.graph.output, strict=True):
        mine.CopyFrom(theirs)


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Return the specs of graph inputs or outputs.

    Raises:
        ModelError: One of them is no tensor.
    """
    return tuple(map(_spec, values))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"{value.name!r} is a {(kind or 'untyped value').removesuffix('_type')}, not a tensor: "
            "export the model with plain tensors as inputs and outputs (for scikit-learn: zipmap=False)"
        )
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, "str" if dtype == np.dtype("O") else dtype.name, shape)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
