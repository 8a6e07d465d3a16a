"""The files of the command line, in batches.

Strategy: `examine` reads the begin of each file. A file that is no Part 10 file (PS3.10 7.1) but has a
dataset gets a head on request: preamble, DICM prefix and file meta information. The head is sent before the
bytes of the file, which stays as it is on the disk.

Rules
- Files are found lazily. A folder of millions needs the memory of one batch and of the names of one folder.
- The SOP Instance UID of the dataset identifies the file in a response (PS3.18 10.5.3). The file meta
  information of some files has another UID.
- Compressed pixels get no head, because nothing else in the dataset names their transfer syntax.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from streamsrv.dicom import tags
from streamsrv.dicom.elements import Elements
from streamsrv.dicom.explicit import part10_head
from streamsrv.dicom.frames import scan_items
from streamsrv.dicom.part10 import (
    PREAMBLE,
    PREFIX,
    Encoding,
    bare_encoding,
    encoding_of,
    lacks_preamble,
    open_dataset,
    read_file_meta,
)
from streamsrv.dicom.values import well_formed_uid
from streamsrv.dicom.window import Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError, InstanceRefused, NotDicom

LIMITS = ReadLimits()
CLASS_IN_FILE_META, INSTANCE_IN_FILE_META = 0x00020002, 0x00020003
DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage (PS3.4 I)
SOP_CLASS, SOP_INSTANCE = int(tags.SOP_CLASS_UID, 16), int(tags.SOP_INSTANCE_UID, 16)
PIXEL_DATA = int(tags.PIXEL_DATA, 16)
SLICE = 4 << 20  # bytes between two steps of the progress bar


class FileChanged(Exception):
    """A file has not the bytes that were announced any more."""


class FoundFile(NamedTuple):
    """A file to send. `uid` is its SOP Instance UID, or "" if that is unknown. `head` is sent before the
    `size` bytes of the file."""

    path: Path
    size: int
    uid: str
    head: bytes = b""

    @property
    def length(self) -> int:
        """Bytes of the Part 10 file that is sent."""
        return len(self.head) + self.size

    def send(self, sock: socket.socket, progress: Callable[[int], None]) -> None:
        """Calls `progress` with the number of bytes sent. Raises OSError, FileChanged."""
        sock.sendall(self.head)
        with self.path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != self.size:
                raise FileChanged(f"{self.path} changed while it was being sent")
            for offset in range(0, self.size, SLICE):
                wanted = min(SLICE, self.size - offset)
                sent = sock.sendfile(stream, offset, wanted)
                progress(sent)
                if sent != wanted:
                    raise FileChanged(f"{self.path} became shorter while it was being sent")


Batch: TypeAlias = list[FoundFile]


class Limit(NamedTuple):
    """The limits of one request, `size` in bytes. A file above `size` is sent alone."""

    instances: int = 200
    size: int = 256 << 20  # a request that breaks off loses a few seconds of a usual line


def files_under(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yields each regular file, by name in each folder, and whether the command line names it."""
    for path in paths:
        if not path.is_dir():
            yield path, True
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            yield from ((Path(folder, name), False) for name in sorted(names) if Path(folder, name).is_file())


def size_of(path: Path) -> int:
    """0 after an error, which opening the file raises again."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class HasLength(Protocol):
    @property
    def length(self) -> int:
        """Bytes."""


Sent = TypeVar("Sent", bound=HasLength)


def batches(instances: Iterable[Sent], limit: Limit) -> Iterator[list[Sent]]:
    """The instances of each request."""
    batch: list[Sent] = []
    size = 0
    for each in instances:
        if batch and (len(batch) >= limit.instances or size + each.length > limit.size):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each.length
    if batch:
        yield batch


def examine(path: Path, *, add_meta: bool = False) -> FoundFile:
    """Raises OSError; NotDicom for a file that is no Part 10 file; InstanceRefused if it cannot get the
    head that `add_meta` asks for."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size

        def pread(offset: int, length: int) -> bytes:  # Windows has no os.pread
            stream.seek(offset)
            return stream.read(length)

        if pread(PREAMBLE, len(PREFIX)) == PREFIX:
            return FoundFile(path, size, _instance_uid(pread, size))
        window = ReadWindow(pread, size)
        encoding = bare_encoding(window, size)
        if not encoding and not lacks_preamble(window):
            raise NotDicom("no DICM prefix at byte 128: not a DICOM Part 10 file")
        if not add_meta:
            raise NotDicom("a dataset without preamble or file meta information: send it with --add-meta")
        return _with_head(path, pread, size, encoding)


