"""One line a request: when, who, method, path, status, bytes, seconds, request id. Never a query, because
queries hold names.

Lines are gathered and written ten times a second, with one system call: a log of 10,000 requests a second
must not cost more than serving them. A killed worker loses the last tenth of a second.

A status of 499 says that the client was gone before its answer was complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import IO

import orjson

CLIENT_GONE = 499
FLUSH_EVERY = 0.1


class AccessLog:
    def __init__(self, target: IO[str], *, json: bool, enabled: bool = True) -> None:
        self._target = target
        self._format = _json_line if json else _text_line
        self._enabled = enabled
        self._lines: list[str] = []
        self._second = (0, "")

    def add(
        self, client: str, method: str, path: str, status: int, sent: int, seconds: float, request_id: str
    ) -> None:
        if self._enabled:
            self.add_line(self.line(client, method, path, status, sent), self.now(), seconds, request_id)

    def line(self, client: str, method: str, path: str, status: int, sent: int) -> str:
        """What stays the same when the same request is answered again, for `add_line`."""
        return self._format(client, method, path, status, sent)

    def add_line(self, line: str, at: str, seconds: float, request_id: str) -> None:
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
        """RFC 3339 in UTC, made once a second."""
        second = int(time.time())
        if second != self._second[0]:
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        return self._second[1]


def _text_line(client: str, method: str, path: str, status: int, sent: int) -> str:
    line = f'{_tame(client)} "{method} {_tame(path)}" {status} {sent}'.replace("%", "%%")
    return f"%s {line} %.4f %s\n"


def _json_line(client: str, method: str, path: str, status: int, sent: int) -> str:
    line = {"client": client, "method": method, "path": path, "status": status, "bytes": sent}
    text = orjson.dumps(line).decode()[1:-1].replace("%", "%%")
    return f'{{"at":"%s",{text},"seconds":%.4f,"request_id":"%s"}}\n'


def _tame(text: str) -> str:
    """Nothing that could end the line or the quotes around it."""
    if text.isascii() and text.isprintable() and '"' not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace('"', "%22")
