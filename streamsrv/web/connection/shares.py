"""Shares of the threads of a worker: a client has a few calls in threads at once, and its others wait here.

Strategy: a call that waits holds no thread. When a call of a client ends, its next one takes the place. So a
client that asks for a thousand long searches leaves most threads, and most of the interpreter, to the others.

Rule: used in the loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, NamedTuple, TypeVar

from streamsrv.errors import TooManyRequests
from streamsrv.web.connection.loop import from_thread

RETRY_AFTER = 1
Result = TypeVar("Result")


class _Call(NamedTuple, Generic[Result]):
    work: Callable[[], Result]
    then: Callable[[Result], None]
    failed: Callable[[Exception], None]


class _ClientCalls:
    """The calls of one client."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[_Call[object]] = deque()


class ThreadShares:
    """A client may have `share` calls in threads, and `waiting` others. A client is a name."""

    def __init__(self, threads: Executor, share: int, waiting: int) -> None:
        self._threads = threads
        self._share = share
        self._most_waiting = waiting
        self._clients: dict[str, _ClientCalls] = {}

    @property
    def waiting(self) -> int:
        """Calls that wait, of all clients."""
        return sum(len(calls.waiting) for calls in self._clients.values())

    def submit(
        self,
        client: str,
        work: Callable[[], Result],
        then: Callable[[Result], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Calls `work`, which must not raise, in a thread, then `then` with its result in the loop. Calls
        `failed` if no thread can be started. Raises TooManyRequests if too many calls of this client wait."""
        calls = self._clients.get(client) or self._clients.setdefault(client, _ClientCalls())
        call: _Call[object] = _Call(work, then, failed)  # type: ignore[arg-type]  # one result for both
        if calls.running < self._share:
            calls.running += 1
            self._begin(client, call)
        elif len(calls.waiting) < self._most_waiting:
            calls.waiting.append(call)
        else:
            raise TooManyRequests(f"{len(calls.waiting)} requests of this client are waiting", RETRY_AFTER)

    def _begin(self, client: str, call: _Call[object]) -> None:
        def ended(result: object) -> None:
            self._ended(client)
            call.then(result)

        try:
            from_thread(self._threads, call.work, ended)
        except RuntimeError as error:  # no thread runs, and none can be started
            asyncio.get_running_loop().call_soon(self._failed, client, call, error)

    def _failed(self, client: str, call: _Call[object], error: RuntimeError) -> None:
        self._ended(client)
        call.failed(error)

    def _ended(self, client: str) -> None:
        calls = self._clients[client]
        if calls.waiting:
            self._begin(client, calls.waiting.popleft())
            return
        calls.running -= 1
        if not calls.running:
            del self._clients[client]
