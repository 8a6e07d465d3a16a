"""A study, series or instance as a ZIP archive of the stored files (PS3.18 8.7.3, application/zip).

Strategy: the archive is a plan of stored entries. Their CRC-32 was taken when they arrived, so all heads and
the directory are known before the first byte: the answer has a length, ranges and an ETag, and the kernel
sends the files.

Rules of this file
- Files are sent byte for byte, in every transfer syntax. A client that names a syntax gets 406 unless all
  files have it.
- A file has the name study/series/instance.dcm. The directory is in memory: about 300 bytes an instance.
"""

from __future__ import annotations

from streamsrv.errors import NotAcceptable
from streamsrv.retrieve.answering import CACHING, Retrieval
from streamsrv.wire import zip_archive
from streamsrv.wire.answers import Answer, Place, StoredParts
from streamsrv.wire.conditional import etag_of, evaluate, not_modified
from streamsrv.wire.mediatypes import ZIP


def archive(retrieval: Retrieval) -> Answer:
    """Raises NotAcceptable."""
    _check_syntax(retrieval)
    request, target = retrieval.request, retrieval.target
    etag = etag_of([retrieval.selection.digest], request.path, ZIP)
    name = target.instance or target.series or target.study
    disposition = f'attachment; filename="{name}.zip"'
    built = Answer(200, [("Content-Type", ZIP), ("Content-Disposition", disposition), *CACHING])
    if not not_modified(request, etag):
        plan = archive_plan(retrieval)
        built.plan, built.length = plan, plan.length
    return evaluate(request, built, etag)


def _check_syntax(retrieval: Retrieval) -> None:
    named = {one.transfer_syntax for one in retrieval.ranges() if one.media_type == ZIP} - {"", "*"}
    for syntax in named:
        if set(retrieval.selection.syntaxes) != {syntax}:
            raise NotAcceptable(
                "an archive has the files in their stored transfer syntaxes, and not all have this one", ()
            )


def archive_plan(retrieval: Retrieval) -> StoredParts:
    heads: list[bytes] = []
    places: list[Place] = []
    directory: list[bytes] = []
    offset = 0
    for row in retrieval.selection.rows():
        entry = zip_archive.Entry(
            "/".join(row.key) + ".dcm",
            row.crc32,
            row.location.length,
            offset,
            row.stored_at // 1_000_000,
        )
        heads.append(zip_archive.head(entry))
        places.append(row.location)
        directory.append(zip_archive.directory_entry(entry))
        offset += len(heads[-1]) + entry.length
    listing = b"".join(directory)
    return StoredParts(heads, places, listing + zip_archive.end(len(heads), len(listing), offset))
