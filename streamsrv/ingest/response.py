"""The response of a store transaction: its status and its dataset (PS3.18 10.5.3, Annex I).

Rules
- An item is one small tuple while the request runs. JSON is made when the answer is sent, an item at a time,
  so that the answer to 100,000 parts is never held. XML is made of that JSON (dicom/nativexml.py).
- v2 adds Failed Attributes Sequence (0074,1048) to every item, perhaps empty, and warns with 202. v1 does
  neither.
- Error Comment (0000,0902) is an LO, which holds 64 characters. A longer sentence continues in the next item
  of the sequence: joined with blanks the comments are the sentence.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from streamsrv.dicom import tags
from streamsrv.dicom.instance import SOPInstance
from streamsrv.dicom.nativexml import native_xml
from streamsrv.errors import InstanceError, NotAcceptable
from streamsrv.wire.accept import STORE_OFFERS, Offer, choose_json, parse_accept
from streamsrv.wire.answers import Answer, ByteStream, Literal, Request
from streamsrv.wire.codings import IDENTITY, check_charset, encoded
from streamsrv.wire.mediatypes import DICOM_JSON, DICOM_XML
from streamsrv.wire.resources import instance_url, series_url, study_url

WARNING_ATTRIBUTES = 1  # v2: some attributes break the rules of their VR
# A response with more items is streamed, without a length.
ITEMS_AT_ONCE = 2_000
LONGEST_LO = 64  # characters (PS3.5 6.2)
_NO_LO = re.compile(r"[\x00-\x1f\x7f\\]")


class StoredItem(NamedTuple):
    sop_class_uid: str
    study: str
    series: str
    instance: str
    comments: tuple[str, ...] = ()  # attribute warnings

    @classmethod
    def of(cls, stored: SOPInstance) -> StoredItem:
        uids = stored.sop_class_uid, stored.study_uid, stored.series_uid, stored.instance_uid
        return cls(*uids, remarks(stored))


def remarks(stored: SOPInstance) -> tuple[str, ...]:
    """Returns the warnings about a stored instance: attributes that break the rules of their VR, and a
    missing Patient ID, because no search finds it."""
    said = [f"({each.tag[:4]},{each.tag[4:]}) {each.reason}" for each in stored.warnings]
    if not stored.attributes.get(tags.PATIENT_ID, {}).get("Value"):
        said.append("(0010,0020) is absent or empty")
    return tuple(said)


class FailedItem(NamedTuple):
    failure_reason: int
    comment: str
    sop_class_uid: str = ""
    instance: str = ""

    @classmethod
    def of(cls, error: InstanceError, sop_class_uid: str = "", instance: str = "") -> FailedItem:
        return cls(error.failure_reason, error.detail, sop_class_uid, instance)


@dataclass(slots=True)
class StoreResult:
    """The outcome of each part, in their order within each list."""

    stored: list[StoredItem] = field(default_factory=list)
    failed: list[FailedItem] = field(default_factory=list)

    def status(self, version: int) -> int:
        """Returns the status by PS3.18 Table 10.5.3-1, or 204 for a body without parts."""
        if not self.stored:
            return 409 if self.failed else 204
        if self.failed or (version >= 2 and any(item.comments for item in self.stored)):
            return 202
        return 200


def acceptable(request: Request) -> Offer:
    """Returns the media type of the response. Raises NotAcceptable; call it before the body is read."""
    check_charset(request)
    queries = [value for name, value in request.query if name == "accept"]
    return choose_json(parse_accept(request.headers.get("accept"), queries), STORE_OFFERS)


def answer(result: StoreResult, request: Request) -> Answer:
    status = result.status(request.version)
    if status == 204:
        return Answer(204)
    try:
        media_type = acceptable(request).media_type
    except NotAcceptable:  # the instances are stored, so there must be an answer
        media_type = DICOM_JSON

    def chunks(start: int, stop: int | None) -> Iterator[bytes]:
        text = dataset_text(result, request.base_url, request.version)
        return encoded(native_xml(text) if media_type == DICOM_XML else text, IDENTITY)

    headers = [("Content-Type", media_type)]
    if result.stored:
        url = created_url(result.stored, request.base_url)
        headers += [("Content-Location", url), ("Location", url)]
    if len(result.stored) + len(result.failed) <= ITEMS_AT_ONCE:
        payload = b"".join(chunks(0, None))
        return Answer(status, headers, (Literal(payload),), len(payload))
    return Answer(status, headers, (ByteStream(chunks, None),), None)


def created_url(stored: Sequence[StoredItem], base_url: str) -> str:
    """The URL for Location and Content-Location (PS3.18 Table 10.5.3-2), which hold one: that of the stored
    instance, else of the series or study that has all of them, else of all studies."""
    one = stored[0]
    if len(stored) == 1:
        return instance_url(base_url, one.study, one.series, one.instance)
    if any(item.study != one.study for item in stored):
        return f"{base_url}/studies"
    if any(item.series != one.series for item in stored):
        return study_url(base_url, one.study)
    return series_url(base_url, one.study, one.series)


def dataset_text(result: StoreResult, base_url: str, version: int) -> Iterator[bytes]:
    """Yields the dataset as DICOM JSON; its tags ascend."""
    parts: list[Iterator[bytes]] = []
    studies = {item.study for item in result.stored}
    if len(studies) == 1:
        url = _element("UR", study_url(base_url, studies.pop()))
        parts.append(iter([b'"00081190":' + orjson.dumps(url)]))
    if result.failed:
        items = (orjson.dumps(_failed(item, version)) for item in result.failed)
        parts.append(_sequence(b"00081198", items))
    if result.stored:
        items = (orjson.dumps(_stored(item, base_url, version)) for item in result.stored)
        parts.append(_sequence(b"00081199", items))
    yield b"{"
    for number, part in enumerate(parts):
        if number:
            yield b","
        yield from part
    yield b"}"


def _sequence(tag: bytes, items: Iterator[bytes]) -> Iterator[bytes]:
    yield b'"%s":{"vr":"SQ","Value":[' % tag
    for number, item in enumerate(items):
        yield b"," + item if number else item
    yield b"]}"


def _element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def _stored(item: StoredItem, base_url: str, version: int) -> dict[str, Any]:
    url = instance_url(base_url, item.study, item.series, item.instance)
    dataset = {
        "00081150": _element("UI", item.sop_class_uid),
        "00081155": _element("UI", item.instance),
        "00081190": _element("UR", url),
    }
    if version >= 2:
        if item.comments:
            dataset["00081196"] = _element("US", WARNING_ATTRIBUTES)
        dataset["00741048"] = _comments(item.comments)
    return dataset


def _failed(item: FailedItem, version: int) -> dict[str, Any]:
    dataset = {}
    if item.sop_class_uid:
        dataset["00081150"] = _element("UI", item.sop_class_uid)
    if item.instance:
        dataset["00081155"] = _element("UI", item.instance)
    dataset["00081197"] = _element("US", item.failure_reason)
    if version >= 2:
        dataset["00741048"] = _comments((item.comment,) if item.comment else ())
    return dataset


def _comments(comments: tuple[str, ...]) -> dict[str, Any]:
    """Returns a Failed Attributes Sequence with one or more items for each comment."""
    lines = (line for comment in comments for line in _lines(comment))
    return _element("SQ", *({"00000902": _element("LO", line)} for line in lines))


def _lines(comment: str) -> list[str]:
    """Breaks a comment between words into values of LO."""
    text = _NO_LO.sub("?", comment).encode("utf-8", "replace").decode()  # a lone surrogate is no UTF-8
    return [text] if len(text) <= LONGEST_LO else textwrap.wrap(text, LONGEST_LO, break_on_hyphens=False)
