"""Data sets, metrics and comparisons: how good a model is, and how sure that is.

Statistics that neither numpy nor the standard library has are here in a few lines each, with their
source, because a device carries no scipy.
"""

from edgec.evaluation._boxes import Boxes
from edgec.evaluation._dataset import Dataset, Sample, spread
from edgec.evaluation._evaluate import Evaluation, Predictor, evaluate, predict_sample
from edgec.evaluation._metric import Metric, PairedDifference, Prediction, Score, Verdict
from edgec.evaluation._open import open_dataset
from edgec.evaluation._registry import METRICS, get_metric, paired
from edgec.evaluation._similarity import (
    OutputComparison,
    OutputTally,
    agreement,
    compare_outputs,
    cosine,
    inner_product,
    max_abs_error,
    snr_db,
)
from edgec.evaluation._statistics import jackknife_error, wilson_interval
from edgec.runtime._synthetic import describe_synthetic, synthetic_inputs

__all__ = [
    "METRICS",
    "Boxes",
    "Dataset",
    "Evaluation",
    "Metric",
    "OutputComparison",
    "OutputTally",
    "PairedDifference",
    "Prediction",
    "Predictor",
    "Sample",
    "Score",
    "Verdict",
    "agreement",
    "compare_outputs",
    "cosine",
    "describe_synthetic",
    "evaluate",
    "get_metric",
    "inner_product",
    "jackknife_error",
    "max_abs_error",
    "open_dataset",
    "paired",
    "predict_sample",
    "snr_db",
    "spread",
    "synthetic_inputs",
    "wilson_interval",
]
