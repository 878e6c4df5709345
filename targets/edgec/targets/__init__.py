"""Classes of device that models are compiled for: pure data, and the few lines that read it."""

from edgec.targets._target import Engine, Limits, QuantizationScheme, Target

__all__ = ["Engine", "Limits", "QuantizationScheme", "Target"]
