"""Parameters that several routes take: all bounded, so that nothing else comes near the database."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

_IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_WORD = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$"
_MOST_NUMBER = 2**53

DeviceId = Annotated[str, Path(pattern=_IDENTIFIER, examples=["cam-1"])]
RolloutId = Annotated[str, Path(pattern=_IDENTIFIER, examples=["kws-2-5f0c9c0e"])]
GroupName = Annotated[str, Path(pattern=_IDENTIFIER, examples=["lab"])]
Digest = Annotated[
    str, Path(pattern=r"^[0-9a-f]{64}$", examples=["a" * 64], description="SHA-256 of the artifact's file.")
]
ModelPath = Annotated[str, Path(pattern=_WORD, examples=["kws"])]
VersionPath = Annotated[str, Path(pattern=_WORD, examples=["2"])]
TokenId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,16}$", examples=["74f4dcf2a064"])]
Number = Annotated[int, Path(ge=1, le=_MOST_NUMBER, examples=[3])]
ModelQuery = Annotated[str, Query(pattern=_WORD, examples=["kws"], description="Name of the model.")]
MaybeModel = Annotated[str | None, Query(pattern=_WORD, examples=["kws"], description="Of this model only.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most items of a page.")]
Cursor = Annotated[
    str,
    Query(pattern=r"^[A-Za-z0-9_.+-]{0,128}$", description="`next` of the page before; empty for the first."),
]
NumberCursor = Annotated[
    int, Query(ge=0, le=_MOST_NUMBER, description="`next` of the page before; 0 for the first.")
]
DeviceQuery = Annotated[
    str,
    Query(
        max_length=2000,
        # Neither database nor browser would know what to do with control characters.
        pattern=r"^[^\x00-\x1f\x7f]*$",
        examples=["site=lab|hall, hardware=cpu-x86_64"],
        description="Conditions that all hold: `key`, `!key`, `key=a|b`, `key!=a`; `hardware` and `id`, too.",
    ),
]
Hours = Annotated[float, Query(gt=0, le=400 * 24, description="How far to look back.", examples=[24])]
