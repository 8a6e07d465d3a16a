"""The files of an npm package (`package/` in a gzipped tar), read as the work of a stranger.

Rules of this file
- The digest of the whole tarball is compared before anything is unpacked.
- A package with a path that leaves its folder, a link, a device, or a file twice is refused as a whole.
- Files, bytes of one file and unpacked bytes of all are limited, skipped ones included.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from streamsrv.errors import StreamsrvError

FOLDER = "package/"
CHUNK = 1 << 20
# A path of names that are neither hidden nor `.` nor `..`.
_SAFE = re.compile(r"(?:[A-Za-z0-9_@][A-Za-z0-9_@.+ -]*/)*[A-Za-z0-9_@][A-Za-z0-9_@.+ -]*")
_INTEGRITY = re.compile(r"sha512-([A-Za-z0-9+/]{86}==)")


class PackageLimits(NamedTuple):
    """Of one package. `unpacked` counts the bytes of all files with their headers, `file` those of one."""

    files: int = 5_000
    unpacked: int = 512 << 20
    file: int = 128 << 20


LIMITS = PackageLimits()


class PackageError(StreamsrvError):
    """The tarball is not one that may be unpacked."""


class PackedFile(NamedTuple):
    """`name` is the path below FOLDER. `read()` gives the whole contents, before the next file is taken."""

    name: str
    size: int
    stream: IO[bytes]

    def read(self) -> bytes:
        """Raises PackageError if the tarball ends within the file."""
        try:
            body = self.stream.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise PackageError(f"the tarball is broken in {self.name}: {error}") from None
        if len(body) != self.size:
            raise PackageError(f"the tarball ends within {self.name}")
        return body


def check_integrity(tarball: Path, expected: str, name: str) -> None:
    """Compares the digest of the tarball with `expected`, in the form that npm prints (Subresource Integrity
    3.1). Raises PackageError."""
    wanted = _INTEGRITY.fullmatch(expected)
    if wanted is None:
        raise PackageError(f"{expected[:120]!r} is not `sha512-` and the digest in base64")
    digest = hashlib.sha512()
    with tarball.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.digest() != base64.b64decode(wanted[1]):
        raise PackageError(f"{tarball.name} is not {name}: its SHA-512 digest differs. Nothing was unpacked")


class _Bounded:
    """The unpacked bytes of a gzip file, at most `most`."""

    def __init__(self, file: gzip.GzipFile, most: int) -> None:
        self._file = file
        self._most = self._left = most

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise PackageError(f"the tarball has more than {self._most} unpacked bytes")
        return chunk


def files_of(tarball: Path, limits: PackageLimits = LIMITS) -> Iterator[PackedFile]:
    """The files of the package, in their order. Raises PackageError."""
    seen: set[str] = set()
    try:
        with gzip.open(tarball, "rb") as file:
            bounded = _Bounded(file, limits.unpacked)
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r|") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    name = _checked(member, limits.file)
                    if name in seen or len(seen) == limits.files:
                        raise PackageError(f"the tarball has {name} twice, or over {limits.files} files")
                    seen.add(name)
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield PackedFile(name, member.size, stream)
            while bounded.read(CHUNK):  # gzip compares its checksum at the end
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, UnicodeError) as error:
        raise PackageError(f"{tarball.name} is not a whole package of npm: {error}") from None
    if not seen:
        raise PackageError(f"{tarball.name} has no file")


def _checked(member: tarfile.TarInfo, most: int) -> str:
    """The path below FOLDER. Raises PackageError for anything that a package does not need."""
    shown = repr(member.name[:120])
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise PackageError(f"the tarball has {shown}, which is a link, a device or sparse")
    name = member.name.removeprefix(FOLDER)
    if name == member.name or not _SAFE.fullmatch(name):
        raise PackageError(f"the tarball has {shown}, which is no path below {FOLDER}")
    if member.size > most:
        raise PackageError(f"the tarball has {shown} of {member.size} bytes; at most {most} are read")
    return name
