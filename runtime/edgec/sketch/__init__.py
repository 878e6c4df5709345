"""Mergeable summaries of many values: what devices send in place of the values, and a fleet adds up."""

from edgec.sketch._histogram import Histogram
from edgec.sketch._quantiles import QuantileSketch

__all__ = ["Histogram", "QuantileSketch"]
