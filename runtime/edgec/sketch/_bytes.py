"""Whole numbers as bytes: seven bits at a time, the lowest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_MOST_BITS = 63
# A count that reaches it stays there: sums of thousands of them fit into 64 bits.
MOST_COUNT = 2**40


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """Return numbers as bytes, each as short as it is small; negative ones are folded between the others."""
    data = bytearray()
    for number in numbers:
        rest = number << 1 if number >= 0 else (-number << 1) - 1
        while rest > 0x7F:
            data.append(rest & 0x7F | 0x80)
            rest >>= 7
        data.append(rest)
    return bytes(data)


def unpack_numbers(data: bytes) -> Iterator[int]:
    """Yield what `pack_numbers` was given.

    Raises:
        ValueError: The bytes end within a number, or one is longer than 63 bits.
    """
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > _MOST_BITS:
                raise ValueError("expected numbers of at most 63 bits")
            continue
        yield value >> 1 if not value & 1 else -((value + 1) >> 1)
        value = shift = 0
    if shift:
        raise ValueError("the bytes end within a number")
