"""The stages of a chain, fitted to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Step
from edgec.errors import PipelineError
from edgec.runtime.chains import _boxes, _signal
from edgec.runtime.chains._declaration import ChainSpec
from edgec.runtime.chains._models import plan_model
from edgec.runtime.chains._plan import Operation, Planning, Value, tensor
from edgec.runtime.chains._steps import (
    Crop,
    ImageInput,
    Irfft,
    Model,
    Multiply,
    OverlapAdd,
    Polar,
    Relabel,
    Rfft,
    Select,
    TensorInput,
    Window,
    references,
)

if TYPE_CHECKING:
    from edgec.runtime._session import Session

_PLANNERS: dict[type[Step], Callable[[str, Any, Planning], tuple[Operation, Value]]] = {
    Select: _boxes.plan_select,
    Crop: _boxes.plan_crop,
    Relabel: _boxes.plan_relabel,
    Window: _signal.plan_window,
    Rfft: _signal.plan_rfft,
    Polar: _signal.plan_polar,
    Multiply: _signal.plan_multiply,
    Irfft: _signal.plan_irfft,
    OverlapAdd: _signal.plan_overlap_add,
}


class Planned:
    """A chain that fits together.

    Attributes:
        stages: What runs, by name of the stage, in order.
        state: Shape and first value of everything that goes from call to call.
        results: Each output, with the words of its value.
        given: What is known of each output.
    """

    def __init__(
        self,
        stages: list[tuple[str, Operation]],
        state: dict[str, tuple[TensorSpec, float]],
        results: dict[str, str],
        given: dict[str, Value],
    ) -> None:
        self.stages = stages
        self.state = state
        self.results = list(results.items())
        self.given = given


def plan_stages(spec: ChainSpec, sessions: Mapping[str, Session]) -> Planned:
    """Fit the stages to each other.

    Raises:
        PipelineError: They do not fit; all of it is said.
    """
    shown = spec.outputs if isinstance(spec.outputs, str) else ""
    read = [reference for stage in spec.stages.values() for _, reference in references(stage)]
    planning = Planning(
        [*read, *([shown] if isinstance(spec.outputs, str) else spec.outputs.values())], shown
    )
    for name, declared in spec.inputs.items():
        planning.known[name] = _input_value(declared)
    stages: list[tuple[str, Operation]] = []
    problems: list[str] = []
    for name, stage in spec.stages.items():
        try:
            if isinstance(stage, Model):
                operation, value = plan_model(name, stage, planning, sessions[name])
            else:
                operation, value = _PLANNERS[type(stage)](name, stage, planning)
        except PipelineError as e:
            # What depends on it cannot be judged, and is not worth a line.
            if not any(
                reference.split(".", 1)[0] not in planning.known for _, reference in references(stage)
            ):
                problems.append(f"stage {name!r}: {e}")
            continue
        planning.known[name] = value
        stages.append((name, operation))
    if problems:
        raise PipelineError("; ".join(problems))
    results = _results(spec, planning)
    return Planned(stages, planning.state, results, {k: planning.value(r) for k, r in results.items()})


def _results(spec: ChainSpec, planning: Planning) -> dict[str, str]:
    """Return the words of each output's value."""
    if isinstance(spec.outputs, str):
        parts = planning.known[spec.outputs].parts
        return {part: f"{spec.outputs}.{part}" for part in parts} or {spec.outputs: spec.outputs}
    problems = [_problem(name, reference, planning) for name, reference in spec.outputs.items()]
    if any(problems):
        raise PipelineError("; ".join(filter(None, problems)))
    return dict(spec.outputs)


def _problem(name: str, reference: str, planning: Planning) -> str:
    try:
        planning.value(reference)
    except PipelineError as e:
        return f"output {name!r}: {e}"
    return ""


def _input_value(declared: Step) -> Value:
    if isinstance(declared, TensorInput):
        return tensor(declared.dtype, *declared.shape)
    if isinstance(declared, ImageInput):
        return Value(kind="image", color=declared.color)
    return Value(kind="text")
