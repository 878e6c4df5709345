"""Which version of a model a caller gets."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite


class Split:
    """Shares of versions; the same key gets the same version, wherever and whenever it is asked for.

    Attributes:
        versions: That have a share.
    """

    def __init__(self, name: str, shares: Mapping[str, float]) -> None:
        """Divide.

        Args:
            name: Of the model; other models divide the same keys otherwise.
            shares: By version, in any unit.

        Raises:
            ValueError: A share is negative or no number, or all are 0.
        """
        whole = sum(shares.values())
        if not isfinite(whole) or whole <= 0 or any(share < 0 for share in shares.values()):
            raise ValueError(f"expected shares from 0 that come to more than 0, got {dict(shares)}")
        self._name = name
        self.versions = tuple(sorted(v for v in shares if shares[v] > 0))
        ends, end = [], 0.0
        for version in self.versions:
            end += shares[version] / whole
            ends.append(end)
        self._ends = ends

    def version_of(self, key: str) -> str:
        """Return the version that a key gets."""
        from hashlib import sha256

        digest = sha256(f"{self._name}\0{key}".encode(errors="surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        for version, end in zip(self.versions, self._ends, strict=True):
            if place < end:
                return version
        return self.versions[-1]  # ends come to a little less than 1
