"""What a stream reads from: the protocol, and sources made of Python iterables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgec.errors import EdgecError, SourceError


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What a source gives at a time.

    Attributes:
        sample: For the model: what its `predict` takes.
        name: ``frame 17``, ``porch.jpg``; empty where the number says it all.
        picture: What it looked like, to be drawn on: uint8[h, w, 3], BGR as OpenCV has it. None where there
            is no picture, or the sample is the path or the bytes of one.
        captured_s: When it was captured, on the clock of the source; None for when the stream got it.
    """

    sample: Any
    name: str = ""
    picture: NDArray[Any] | None = None
    captured_s: float | None = None


@runtime_checkable
class Source(Protocol):
    """Where samples come from. All methods are called from one thread.

    Attributes:
        name: For messages.
        live: Whether the world goes on meanwhile, so that what is not read in time is lost or stale.
        lost: Items that the source itself had to drop since it was made.
    """

    name: str
    live: bool
    lost: int

    def open(self) -> None:
        """Make ready to read; also after `close`, to begin again after a `SourceError` that is transient.

        Raises:
            SourceError: That cannot be.
        """

    def read(self, stop: Event) -> Captured | None:
        """Wait for the next item; None at the end, or soon after `stop` is set.

        Raises:
            DataError: This one item is unfit; the next call goes on with the one after it.
            SourceError: The source failed.
        """
        ...

    def close(self) -> None:
        """Give back what `open` took."""


class Items:
    """A source from any iterable: of samples, or of `Captured`.

    Attributes:
        name: For messages.
        live: Whether what is not read in time is lost.
        lost: Always 0.
    """

    def __init__(
        self,
        items: Iterable[Any] | Callable[[], Iterable[Any]],
        *,
        name: str = "the iterable",
        live: bool = False,
    ) -> None:
        """Make a source.

        Args:
            items: Or a function that gives them: then, when they raise an error, it is called again after a
                while, and the stream goes on.
            name: For messages.
            live: Whether what is not read in time is lost.
        """
        self.name = name
        self.live = live
        self.lost = 0
        self._items = items
        self._iterator: Iterator[Any] = iter(())

    def open(self) -> None:
        """Begin to iterate."""
        with _translated(self):
            self._iterator = iter(self._items() if callable(self._items) else self._items)

    def read(self, stop: Event) -> Captured | None:
        """Return the next one; a call that waits within the iterable is not interrupted by `stop`."""
        if stop.is_set():
            return None
        with _translated(self):
            item = next(self._iterator, _END)
        if item is _END:
            return None
        return item if isinstance(item, Captured) else Captured(sample=item)

    def close(self) -> None:
        """Close the iterator, where it is a generator."""
        close = getattr(self._iterator, "close", None)
        self._iterator = iter(())
        if close is not None:
            close()

    @property
    def can_begin_again(self) -> bool:
        """Whether there is a function to call again."""
        return callable(self._items)


_END = object()


class _translated:
    """Turns whatever foreign code raises into `SourceError`; errors of edgec pass as they are."""

    def __init__(self, source: Items) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # It is code of the application that is called here: what it may raise, nobody knows.
        if isinstance(error, Exception) and not isinstance(error, EdgecError):
            raise SourceError(
                f"{self._source.name} failed: {type(error).__name__}: {error}",
                transient=self._source.can_begin_again,
            ) from error
