"""The state of one run of the writer: which tensors hold which values, and how to get at them.

A value of the ONNX graph may be in the file in several forms, which differ in layout and in quantization. An
operator takes the form it needs; what is missing is made by TRANSPOSE, RESHAPE, QUANTIZE or DEQUANTIZE, once.
Transposing a value, in the ONNX sense, is therefore only another layout of the same tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration import CalibrationTable
from edgec.compiler.tflite import quantize
from edgec.compiler.tflite.flatbuffer import B, FlatModel, Quant, S
from edgec.compiler.tflite.graph import Graph, Node
from edgec.compiler.tflite.layout import (
    Layout,
    identity,
    is_flat,
    permutation,
    significant,
    tensor_shape,
)
from edgec.compiler.tflite.modes import Mode
from edgec.compiler.tflite.registry import Refused
from edgec.errors import CalibrationError

Own = Literal["own"]
_MIN_HALF = 16  # elements; unpacking fewer by an operator costs more than the bytes saved
NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3  # ActivationFunctionType


@dataclass(frozen=True)
class Form:
    """One tensor that holds a value; `quant` is None for floats and for what is no real number."""

    tensor: int
    layout: Layout
    quant: Quant | None


@dataclass
class Value:
    """A value with its forms; the first is the one it was computed in."""

    shape: tuple[int, ...]
    dtype: str
    forms: list[Form] = field(default_factory=list)


class Lowering:
    """What operator functions work with.

    Attributes:
        graph: The model.
        mode: What the file computes with.
        file: Where tensors and operators go.
        integer: Whether the node at hand computes with integers; False for nodes left in float.
        hybrid: Whether its weights are int8 and its activations float.
        done: Names of nodes that an earlier one took in, such as a fused ReLU.
    """

    def __init__(
        self,
        graph: Graph,
        mode: Mode,
        table: CalibrationTable | None,
        method: str,
        exclude: Collection[str] = (),
    ) -> None:
        self.graph, self.mode, self.file = graph, mode, FlatModel()
        self.integer = mode.integer
        self.hybrid = mode is Mode.DYNAMIC
        self.done: set[str] = set()
        self.column_order: dict[str, NDArray[np.intp]] = {}
        self._table, self._method = table, method
        self._exclude = frozenset(exclude)
        self._values: dict[str, Value] = {}
        self._halves: dict[int, int] = {}

    # -- what is known of a value ----------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the sizes of a value or constant, in ONNX's order."""
        return self.graph.shape(name)

    def rank(self, name: str) -> int:
        """Return how many axes a value or constant has."""
        return len(self.graph.shape(name))

    def is_float(self, name: str) -> bool:
        """Whether a value or constant is of float32."""
        return self.graph.dtype(name) == "float32"

    def is_constant(self, name: str) -> bool:
        """Whether a name is a constant of the model."""
        return name in self.graph.constants

    def constant(self, node: Node, index: int, what: str) -> NDArray[Any]:
        """Return a constant input of a node.

        Raises:
            Refused: It is absent, or computed at run time.
        """
        name = node.input(index)
        if name not in self.graph.constants:
            raise Refused(
                f"its {what} {'are' if what.endswith('s') else 'is'} not constant",
                "export the model with fixed shapes and constant parameters, or simplify it first",
            )
        return self.graph.constants[name]

    def optional_constant(self, node: Node, index: int, what: str) -> NDArray[Any] | None:
        """Return a constant input of a node; None where it is absent."""
        return self.constant(node, index, what) if node.input(index) else None

    def layout(self, name: str) -> Layout:
        """Return the layout a value was computed in; that of a constant is its own."""
        if name in self.graph.constants:
            return identity(self.rank(name))
        return self._values[name].forms[0].layout

    def quant(self, name: str) -> Quant | None:
        """Return how the node at hand would get a value quantized; None in float."""
        if not self.integer or not self.is_float(name):
            return None
        if name in self._values:
            for form in self._values[name].forms:
                if form.quant is not None and form.quant.dtype == self.activation_dtype:
                    return form.quant
        if name in self.graph.constants:
            array = self.graph.constants[name]
            return self.quant_of_array(array)
        return self.calibrated(name)

    @property
    def activation_dtype(self) -> str:
        """Dtype of quantized activations."""
        return "int16" if self.mode is Mode.INT16X8 else "int8"

    @property
    def saturates(self) -> bool:
        """Whether integers end where the calibrated range does; those of int16 are symmetric instead."""
        return self.integer and self.activation_dtype == "int8"

    def quant_of_array(self, array: NDArray[Any]) -> Quant:
        """Return parameters that span a constant."""
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        return quantize.from_range(low, high, self.activation_dtype)

    def calibrated(self, name: str) -> Quant:
        """Return the parameters of a value by the calibration table.

        Raises:
            CalibrationError: The table does not know the value.
        """
        if self._table is None:  # a dry run: any will do
            return quantize.from_range(-1.0, 1.0, self.activation_dtype)
        statistics = self._table.tensors.get(name)
        if statistics is None:
            raise CalibrationError(
                f"the calibration table has no tensor {name!r}: it is of another model, or the tensor was "
                "never finite; calibrate this very model again"
            )
        low, high = statistics.range(self._method, symmetric=self.mode is Mode.INT16X8)
        return quantize.from_range(low, high, self.activation_dtype)

    # -- taking ----------------------------------------------------------------------------------------

    def take(self, name: str, layout: Layout | None = None, quant: Quant | Own | None = "own") -> int:
        """Return the tensor that holds a value or constant.

        Args:
            name: Of the value.
            layout: As which it is wanted; by default as it was computed.
            quant: As which numbers; by default those of the node at hand: the value's own parameters where
                it computes with integers, else float.
        """
        wanted = self.quant(name) if quant == "own" else quant
        if name in self.graph.constants:
            return self._constant(name, layout or identity(self.rank(name)), wanted)
        value = self._values[name]
        layout = layout or value.forms[0].layout
        if not self.is_float(name):
            wanted = value.forms[0].quant if quant == "own" else wanted
        return self._form(name, value, layout, wanted)

    def take_flat(self, name: str, quant: Quant | Own | None = "own") -> int:
        """Return a tensor whose bytes are in the value's own order, of whatever shape.

        It is for operators that give the shape anew; where the value is there in channels-last order, a
        TRANSPOSE is inserted.
        """
        if name not in self.graph.constants:
            value = self._values[name]
            for form in value.forms:
                if is_flat(value.shape, form.layout):
                    return self.take(name, form.layout, quant)
        return self.take(name, identity(self.rank(name)), quant)

    def _form(self, name: str, value: Value, layout: Layout, quant: Quant | None) -> int:
        for form in value.forms:
            if form.layout == layout and form.quant == quant:
                return form.tensor
        same_numbers = [f for f in value.forms if f.quant == quant]
        if same_numbers:
            return self._relaid(name, value, same_numbers[0], layout)
        same_layout = [f for f in value.forms if f.layout == layout]
        # Axes are moved in integers: a quarter of the bytes, and NPUs can do it.
        if quant is None and not same_layout:
            self._relaid(name, value, value.forms[0], layout)
            return self._form(name, value, layout, quant)
        source = self._converted(name, value, (same_layout or value.forms)[0], quant)
        return self._form(name, value, layout, quant) if source.layout != layout else source.tensor

    def _converted(self, name: str, value: Value, source: Form, quant: Quant | None) -> Form:
        tensor = self.requantize(source.tensor, quant, name)
        form = Form(tensor, source.layout, quant)
        value.forms.append(form)
        return form

    def requantize(self, tensor: int, quant: Quant | None, name: str) -> int:
        """Return a new tensor with the same reals as other numbers: float where `quant` is None."""
        source = self.file.tensors[tensor]
        if quant is None:
            made = self.file.add_tensor(f"{name}/float", source.shape, "float32")
            self.file.add_operation(B.DEQUANTIZE, [tensor], [made], S.DequantizeOptionsT())
        else:
            made = self.file.add_tensor(f"{name}/{quant.dtype}", source.shape, quant.dtype, quant)
            self.file.add_operation(B.QUANTIZE, [tensor], [made], S.QuantizeOptionsT())
        return made

    def _relaid(self, name: str, value: Value, source: Form, layout: Layout) -> int:
        """Make the form of another layout, by RESHAPE where no byte moves."""
        tensor = self.relay(source.tensor, value.shape, source.layout, layout, name)
        value.forms.append(Form(tensor, layout, source.quant))
        return tensor

    def relay(self, tensor: int, shape: Sequence[int], source: Layout, target: Layout, name: str) -> int:
        """Return a tensor in another layout of a value of `shape`."""
        wanted = tensor_shape(shape, target)
        if significant(shape, source) == significant(shape, target):
            return tensor if self.file.tensors[tensor].shape == wanted else self.reshape(tensor, wanted, name)
        perm = permutation(shape, source, target)
        if perm is None:  # other ranks: drop or add axes of length one first, in the order that is there
            order = significant(shape, source)
            rest = [a for a in target if a not in order]
            middle = (*order, *rest)
            tensor = self.reshape(tensor, tensor_shape(shape, middle), name)
            perm = permutation(shape, middle, target)
            assert perm is not None
        return self.transpose(tensor, perm, name)

    def reshape(self, tensor: int, shape: Sequence[int], name: str) -> int:
        """Return a new tensor with the same bytes."""
        source = self.file.tensors[tensor]
        made = self.file.add_tensor(f"{name}/reshaped", shape, source.dtype, source.quant)
        options = S.ReshapeOptionsT()
        options.newShape = [int(d) for d in shape]
        self.file.add_operation(B.RESHAPE, [tensor, self.int32(shape, f"{name}/shape")], [made], options)
        return made

    def transpose(self, tensor: int, perm: Sequence[int], name: str) -> int:
        """Return a new tensor with the axes in another order."""
        source = self.file.tensors[tensor]
        shape = [source.shape[p] for p in perm]
        made = self.file.add_tensor(f"{name}/transposed", shape, source.dtype, source.quant)
        self.file.add_operation(
            B.TRANSPOSE, [tensor, self.int32(perm, f"{name}/perm")], [made], S.TransposeOptionsT()
        )
        return made

    # -- constants -------------------------------------------------------------------------------------

    def int32(self, values: Any, name: str) -> int:
        """Return a constant tensor of int32: shapes, axes, paddings."""
        return self.file.add_constant(name, np.asarray(values, np.int32))

    def array(self, array: NDArray[Any], name: str, quant: Quant | None = None) -> int:
        """Return a constant tensor: integers where `quant` is given, else as the mode stores floats."""
        if quant is not None:
            if array.dtype.kind == "f":
                array = quantize.to_integers(array, quant)
            return self.file.add_constant(name, array, quant)
        if self.mode is Mode.FLOAT16 and array.dtype == np.float32 and array.size >= _MIN_HALF:
            return self._half(array, name)
        return self.file.add_constant(name, array)

    def _half(self, array: NDArray[Any], name: str) -> int:
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            return self.file.add_constant(name, array)
        stored = self.file.add_constant(name, half)
        if stored not in self._halves:
            made = self.file.add_tensor(f"{name}/float", array.shape, "float32")
            self.file.add_operation(B.DEQUANTIZE, [stored], [made], S.DequantizeOptionsT())
            self._halves[stored] = made
        return self._halves[stored]

    def _constant(self, name: str, layout: Layout, quant: Quant | None) -> int:
        array = self.graph.constants[name]
        order = [axis for axis in layout if axis >= 0]
        relaid = array.transpose(order).reshape(tensor_shape(array.shape, layout))
        return self.array(relaid, name, quant)

    # -- giving ----------------------------------------------------------------------------------------

    def give(self, name: str, layout: Layout, quant: Quant | Own | None = "own") -> int:
        """Return a new tensor for a value that the node at hand computes.

        Args:
            name: Of the value.
            layout: In which it is computed.
            quant: Its parameters; by default those of the calibration where the node computes with integers.
        """
        if quant == "own":
            quant = self.calibrated(name) if self.integer and self.is_float(name) else None
        shape = tensor_shape(self.shape(name), layout)
        dtype = quant.dtype if quant is not None else self.graph.dtype(name)
        tensor = self.file.add_tensor(name, shape, dtype, quant)
        self.hold(name, tensor, layout, quant)
        return tensor

    def hold(self, name: str, tensor: int, layout: Layout, quant: Quant | None) -> None:
        """Say that a tensor that is there holds a value."""
        value = Value(self.shape(name), self.graph.dtype(name))
        value.forms.append(Form(tensor, layout, quant))
        self._values[name] = value

    def holds(self, name: str) -> bool:
        """Whether a value is in the file."""
        return name in self._values

    def alias(self, output: str, source: str, layout: Layout) -> None:
        """Say that the tensor a value was computed in holds another value too, in another layout."""
        tensor = self.take(source, quant=self.present_quant(source))
        self.hold(output, tensor, layout, self.file.tensors[tensor].quant)

    def present_quant(self, name: str) -> Quant | None:
        """Return how a value is quantized where it was computed, whatever the node at hand does."""
        if name in self.graph.constants:
            return self.quant(name)
        present = self._values[name].forms[0].quant
        if present is None and self.integer and self.is_float(name) and name in self.graph.inputs:
            return self.calibrated(name)  # what comes in as float becomes integers before anything else
        return present

    def emit(self, builtin: int, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> None:
        """Append an operator."""
        self.file.add_operation(builtin, inputs, outputs, options)

    # -- fusing ----------------------------------------------------------------------------------------

    def follow(self, name: str, *ops: str) -> Node | None:
        """Return the one taker of a value where it is one of `ops` and may be merged with its producer."""
        taker = self.graph.only_consumer(name)
        if taker is None or taker.op not in ops or self._exclude & {taker.name, *taker.outputs}:
            return None
        return taker if self.integer or not self.mode.integer else None

    def fuse_activation(self, name: str) -> tuple[str, int]:
        """Return what a node's output is after the activation that follows, and that activation's code.

        The activation's node is marked as done. In int8 every Clip around zero fuses: its output's range lies
        within its bounds, and the integers saturate there.
        """
        taker = self.follow(name, "Relu", "Clip")
        if taker is None:
            return name, NONE
        if taker.op == "Relu":
            code = RELU
        else:
            bounds = self.clip_bounds(taker)
            found = {(0.0, 6.0): RELU6, (-1.0, 1.0): RELU_N1_TO_1, (0.0, np.inf): RELU}.get(bounds)
            if found is None and not (self.saturates and bounds[0] <= 0.0 <= bounds[1]):
                return name, NONE
            code = NONE if found is None else found
        self.done.add(taker.name)
        return taker.outputs[0], code

    def clip_bounds(self, node: Node) -> tuple[float, float]:
        """Return the bounds of a Clip.

        Raises:
            Refused: They are computed at run time.
        """
        low = self.optional_constant(node, 1, "bounds")
        high = self.optional_constant(node, 2, "bounds")
        return (-np.inf if low is None else float(low), np.inf if high is None else float(high))
