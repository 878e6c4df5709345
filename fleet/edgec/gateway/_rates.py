"""How often each device may ask: the buckets that the fleet's API has, too."""

from edgec.protocol._rates import Rates

__all__ = ["Rates"]
