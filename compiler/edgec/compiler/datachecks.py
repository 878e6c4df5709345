"""What is wrong with the data of a build, as far as that can be seen before any candidate is made."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgec.compiler.accuracy import Baseline
from edgec.compiler.chance import chance_sentence
from edgec.compiler.drift import COMPARED_SAMPLES, compare_sets
from edgec.compiler.variants import Variant

_FEWEST_COMPARED = 32
_BUDGET_S = 5.0  # to prepare samples of both sets


def data_warnings(variant: Variant, baseline: Baseline | None, progress: Callable[[str], None]) -> list[str]:
    """Return in plain sentences what makes the figures of a build worth less than they look.

    Args:
        variant: With the samples, and the pre-processing that they go through.
        baseline: Of the source on labelled data; None without labels.
        progress: Told what is going on.
    """
    samples, found = variant.samples, list[str | None]()
    found.append(samples.split_warning())
    if samples.evaluation is not None and samples.evaluation.labelled and baseline is None:
        found.append(
            f"{samples.evaluation.source} has labels that nothing is scored with: give --metric to hold "
            "candidates to what is true, and not only to the source's outputs"
        )
    if baseline is not None:
        chance = chance_sentence(baseline.metric, baseline.evaluation, baseline.data.source)
        found.append(chance)
    if samples.calibration is not None and samples.evaluation is not None:
        progress("comparing the calibration data with the evaluation data")
        found += _compared(variant)
    return [sentence for sentence in found if sentence is not None]


def _compared(variant: Variant) -> list[str]:
    begun = time.monotonic()
    variant.spread_inputs(1)
    each_s = max(time.monotonic() - begun, 1e-6)
    n = max(_FEWEST_COMPARED, min(COMPARED_SAMPLES, int(_BUDGET_S / (2 * each_s))))
    return compare_sets(variant.spread_inputs(n), variant.judged_inputs(n), variant.inputs)
