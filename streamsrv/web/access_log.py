"""The access log: one line a request. Fields: time, client, method, path, status, bytes of the payload,
seconds, request id, way. Queries are never logged, because they hold names of patients.

Strategy: lines are buffered and written every 0.1 s with one system call. A killed worker loses at most the
lines of the last 0.1 s. Status 499: the client closed the connection before the answer was complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import IO

import orjson

from streamsrv.metrics import RequestCounts, RequestKind, RequestTally, Way

CLIENT_GONE = 499
FLUSH_EVERY = 0.1


class AccessLog:
    """Each request is also added to `counts`, even if the log is not enabled."""

    def __init__(self, target: IO[str], *, json: bool, counts: RequestCounts, enabled: bool = True) -> None:
        self.tally = counts.tally
        self._target = target
        self._format = _json_line if json else _text_line
        self._enabled = enabled
        self._lines: list[str] = []
        self._second = (0, "")

    def add(
        self,
        client: str,
        method: str,
        path: str,
        status: int,
        sent: int,
        seconds: float,
        request_id: str,
        way: Way = Way.PLAIN,
        kind: RequestKind = RequestKind.OTHER,
        received: int = 0,
    ) -> None:
        """`sent` and `received` are bytes of bodies."""
        enabled = self._enabled
        line = self.line(client, method, path, status, sent, way) if enabled else ""
        at = self.now() if enabled else ""
        self.add_line(line, at, seconds, request_id, self.tally(kind, status, way), sent, received)

    def line(self, client: str, method: str, path: str, status: int, sent: int, way: Way) -> str:
        """The part of a line that is the same for equal requests, for `add_line`."""
        return self._format(client, method, path, status, sent, way)

    def add_line(
        self,
        line: str,
        at: str,
        seconds: float,
        request_id: str,
        tally: RequestTally,
        sent: int,
        received: int = 0,
    ) -> None:
        tally.add(sent, received, seconds)
        if not self._enabled:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_EVERY, self.flush)
        self._lines.append(line % (at, seconds, request_id))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            with contextlib.suppress(OSError):  # the terminal has been closed, or the disk of the log is full
                self._target.write("".join(lines))
                self._target.flush()

    def now(self) -> str:
        """RFC 3339 in UTC, formatted once a second."""
        second = int(time.time())
        if second != self._second[0]:
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        return self._second[1]


def _text_line(client: str, method: str, path: str, status: int, sent: int, way: Way) -> str:
    line = f'{_escaped(client)} "{method} {_escaped(path)}" {status} {sent}'.replace("%", "%%")
    return f"%s {line} %.4f %s {way}\n"


def _json_line(client: str, method: str, path: str, status: int, sent: int, way: Way) -> str:
    line = {"client": client, "method": method, "path": path, "status": status, "bytes": sent}
    text = orjson.dumps(line).decode()[1:-1].replace("%", "%%")
    return f'{{"at":"%s",{text},"seconds":%.4f,"request_id":"%s","way":"{way}"}}\n'


def _escaped(text: str) -> str:
    """Without any character that could end the line or the quotes around it."""
    if text.isascii() and text.isprintable() and '"' not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace('"', "%22")
