"""Pre- and post-processing as data: what a model's author declares, and the manifest carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Declared pre- and post-processing of a model.

    Attributes:
        preprocess: Steps from a sample to the inputs of the model, in order.
        postprocess: Steps from the outputs of the model to a prediction, in order.
        labels: Names of the classes, by index; empty where there are none.
    """

    preprocess: tuple[Mapping[str, Any], ...] = ()
    postprocess: tuple[Mapping[str, Any], ...] = ()
    labels: tuple[str, ...] = ()
