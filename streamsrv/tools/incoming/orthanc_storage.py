"""The storage folder of Orthanc: the DICOM files among its attachments.

    DIR/ab/cd/abcd....   an attachment, named by its UUID; as it is, or 8 bytes length and a zlib stream
    DIR/index            the SQLite index of Orthanc: kind, compression and MD5 digest of each attachment

An attachment is a DICOM file, or something that Orthanc has derived: a summary in JSON, or the begin of a
DICOM file up to the pixels. The begin is a whole DICOM file for every reader. So the index decides; without
an index the longest file of each SOP Instance UID counts.

Rules
- The folder is only read. An index with a write-ahead log is copied first, because SQLite would write there.
- A running Orthanc holds a lock on its index: the folder is refused then.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

from streamsrv.client.files import examine, files_under
from streamsrv.dicom.part10 import PREAMBLE, PREFIX
from streamsrv.errors import InstanceError, StreamsrvError

PIECE = 1 << 20
LENGTH = 8  # bytes before a zlib stream: its length, little endian
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DICOM_FILE, COMPRESSED = 1, 2  # values of fileType and compressionType
# The bytes that a holder of SQLite's lock on a file has locked (sqlite.org/fileformat.html).
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510


class AttachmentDamaged(Exception):
    """The bytes are not those that Orthanc has stored."""


class Attachment(NamedTuple):
    """A DICOM file. `md5` is the digest of its bytes in hex, or "" if it is not known."""

    path: Path
    is_compressed: bool
    md5: str = ""

    def pieces(self, file: IO[bytes]) -> Iterator[bytes]:
        """The bytes of the DICOM file. Raises AttachmentDamaged, OSError."""
        digest = hashlib.md5(usedforsecurity=False)
        for piece in inflated(file) if self.is_compressed else iter(lambda: file.read(PIECE), b""):
            digest.update(piece)
            yield piece
        if self.md5 and digest.hexdigest() != self.md5:
            raise AttachmentDamaged("its MD5 digest is not that of Orthanc's index")


def inflated(file: IO[bytes]) -> Iterator[bytes]:
    """Raises AttachmentDamaged."""
    stated, length, stream = int.from_bytes(file.read(LENGTH), "little"), 0, zlib.decompressobj()
    try:
        while not stream.eof and (raw := file.read(PIECE)):
            while raw and not stream.eof:
                piece = stream.decompress(raw, PIECE)
                raw = stream.unconsumed_tail
                length += len(piece)
                yield piece
    except zlib.error as fault:
        raise AttachmentDamaged(f"its zlib stream is damaged: {fault}") from fault
    if not stream.eof or length != stated:
        raise AttachmentDamaged(f"it has {length} bytes uncompressed, and states {stated}")


def attachments(folder: Path, index: Path | None) -> Iterator[Attachment]:
    """The DICOM files in the order of the index, or of their names. Raises StreamsrvError."""
    known = index or folder / "index"
    if known.is_file():
        yield from _indexed(folder, known)
    elif index is not None:
        raise StreamsrvError(f"{index} is no file")
    else:
        yield from _by_contents(folder)


# With the index


def _indexed(folder: Path, index: Path) -> Iterator[Attachment]:
    select = "SELECT rowid, uuid, compressionType, uncompressedMD5 FROM AttachedFiles"
    page = f"{select} WHERE fileType = ? AND rowid > ? ORDER BY rowid LIMIT 1000"
    with ExitStack() as held:
        rows = _opened(index, held)
        last = -1
        try:
            while found := rows.execute(page, (DICOM_FILE, last)).fetchall():
                last = found[-1][0]
                for _, uuid, compression, md5 in found:
                    if not UUID.fullmatch(str(uuid)):
                        raise StreamsrvError(f"{index} has {uuid!r}, which is no UUID")
                    path = folder / uuid[:2] / uuid[2:4] / uuid
                    yield Attachment(path, compression == COMPRESSED, md5 or "")
        except sqlite3.Error as fault:
            raise StreamsrvError(f"{index} is no index of Orthanc: {fault}") from fault


def _opened(index: Path, held: ExitStack) -> sqlite3.Connection:
    with index.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
        except BlockingIOError as fault:
            raise StreamsrvError(f"Orthanc runs in {index.parent}: stop it first, or use pull") from fault
    log = index.with_name(f"{index.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0
    if has_log:
        copies = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="streamsrv-")))
        for path in (index, log):
            shutil.copyfile(path, copies / path.name)
        index = copies / index.name
    address = f"file:{quote(str(index.resolve()))}?immutable={int(not has_log)}"
    return held.enter_context(closing(sqlite3.connect(address, uri=True)))


# Without it

SCHEMA = "CREATE TABLE files (path BLOB PRIMARY KEY, uid TEXT, size INTEGER, compressed INTEGER)"
# A file that no other file of its instance exceeds; one of several equal ones.
LONGEST = """
SELECT path, compressed FROM files AS one WHERE NOT EXISTS (
    SELECT 1 FROM files AS other
    WHERE uid = one.uid AND uid != '' AND (size, path) > (one.size, one.path)
) ORDER BY path
"""


def _by_contents(folder: Path) -> Iterator[Attachment]:
    with closing(sqlite3.connect("")) as rows:  # a temporary file of SQLite
        rows.execute(SCHEMA)
        rows.execute("CREATE INDEX by_uid ON files (uid, size, path)")
        for path, _ in files_under([folder]):
            if UUID.fullmatch(path.name):
                found = _examined(path)
                if found is not None:
                    rows.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (os.fsencode(path), *found))
        for path, compressed in rows.execute(LONGEST):
            yield Attachment(Path(os.fsdecode(path)), bool(compressed))


def _examined(path: Path) -> tuple[str, int, bool] | None:
    """SOP Instance UID or "", length in bytes, and whether the file is compressed. None if it is no DICOM
    file."""
    with path.open("rb") as file:
        begin = file.read(PREAMBLE + len(PREFIX))
        if begin[PREAMBLE:] == PREFIX:
            return _uid_of(path), os.fstat(file.fileno()).st_size, False
        file.seek(0)
        with tempfile.NamedTemporaryFile(prefix="streamsrv-") as copy:
            try:
                for piece in inflated(file):
                    if not copy.tell() and piece[PREAMBLE : PREAMBLE + len(PREFIX)] != PREFIX:
                        return None
                    copy.write(piece)
            except AttachmentDamaged:
                return ("", path.stat().st_size, True) if copy.tell() else None
            copy.flush()
            return _uid_of(Path(copy.name)), copy.tell(), True


def _uid_of(path: Path) -> str:
    try:
        return examine(path).uid
    except InstanceError:
        return ""
