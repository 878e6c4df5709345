"""A pipeline whose refusals and predictions are observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgec.errors import PipelineError
from edgec.runtime.pipeline import Context, Processor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec.runtime._observer import Observer


class ObservedProcessor(Processor):
    """Does what another processor does, and tells an observer."""

    def __init__(self, plain: Processor, observer: Observer) -> None:
        """Stand in front of `plain`."""
        self._plain = plain
        self._observer = observer

    def preprocess(self, sample: Any) -> tuple[dict[str, NDArray[Any]], Context]:
        """See `Processor.preprocess`; what it refuses is counted."""
        try:
            return self._plain.preprocess(sample)
        except PipelineError as e:
            self._observer.failed(e)
            raise

    def postprocess(self, outputs: Mapping[str, NDArray[Any]], context: Context) -> dict[str, Any]:
        """See `Processor.postprocess`; some predictions are looked at."""
        prediction = self._plain.postprocess(outputs, context)
        self._observer.predicted(prediction)
        return prediction
