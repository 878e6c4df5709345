"""Classes of device that models are compiled for: pure data, and the few lines that read it.

A target is one file ``data/NAME.toml``; what its keys mean is said by the classes they become.
"""

from edgec.targets._catalogue import (
    Resolution,
    alias_names,
    load_target,
    meanings,
    resolve_target,
    target_names,
)
from edgec.targets._host import host_arch, host_features
from edgec.targets._parse import target_from_dict
from edgec.targets._target import (
    PRECISIONS,
    AttributeLimit,
    Engine,
    Limits,
    QuantizationScheme,
    StandIn,
    Target,
)

__all__ = [
    "PRECISIONS",
    "AttributeLimit",
    "Engine",
    "Limits",
    "QuantizationScheme",
    "Resolution",
    "StandIn",
    "Target",
    "alias_names",
    "host_arch",
    "host_features",
    "load_target",
    "meanings",
    "resolve_target",
    "target_from_dict",
    "target_names",
]
