"""What all parts of the client share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from edgec.fleet.client._http import Http, Query
from edgec.fleet.views import Page

M = TypeVar("M", bound=BaseModel)
NOTHING = type(None)
_PAGE = 500


class Part:
    """Some of what the API can do.

    Attributes:
        http: Sends requests.
    """

    http: Http

    def pages(self, kind: type[M], path: str, query: Query) -> Iterator[M]:
        """Yield all of a list that comes in pages."""
        cursor: str | int | None = None
        while True:
            more: dict[str, Any] = {"limit": _PAGE} | ({} if cursor is None else {"cursor": cursor})
            page = self.http.get(Page[kind], path, {**query, **more})  # type: ignore[valid-type]
            yield from page.items
            if page.next is None:
                return
            cursor = page.next


def at(*parts: str) -> str:
    """Return the path of something."""
    return "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


def wanted_of(kind: type[M], **values: Any) -> M:
    """Return a request; the server checks it, and says what is wrong."""
    return kind.model_construct(_fields_set=set(values), **values)
