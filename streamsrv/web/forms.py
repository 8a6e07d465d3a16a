"""Short JSON bodies: a sign-in, a share link. A form stands in for an Upload in the connection.

Rules of this file
- The body is JSON with the media type of JSON: a form of HTML on another site cannot send that without a
  preflight (the Fetch standard).
- A thread answers, because the answer hashes or writes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeAlias

from streamsrv.errors import BadRequest, ContentTooLarge, PinRequired, Unauthorized, UnsupportedMediaType
from streamsrv.wire.answers import Answer, Literal
from streamsrv.wire.mediatypes import JSON

LONGEST = 16 << 10  # bytes
Fields: TypeAlias = Mapping[str, Any]


class ShortForm:
    """`answer` gets the members of the object; it blocks. `refused` is called in the loop if it raises
    Unauthorized, and may raise another error instead."""

    def __init__(
        self,
        pool: Executor,
        content_type: str,
        answer: Callable[[Fields], Answer],
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises UnsupportedMediaType."""
        if content_type.partition(";")[0].strip().lower() != JSON:
            raise UnsupportedMediaType(f"this resource takes {JSON}", (JSON,))
        self._pool = pool
        self._answer = answer
        self._refused = refused
        self._body = bytearray()

    async def begin(self) -> None:
        """Nothing has to be prepared."""

    async def feed(self, chunk: bytes | bytearray, size: int, *, start: int = 0, stays: bool = False) -> None:
        """Takes `size` bytes of `chunk` from `start` on. Raises ContentTooLarge."""
        if len(self._body) + size > LONGEST:
            raise ContentTooLarge(f"this resource takes a body of at most {LONGEST} bytes")
        self._body += memoryview(chunk)[start : start + size]

    async def finish(self) -> Answer:
        """Raises BadRequest for a body that is no JSON object."""
        try:
            fields = json.loads(self._body) if self._body else {}
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise BadRequest("the body is not a JSON object")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, fields)
        except PinRequired:  # the secret of the link is valid
            raise
        except Unauthorized:
            self._refused()
            raise

    def stop(self) -> None:
        """The client has left; the answer is made all the same."""

    async def abort(self) -> None:
        self._body.clear()


def json_answer(value: object, status: int = 200, *headers: tuple[str, str]) -> Answer:
    """An answer that no cache keeps."""
    body = json.dumps(value).encode()
    fields = [("Content-Type", JSON), ("Cache-Control", "no-store"), *headers]
    return Answer(status, fields, (Literal(body),), len(body))


def text_field(fields: Fields, name: str, longest: int = 512) -> str:
    """The text of a member, or an empty text without it. Raises BadRequest."""
    value = fields.get(name, "")
    if not isinstance(value, str) or len(value) > longest or not _is_unicode(value):
        raise BadRequest(f"the member {name!r} is not a text of at most {longest} characters")
    return value


def _is_unicode(text: str) -> bool:
    """JSON can write half of a surrogate pair, which is no character (RFC 8259 8.2)."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
