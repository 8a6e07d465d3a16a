"""Errors as answers (RFC 9457): each StreamsrvError becomes application/problem+json, or plain text for a
client that accepts nothing else.

`detail` is the text of the error. Other data of the error become members of the problem (table MEMBERS) and
headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from streamsrv.errors import (
    BucketUnreachable,
    IndexFailed,
    IndexUnreachable,
    InstanceDamaged,
    InstanceError,
    KeysMissing,
    MethodNotAllowed,
    MultipartError,
    NotAcceptable,
    Overloaded,
    PinRequired,
    RangeNotSatisfiable,
    StreamsrvError,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
    UploadExpired,
)
from streamsrv.wire.accept import AcceptableRange, Offer, elect
from streamsrv.wire.answers import Answer, Literal
from streamsrv.wire.mediatypes import DICOM_JSON, JSON

PROBLEM = "application/problem+json"
TEXT = "text/plain"
# A client that accepts JSON accepts a problem.
_OFFERS = (Offer(PROBLEM), Offer(JSON), Offer(DICOM_JSON), Offer(TEXT))

# Attributes that become members of the same name.
MEMBERS: Mapping[type[StreamsrvError], tuple[str, ...]] = {
    NotAcceptable: ("acceptable",),
    UnsupportedMediaType: ("supported",),
    MethodNotAllowed: ("allow",),
    PinRequired: ("needs",),
    MultipartError: ("offset",),
    InstanceError: ("offset", "tag"),
    InstanceDamaged: ("study", "series", "sop_instance"),
}


def problem_answer(
    error: StreamsrvError, ranges: Sequence[AcceptableRange] = (), request_id: str = ""
) -> Answer:
    """The answer for `error`. `ranges` are those of the request. If they take neither form, it is a
    problem."""
    members = _members(error, request_id)
    plain = _wants_text(ranges)
    body = _text(members) if plain else json.dumps(members).encode("ascii")
    headers = [
        ("Content-Type", f"{TEXT}; charset=utf-8" if plain else PROBLEM),
        ("Cache-Control", "no-store"),
        *_headers(error),
    ]
    return Answer(error.status, headers, (Literal(body),), len(body))


def problem_text(error: StreamsrvError) -> bytes:
    """The problem document for a part of an answer, which is the same for each request."""
    return json.dumps(_members(error, "")).encode("ascii")


def _wants_text(ranges: Sequence[AcceptableRange]) -> bool:
    chosen = elect(ranges, lambda asked: [offer for offer in _OFFERS if asked.covers(offer.media_type)])
    return chosen is not None and chosen.media_type == TEXT


def _members(error: StreamsrvError, request_id: str) -> dict[str, object]:
    members: dict[str, object] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if request_id:
        members["instance"] = request_id
    for kind, names in MEMBERS.items():
        if isinstance(error, kind):
            members |= {name: value for name in names if (value := getattr(error, name)) is not None}
    return members


def _headers(error: StreamsrvError) -> list[tuple[str, str]]:
    match error:
        case MethodNotAllowed(allow=allow):
            return [("Allow", ", ".join(allow))]
        case (
            KeysMissing(retry_after=seconds)
            | Overloaded(retry_after=seconds)
            | IndexFailed(retry_after=seconds)
            | IndexUnreachable(retry_after=seconds)
            | BucketUnreachable(retry_after=seconds)
            | UploadExpired(retry_after=seconds)
            | TooManyRequests(retry_after=seconds)
        ):
            return [("Retry-After", str(seconds))]
        case Unauthorized(challenges=challenges):
            return [("WWW-Authenticate", challenge) for challenge in challenges]
        case RangeNotSatisfiable(length=length):
            return [("Content-Range", f"bytes */{length}")]
        case _:
            return []


def _text(members: Mapping[str, object]) -> bytes:
    """The detail, and one line for each other member."""
    lines = [f"{members['status']} {members['title']}: {members['detail']}"]
    for name, value in members.items():
        if isinstance(value, tuple):
            lines += [f"{name}: {item}" for item in value]
        elif name in ("instance", "offset", "tag", "study", "series", "sop_instance"):
            lines.append(f"{name}: {value}")
    return "\n".join((*lines, "")).encode("utf-8", "replace")
