"""A cache with a limit in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SizedCache(Generic[Key, Value]):
    """Keeps the values that were read last, `limit` bytes of them. Thread-safe."""

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit = limit
        # A larger value is not kept, because it would evict most others.
        self.largest = limit // 4
        self._size = size
        self._held = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value) -> None:
        size = self._size(value)
        if size > self.largest:
            return
        with self._lock:
            _, before = self._entries.pop(key, (value, 0))
            self._entries[key] = value, size
            self._held += size - before
            while self._held > self._limit:
                _, (_, gone) = self._entries.popitem(last=False)
                self._held -= gone
