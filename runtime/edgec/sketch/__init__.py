"""Mergeable summaries of many values: what devices send in place of the values, and a fleet adds up."""

from edgec.sketch._drift import kolmogorov_smirnov, population_stability, reference_bins
from edgec.sketch._histogram import Histogram
from edgec.sketch._quantiles import QuantileSketch

__all__ = ["Histogram", "QuantileSketch", "kolmogorov_smirnov", "population_stability", "reference_bins"]
