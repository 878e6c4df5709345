"""Benchmarks of artifacts."""

from edgec.runtime.measurement import LatencySamples, MedianRatio, measure_interleaved, median_ratio

__all__ = ["LatencySamples", "MedianRatio", "measure_interleaved", "median_ratio"]
