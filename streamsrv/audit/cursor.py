"""The durable cursor of the process that sends a trail to a syslog receiver, and the entries behind it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from streamsrv.audit.chain import parsed
from streamsrv.audit.entries import AuditEntry
from streamsrv.audit.trail import files_of


class SentPosition(NamedTuple):
    """The next byte to send: file and offset. `entry` is the number of the last entry before it."""

    file: int = 0
    offset: int = 0
    entry: int = 0


class Unsent(NamedTuple):
    """An entry, its number and chain, and the position behind it."""

    entry: AuditEntry
    number: int
    chain: str
    after: SentPosition


class Cursor:
    """The file `sent` of a trail."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "sent"

    def load(self) -> SentPosition:
        """The beginning if there is no such file, or it is unreadable."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return SentPosition(*map(int, orjson.loads(self._path.read_bytes())))
        return SentPosition()

    def save(self, position: SentPosition) -> None:
        """Durable. Raises OSError."""
        draft = self._path.with_suffix(".new")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, orjson.dumps(list(position)))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        draft.rename(self._path)

    def unsent(self, position: SentPosition) -> Iterator[Unsent]:
        """The whole lines behind a position that are entries; others are left out."""
        for number, path in files_of(self._folder).items():
            if number < position.file:
                continue
            offset = position.offset if number == position.file else 0
            with path.open("rb") as file:
                file.seek(offset)
                for text in file:
                    if not text.endswith(b"\n"):
                        break
                    offset += len(text)
                    values, chain = parsed(text) or ({}, "")
                    with contextlib.suppress(KeyError, ValueError):
                        after = SentPosition(number, offset, int(values["n"]))
                        yield Unsent(AuditEntry.of(values), after.entry, chain, after)
