"""Chains: several artifacts, and named steps between them, as one call.

One module per family of steps says what they do; `_declaration` reads the TOML file, `_plan` fits the stages
to each other, `_chain` runs them.
"""

from typing import TYPE_CHECKING

from edgec.runtime.chains._chain import Chain
from edgec.runtime.chains._declaration import SUFFIX, ChainSpec, read_chain
from edgec.runtime.chains._loading import load_chain
from edgec.runtime.chains._steps import RecurrentState
from edgec.runtime.chains._stream import ChainStream

if TYPE_CHECKING:
    from edgec.runtime.chains._benchmark import ChainBenchmark, StageTime, benchmark_chain

__all__ = [
    "SUFFIX",
    "Chain",
    "ChainBenchmark",
    "ChainSpec",
    "ChainStream",
    "RecurrentState",
    "StageTime",
    "benchmark_chain",
    "load_chain",
    "read_chain",
]


def __getattr__(name: str) -> object:
    # Measuring imports what a call never needs.
    if name not in ("ChainBenchmark", "StageTime", "benchmark_chain"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgec.runtime.chains import _benchmark

    return getattr(_benchmark, name)
