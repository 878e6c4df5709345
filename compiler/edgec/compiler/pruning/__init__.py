"""Structured pruning: channels that a model can do without are removed from a plain ONNX graph.

`Pruner` follows channels through the graph (`trace`, with the rules of `layers`, `rules` and `shapes`),
finds which of them go together (`groups`), measures on real inputs in which order they can be done without
(`elimination`) and what errors of a layer do to the model's outputs (`sensitivity`), chooses those that cost
least per multiply-accumulate saved (`allocation`), cuts them out (`shrink`), and has the rest take over by
least squares (`refit`). Nothing is trained.

`sparsify` makes single weights zero instead, in a pattern that an engine can use (`patterns`).
"""

from __future__ import annotations

from edgec.compiler.pruning.patterns import Pattern, is_two_of_four, parse_pattern
from edgec.compiler.pruning.pruner import Pruned, Pruner
from edgec.compiler.pruning.refit import Refit
from edgec.compiler.pruning.sparsity import Sparse, sparsify

__all__ = [
    "Pattern",
    "Pruned",
    "Pruner",
    "Refit",
    "Sparse",
    "is_two_of_four",
    "parse_pattern",
    "sparsify",
]