def _with_head(path: Path, pread: Pread, size: int, encoding: Encoding | None) -> FoundFile:
    """`encoding` is that of a dataset at byte 0. Without it the preamble alone is missing, or with it the
    DICM prefix."""
    try:
        if encoding:
            sop_class, uid = _identity(pread, size, 0, encoding, last=PIXEL_DATA)
            well_formed_uid(tags.SOP_CLASS_UID, sop_class)
            well_formed_uid(tags.SOP_INSTANCE_UID, uid)
            return FoundFile(path, size, uid, part10_head(sop_class, uid, encoding.syntax))
    except InstanceError as error:
        raise InstanceRefused(f"cannot add file meta information: {error.detail}") from error
    head = bytes(PREAMBLE) + (b"" if pread(0, len(PREFIX)) == PREFIX else PREFIX)

    def with_head(offset: int, length: int) -> bytes:
        start = head[offset : offset + length]
        return start + pread(max(0, offset - len(head)), length - len(start))

    return FoundFile(path, size, _instance_uid(with_head, len(head) + size), head)


def _instance_uid(pread: Pread, size: int) -> str:
    """The SOP Instance UID of the dataset, else that of the file meta information, else "". Raises NotDicom
    for a DICOMDIR."""
    window = ReadWindow(pread, size)
    try:
        meta = read_file_meta(window, size, LIMITS)
    except InstanceError:
        return ""
    stated = {tag: value for tag, _, value in meta.elements}
    if _uid(stated.get(CLASS_IN_FILE_META, b"")) == DIRECTORY:
        raise NotDicom("a DICOMDIR: it lists files, and is no instance")
    uid = _uid(stated.get(INSTANCE_IN_FILE_META, b""))
    try:
        return _identity(pread, size, meta.end, encoding_of(meta, window), last=SOP_INSTANCE)[1] or uid
    except InstanceError:
        return uid


def _identity(pread: Pread, size: int, start: int, encoding: Encoding, *, last: int) -> tuple[str, str]:
    """SOP Class UID and SOP Instance UID of the dataset, "" if missing. Reads the dataset up to the tag
    `last`. Raises NotDicom and InstanceRefused."""

    def skip_fragments(tag: int, start: int, end: int, little: bool) -> int:
        if tag == PIXEL_DATA and len(elements.levels) == 1:
            raise InstanceRefused("the pixels are compressed, and their transfer syntax is unknown")
        return scan_items(pread, start, end, LIMITS.max_fragments, little=little).end

    pread, start, end = open_dataset(pread, size, start, encoding, LIMITS)
    elements = Elements(
        ReadWindow(pread, end),
        start,
        end,
        explicit=encoding.explicit,
        little=encoding.little,
        limits=LIMITS,
        skip_fragments=skip_fragments,
    )
    found = {SOP_CLASS: b"", SOP_INSTANCE: b""}
    for tag, _, _, _, value in elements.events():
        if len(elements.levels) == 1 and tag >> 16 != 0xFFFE:
            if tag in found and value:
                found[tag] = value
            if tag >= last:
                break
    return _uid(found[SOP_CLASS]), _uid(found[SOP_INSTANCE])


def _uid(value: bytes) -> str:
    return value.decode("latin-1").strip("\0 ")
