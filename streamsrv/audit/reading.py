"""Reads and verifies an audit trail, beside the processes that append to it. Nothing is written.

A check knows these states that are no fault: the trail begins behind files that were removed by age, if an
entry says so; a torn line, if the entry behind it has its length and digest; a torn last line, if the process
that wrote it has died and no other has written since.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from streamsrv.audit.chain import CHAIN, GENESIS, ChainLink, digest, parsed
from streamsrv.audit.entries import Event, timestamp
from streamsrv.audit.trail import files_of, head_of, locked
from streamsrv.errors import NotFound

_TORN = re.compile(r"bytes=(\d+) sha256=([0-9a-f]{64})")
_REMOVED = re.compile(r"last=(\d+) chain=([0-9a-f]{64})")


class TrailLine(NamedTuple):
    """`number` counts the lines of the file from 1; `text` has its line feed unless the line is torn.
    `values` is None if the line is no entry."""

    path: Path
    number: int
    text: bytes
    values: dict[str, Any] | None
    chain: str


def lines_of(folder: Path) -> Iterator[TrailLine]:
    """The lines that exist now, of all files in their order. Raises NotFound if there is no trail."""
    if not folder.is_dir():
        raise NotFound(f"there is no audit trail in {folder}")
    with locked(folder):
        files = {path: path.stat().st_size for path in files_of(folder).values()}
    for path, size in files.items():
        with path.open("rb") as file:
            number = 0
            while size > 0 and (text := file.readline(size)):
                size -= len(text)
                number += 1
                yield TrailLine(path, number, text, *(parsed(text) or (None, "")))


def entries_of(folder: Path, user: str = "", study: str = "", since: float = 0.0) -> Iterator[dict[str, Any]]:
    """The entries as JSON objects, oldest first. `user` is the name of a principal, or its part behind the
    first colon. `since` is in seconds since 1970."""
    begin = timestamp(since) if since else ""
    for line in lines_of(folder):
        values = line.values
        if values is None or str(values.get("at", "")) < begin:
            continue
        if study and values.get("study") != study:
            continue
        if user and user not in (name := str(values.get("user", "")), name.partition(":")[2]):
            continue
        yield values | {"chain": line.chain}


@dataclass(slots=True)
class Verification:
    """`problems` are signs of a change, `remarks` are not. `last` is the link of the last entry."""

    entries: int = 0
    files: int = 0
    last: ChainLink = GENESIS
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def verify(folder: Path, anchor: ChainLink | None = None) -> Verification:
    """Checks each line against its chain, and the end against the head of the trail. `anchor` is a link that
    was noted earlier: the trail must still have it."""
    return _Check(folder, anchor).run()


class _Check:
    def __init__(self, folder: Path, anchor: ChainLink | None) -> None:
        self._folder = folder
        self._found = Verification()
        self._expected = {link.number: link for link in (head_of(folder), anchor) if link is not None}
        self._first: TrailLine | None = None
        self._removed: set[ChainLink] = set()
        self._unreadable: TrailLine | None = None  # the line before, if it is no entry
        self._path: Path | None = None

    def run(self) -> Verification:
        for line in lines_of(self._folder):
            if line.path != self._path:
                self._path = line.path
                self._found.files += 1
            if line.values is None:
                self._settle(None)
                self._unreadable = line
            else:
                self._settle(line)
                self._entry(line, line.values)
        self._end()
        return self._found

    def _entry(self, line: TrailLine, values: dict[str, Any]) -> None:
        number = values["n"]
        found, last = self._found, self._found.last
        if self._first is None:
            self._first = line
            if number == 1:
                self._compare(line, GENESIS)
        elif number == last.number + 1:
            self._compare(line, last)
        elif number > last.number:
            self._missing(last.number + 1, number - 1, place(line))
        else:
            self._problem(line, f"entry {number} stands behind entry {last.number}")
        found.entries += 1
        found.last = link = ChainLink(number, line.chain)
        if (expected := self._expected.pop(number, link)) != link:
            self._problem(line, f"entry {number} was {expected.chain[:12]}... when it was written")
        said = _REMOVED.fullmatch(str(values.get("detail", "")))
        if said and values.get("event") == Event.FILES_REMOVED:
            self._removed.add(ChainLink(int(said[1]), said[2]))

    def _compare(self, line: TrailLine, last: ChainLink) -> None:
        if digest(last.chain, line.text[: line.text.rindex(CHAIN)]) != line.chain:
            self._problem(line, f"entry {last.number + 1} or the entry before it was changed")

    def _settle(self, following: TrailLine | None) -> None:
        """Judges the line before, if it was no entry, by the entry behind it."""
        torn, self._unreadable = self._unreadable, None
        if torn is None:
            return
        values = (following.values if following else None) or {}
        said = _TORN.fullmatch(str(values.get("detail", "")))
        text = torn.text.removesuffix(b"\n")
        if said and (int(said[1]), said[2]) == (len(text), hashlib.sha256(text).hexdigest()):
            self._found.remarks.append(f"{place(torn)}: a process died while it wrote this line")
        else:
            self._problem(torn, "this line is no entry")

    def _end(self) -> None:
        found, torn = self._found, self._unreadable
        if torn is not None and not torn.text.endswith(b"\n"):
            found.remarks.append(f"{place(torn)}: a process died while it wrote this line, or is writing it")
        else:
            self._settle(None)
        first = self._first
        if first is not None and first.values is not None and first.values["n"] > 1:
            number = first.values["n"] - 1
            known = [link for link in self._removed if link.number == number]
            if known:
                self._compare(first, known[-1])
                found.remarks.append(f"entries up to {number} were removed by age")
            else:
                self._missing(1, number, place(first))
        if first is not None and head_of(self._folder) is None:
            found.problems.append(f"{self._folder / 'head'} is missing or unreadable")
        for number in sorted(self._expected):
            if number > found.last.number:
                self._missing(found.last.number + 1, number, "at the end")
                break

    def _missing(self, first: int, last: int, where: str) -> None:
        which = f"entry {first} is" if first == last else f"entries {first} to {last} are"
        self._found.problems.append(f"{where}: {which} missing")

    def _problem(self, line: TrailLine, what: str) -> None:
        self._found.problems.append(f"{place(line)}: {what}")


def place(line: TrailLine) -> str:
    return f"{line.path.name} line {line.number}"
