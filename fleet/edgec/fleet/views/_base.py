"""What all views share."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
Seconds = Annotated[float, Field(description="Seconds since 1970.", examples=[1767225600.0])]
Json = dict[str, Any]


class View(BaseModel):
    """Something that is shown: made of the values of a record by their names."""

    model_config = ConfigDict(from_attributes=True)


class Wanted(BaseModel):
    """Something that is asked for: what is not known is refused, so that a misspelt field has an effect."""

    model_config = ConfigDict(extra="forbid")


class Page(View, Generic[T]):
    """Some of a list."""

    items: list[T]
    next: str | None = Field(
        default=None, description="`cursor` of the next page; null at the end.", examples=["cam-100"]
    )
