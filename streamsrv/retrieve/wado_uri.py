"""WADO-URI: one instance by query parameters (PS3.18 9), for older viewers and for links in records.

Strategy: the parameters are translated into those of DICOMweb, so one plan serves both interfaces.
`application/dicom` is a request for the instance, any other type one for the rendered instance or frame.

Rules of this file
- Parameters of pictures are ignored for `application/dicom`, and `transferSyntax` for pictures (9.4.1).
- Without `contentType` an image of one frame is a JPEG, a document has the default type of `/rendered`, and
  anything else is `application/dicom` (9.1.2.2). The Accept header is not used.
- An answer is a single part. A range of parts in `contentType` takes nothing.
- A request for de-identification, or with a presentation state, is refused: this server does neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from streamsrv.errors import BadRequest, NotAcceptable
from streamsrv.pixels.rendering import can_be_drawn
from streamsrv.pixels.viewing import NUMBER, WHOLE_NUMBER
from streamsrv.retrieve.answering import Planned, Retrieval
from streamsrv.retrieve.documents import document_types
from streamsrv.retrieve.instances import instances
from streamsrv.retrieve.pictures import rendered
from streamsrv.store import InstanceRow
from streamsrv.wire.accept import ANY, AcceptableRange, parse_accept
from streamsrv.wire.answers import Request
from streamsrv.wire.mediatypes import DICOM
from streamsrv.wire.resources import Target, frame_numbers, uid_of

UIDS = {"study": "studyUID", "series": "seriesUID", "instance": "objectUID"}
# The parameters of PS3.18 8.3.5 in errors of the pictures, as those of this interface.
NAMES = {
    "viewport": "parameter rows, columns or region",
    "window": "parameter windowCenter or windowWidth",
    "quality": "parameter imageQuality",
}
_NAME = re.compile(rf"parameter ({'|'.join(NAMES)})\b")


def named_instance(request: Request, target: Target) -> Target:
    """The target with the UIDs and the frame of the query. Raises BadRequest, NotFound."""
    given = dict(request.query)
    if given.get("requestType", "").upper() != "WADO":
        raise BadRequest("the parameter requestType is WADO (PS3.18 9.1.2.1)")
    uids = {}
    for name, parameter in UIDS.items():
        if parameter not in given:
            raise BadRequest(f"the parameter {parameter} is missing")
        uids[name] = uid_of(given[parameter], parameter)
    frames = frame_numbers(given["frameNumber"]) if "frameNumber" in given else ()
    if len(frames) > 1:
        raise BadRequest("the parameter frameNumber is one number")
    return Target(target.route, target.version, **uids, frames=frames)


def linked_object(retrieval: Retrieval) -> Planned:
    """Raises BadRequest, NotFound and NotAcceptable."""
    row, given = next(retrieval.selection.rows()), dict(retrieval.request.query)
    _refuse(given)
    ranges = _ranges(given.get("contentType", ANY), _default_type(row, retrieval.target))
    first = max(ranges, key=lambda one: one.quality)
    if first.media_type == DICOM:
        target = retrieval.target._replace(frames=())
        return instances(_translated(retrieval, _instance_type(given, first), (), target))
    types = ",".join(f"{one.media_type};q={one.quality:.9f}" for one in ranges)
    translated = _translated(retrieval, types, tuple(_rendering(given, row)), retrieval.target)
    try:
        return rendered(translated)
    except BadRequest as error:
        raise BadRequest(_NAME.sub(lambda found: NAMES[found[1]], error.detail)) from error


def _ranges(content_type: str, default: str) -> list[AcceptableRange]:
    """Those of single parts. `*/*` stands for the default media type."""
    listed = parse_accept(content_type)
    if not listed:
        raise BadRequest(f"the parameter contentType is {content_type[:80]!r}, not a list of media types")
    found = [
        replace(one, media_type=default) if one.media_type == ANY else one
        for one in listed
        if not one.multipart and one.quality > 0
    ]
    if not found:
        raise NotAcceptable("the parameter contentType accepts no single part", (default,))
    return found


def _refuse(given: Mapping[str, str]) -> None:
    if given.get("anonymize", "yes") != "yes":
        raise BadRequest("the parameter anonymize is yes, or absent")
    if "anonymize" in given:
        raise NotAcceptable("this server does not de-identify instances", ())
    if "presentationUID" in given or "presentationSeriesUID" in given:
        raise NotAcceptable("this server does not apply presentation states", ())


def _default_type(row: InstanceRow, target: Target) -> str:
    if types := document_types(row):
        return types[0]
    single = can_be_drawn(row) and (row.number_of_frames == 1 or target.frames)
    return "image/jpeg" if single else DICOM


def _instance_type(given: Mapping[str, str], asked: AcceptableRange) -> str:
    syntax = asked.transfer_syntax
    if "transferSyntax" in given:
        syntax = uid_of(given["transferSyntax"], "transferSyntax")
    return f"{DICOM}; transfer-syntax={syntax}" if syntax else DICOM


def _translated(
    retrieval: Retrieval, accepted: str, query: tuple[tuple[str, str], ...], target: Target
) -> Retrieval:
    """The path has the frame, because ETags depend on the path and not on the query."""
    request = retrieval.request
    path = "/".join((request.path, *map(str, target.frames)))
    headers = {**request.headers, "accept": accepted}
    return replace(
        retrieval, request=replace(request, path=path, query=query, headers=headers), target=target
    )


# The parameters of pictures (PS3.18 9.4.1.2), as those of 8.3.5


def _rendering(given: Mapping[str, str], row: InstanceRow) -> Iterator[tuple[str, str]]:
    viewport = _viewport(given, row)
    if viewport:
        yield "viewport", viewport
    if "windowCenter" in given or "windowWidth" in given:
        if "windowCenter" not in given or "windowWidth" not in given:
            raise BadRequest("the parameters windowCenter and windowWidth are needed together")
        center, width = (_number(given[name], name) for name in ("windowCenter", "windowWidth"))
        yield "window", f"{center},{width},linear"
    if "imageQuality" in given:
        yield "quality", str(_whole(given["imageQuality"], "imageQuality"))
    for name in ("annotation", "charset"):
        if name in given:
            yield name, given[name]


def _viewport(given: Mapping[str, str], row: InstanceRow) -> str:
    """The size is a limit: the picture keeps its proportions. The region is in parts of the image."""
    region = _region(given["region"], row) if "region" in given else ()
    wide, high = region[2:] or (row.columns, row.rows)
    rows, columns = (_whole(given[name], name) if name in given else 0 for name in ("rows", "columns"))
    if rows and columns:
        size = (columns, rows)
    elif rows:
        size = (-(-wide * rows // high), rows)
    elif columns:
        size = (columns, -(-high * columns // wide))
    else:
        size = (wide, high)
    return ",".join(map(str, (*size, *region))) if rows or columns or region else ""


def _region(text: str, row: InstanceRow) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels."""
    parts = [float(_number(part, "region")) for part in text.split(",")]
    if len(parts) != 4 or not (0 <= parts[0] < parts[2] <= 1 and 0 <= parts[1] < parts[3] <= 1):
        raise BadRequest("the parameter region is left,top,right,bottom, each from 0 to 1")
    left, top = int(parts[0] * row.columns), int(parts[1] * row.rows)
    wide, high = round(parts[2] * row.columns) - left, round(parts[3] * row.rows) - top
    return left, top, max(1, wide), max(1, high)


def _number(text: str, name: str) -> str:
    if not NUMBER.match(text):
        raise BadRequest(f"the parameter {name} holds a value that is no number")
    return text


def _whole(text: str, name: str) -> int:
    if not WHOLE_NUMBER.match(text):
        raise BadRequest(f"the parameter {name} is {text[:20]!r}, not a whole number from 1")
    return int(text)
