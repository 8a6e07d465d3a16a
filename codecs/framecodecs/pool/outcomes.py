"""What will come of some work: a Future for those who mostly do not wait.

A Future of concurrent.futures brings a condition with it, which is a lock, a queue of waiters and half a
dozen bound methods, and takes its lock in each call. Here a thread that waits has an event made; who is told
by a callback, as a loop is, needs none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar, cast

log = logging.getLogger("framecodecs")

PENDING, DONE, FAILED, CANCELLED = range(4)
FAILED_TO_HEAR = "who was told of an outcome failed"

Value = TypeVar("Value")


class Outcome(Generic[Value]):
    """Its methods are a Future's, but that ending it twice is no error: the first one ends it, and who comes
    later is told that by False. Thread-safe."""

    _state = PENDING
    _value: Any = None  # or the error
    _callbacks: tuple[Callable[[Any], object], ...] = ()
    _waiting: threading.Event | None = None

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def done(self) -> bool:
        return self._state != PENDING

    def cancelled(self) -> bool:
        return self._state == CANCELLED

    def running(self) -> bool:
        """Nothing tells."""
        return False

    def set_exception(self, error: BaseException) -> bool:
        return self.set_result(error, FAILED)

    def cancel(self) -> bool:
        """Whether it is cancelled now."""
        return self.set_result(None, CANCELLED) or self._state == CANCELLED

    def set_result(self, value: Value | BaseException | None, state: int = DONE) -> bool:
        """The `state` is for the other two."""
        with self._lock:
            if self._state != PENDING:
                return False
            self._value = value
            self._state = state  # after that: it is read without the lock
            callbacks, self._callbacks = self._callbacks, ()
        if self._waiting is not None:
            self._waiting.set()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception(FAILED_TO_HEAR)
        return True

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """It is called with this, once: by whoever ends it, or now."""
        with self._lock:
            if self._state == PENDING:
                self._callbacks += (callback,)
                return
        try:
            callback(self)
        except Exception:
            log.exception(FAILED_TO_HEAR)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it is done within that time."""
        with self._lock:
            if self._state != PENDING:
                return True
            if self._waiting is None:
                self._waiting = threading.Event()
        return self._waiting.wait(seconds)

    def result(self, timeout: float | None = None) -> Value:
        """Raises the error, CancelledError, or TimeoutError."""
        if self._state != DONE:
            error = self.exception(timeout)
            if error is not None:
                try:
                    raise error
                finally:
                    del self, error  # the error's traceback holds this frame
        return cast(Value, self._value)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """None if there is a result. Raises CancelledError, or TimeoutError."""
        if self._state == PENDING and not self.wait(timeout):
            raise TimeoutError
        if self._state == CANCELLED:
            raise CancelledError
        return cast(BaseException, self._value) if self._state == FAILED else None
