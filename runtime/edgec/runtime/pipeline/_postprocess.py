"""From the outputs of the model to a prediction."""

from __future__ import annotations

from collections.abc import Mapping

from edgec.artifact.steps import Step
from edgec.runtime.pipeline import _detection, _scores, _vectors
from edgec.runtime.pipeline._plan import Array, Context, numbered
from edgec.runtime.pipeline._work import Facts, Operation, Planner, Prediction, Work

_PLANNERS: dict[type, Planner] = _scores.PLANNERS | _detection.PLANNERS | _vectors.PLANNERS


class Postprocessing:
    """The planned stage: how outputs become a prediction.

    Raises:
        PipelineError: The steps cannot fit the outputs; the message names the step.
    """

    def __init__(self, steps: tuple[Step, ...], facts: Facts) -> None:
        self._operations: list[Operation] = []
        for number, step in enumerate(steps, 1):
            with numbered("postprocess", number):
                self._operations.append(_PLANNERS[type(step)](step, facts))
        if facts.kind == "boxes":
            self._operations.append(_detection.finish)

    def run(self, outputs: Mapping[str, Array], context: Context) -> Prediction:
        """Return the prediction; the outputs by name where no step makes one."""
        work = Work(dict(outputs), context)
        for operation in self._operations:
            operation(work)
        return work.tensors if work.prediction is None else work.prediction
