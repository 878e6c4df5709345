"""What waits between a source and a model: bounded, and what gives way when it is full."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import Generic, Literal, TypeVar, get_args

T = TypeVar("T")

Policy = Literal["latest", "drop_oldest", "block"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


class Buffer(Generic[T]):
    """Items from one thread to another.

    * ``latest``: one place; a new item takes it from one that waits.
    * ``drop_oldest``: a few places; a new item takes that of the oldest.
    * ``block``: a few places; who brings an item waits until there is one.
    """

    def __init__(self, policy: Policy, size: int) -> None:
        """Make one that is empty.

        Args:
            policy: What gives way when it is full.
            size: Places; ``latest`` has 1.

        Raises:
            ValueError: There is no such policy, or `size` is below 1.
        """
        if policy not in POLICIES:
            raise ValueError(f"expected a policy of {', '.join(POLICIES)}, got {policy!r}")
        if size < 1:
            raise ValueError(f"expected a queue of at least 1, got {size}")
        self._blocks = policy == "block"
        self._size = 1 if policy == "latest" else size
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._ended = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> int:
        """Bring an item; return how many gave way. Brought to a buffer that has ended, it is gone itself."""
        with self._changed:
            while self._blocks and len(self._items) >= self._size and not self._ended:
                self._changed.wait()
            if self._ended:
                return 1
            dropped = 0
            while len(self._items) >= self._size:
                self._items.popleft()
                dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return dropped

    def get(self) -> T | None:
        """Wait for the next item; None when there will be no more."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self, *, discard: bool = False) -> int:
        """Take no more items, and wake all who wait.

        Args:
            discard: Whether to forget those that wait too, rather than give them out still.

        Returns:
            How many were forgotten.
        """
        with self._changed:
            self._ended = True
            forgotten = len(self._items) if discard else 0
            if discard:
                self._items.clear()
            self._changed.notify_all()
            return forgotten
