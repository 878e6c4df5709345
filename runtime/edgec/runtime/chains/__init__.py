"""Chains: several artifacts, and named steps between them, as one call.

One module per family of steps says what they do; `_declaration` reads the TOML file, `_plan` fits the stages
to each other, `_chain` runs them.
"""

from edgec.runtime.chains._chain import Chain, ChainStream, load_chain
from edgec.runtime.chains._declaration import SUFFIX, ChainSpec, read_chain

__all__ = ["SUFFIX", "Chain", "ChainSpec", "ChainStream", "load_chain", "read_chain"]
