"""By which way a file comes: web servers and directories, and the broker where those have nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgec.errors import TransferError

if TYPE_CHECKING:
    from edgec.device_agent._line import Limits
    from edgec.device_agent._sources import Source

# Another way may do.
_ELSEWHERE = frozenset(("not_found", "link", "unavailable", "too_slow", "requests", "bytes"))
# In a row, of a way that has another one after it.
_LAST_ATTEMPTS = 6
Files = Callable[[str], "Sequence[Source]"]


def fetch_by_any_way(
    fetch: Callable[[Files, Limits], None],
    location: str,
    *,
    files: Files,
    chunks: Callable[[str], Source | None] | None,
    limits: Callable[..., Limits],
    check: Callable[[], Any],
) -> None:
    """Fetch from web servers and directories; over the broker where there are none, or they have nothing.

    Args:
        fetch: Fetches from the sources that it is given.
        location: Of the file in the repository.
        files: Returns web servers and directories that may have a file, the best first.
        chunks: Returns the broker as a source of a file; None for a device without one.
        limits: Makes limits of a transfer, from what is other than usual.
        check: Raises where the file is not wanted any more.

    Raises:
        TransferError: By which the last way has failed.
    """
    if chunks is None or chunks(location) is None:
        fetch(files, limits())
        return
    last = limits()
    if files(location):
        few = limits(attempts=_LAST_ATTEMPTS)
        try:
            fetch(files, few)
        except TransferError as e:
            check()
            if e.reason not in _ELSEWHERE:
                raise
            last = few if e.reason == "not_found" else last
        else:
            return
    broker = chunks
    fetch(lambda place: [*files(place), *_one(broker(place))], last)


def _one(source: Source | None) -> list[Source]:
    return [] if source is None else [source]
