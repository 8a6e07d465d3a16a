"""A few studies in an index of their own, and searches of it without a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import zstandard

from streamsrv.dicom.instance import FrameKind, JsonDataset
from streamsrv.search import Searches, SearchLimits
from streamsrv.store.index.index import Index
from streamsrv.store.rows import InstanceKey, InstanceRow, Location, NewInstance
from streamsrv.wire.answers import Answer, ByteStream, Deferred, Literal, Request, resolved
from streamsrv.wire.resources import target_of

BASE = "https://example.org/v2"
CT = "1.2.840.10008.5.1.4.1.1.2"


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def instance(key: tuple[str, str, str], number: int, attributes: JsonDataset) -> NewInstance:
    row = InstanceRow(
        InstanceKey(*key),
        Location(1, number * 100, 100),
        number.to_bytes(16, "big"),
        number,
        bytes(16),
        CT,
        "1.2.840.10008.1.2.1",
        300,
        False,
        0,
        0,
        16,
        16,
        0,
        1,
        16,
        FrameKind.NONE,
        0,
        0,
        0,
        0,
        0,
    )
    text = json.dumps(
        {**attributes, "7FE00010": {"vr": "OW", "BulkDataURI": "\0/bulkdata/7FE00010"}}, separators=(",", ":")
    )
    text = text.replace("\\u0000", "\0")
    return NewInstance(row, [zstandard.compress(text.encode())], b"", [], attributes)


def patient(name: str, number: str, date: str) -> JsonDataset:
    return {
        "00080020": element("DA", date),
        "00080030": element("TM", "101500"),
        "00080050": element("SH", f"A{number}"),
        "00081030": element("LO", f"study of {name}"),
        "00100010": element("PN", {"Alphabetic": name}),
        "00100020": element("LO", number),
        "00100030": element("DA", "19700101"),
        "00102160": element("SH", "group"),
    }


def populate() -> Iterator[NewInstance]:
    number = 0
    for study, (name, date) in enumerate(
        (("Doe^Jane", "20240131"), ("Roe^Max", "20240202"), ("Poe^Eva", "20230505"))
    ):
        for series, modality in enumerate(("CT", "MR")[: study + 1]):
            for at in range(3):
                number += 1
                attributes = patient(name, f"P{study}", date) | {
                    "00080016": element("UI", CT),
                    "00080021": element("DA", date),
                    "00080060": element("CS", modality),
                    "0008103E": element("LO", f"series {series}"),
                    "00181030": element("LO", "protocol"),
                    "00187004": element("CS", f"detector {at}"),
                    "00200011": element("IS", series + 1),
                    "00200013": element("IS", at + 1),
                    "00280010": element("US", 16),
                    "00280011": element("US", 17),
                    "00280100": element("US", 8),
                }
                yield instance(
                    (f"1.{study}", f"1.{study}.{series}", f"1.{study}.{series}.{at}"), number, attributes
                )


@dataclass
class Holder:
    """An index. Each `searches` begins with an empty cache."""

    index: Index

    def searches(self, **limits: int) -> Searches:
        return Searches(self.index, b"secret", SearchLimits(**limits))


def request_of(url: str, headers: dict[str, str]) -> Request:
    path, _, query = url.partition("?")
    pairs = tuple(parse_qsl(query, keep_blank_values=True))
    return Request("GET", f"/v2{path}", pairs, headers, BASE, 2)


def brief(searches: Searches, url: str, **headers: str) -> Answer | Deferred:
    """What the event loop gets."""
    request = request_of(url, headers)
    return searches.answer(request, target_of(request.path))


def ask(store: Holder | Searches, url: str, **headers: str) -> Answer:
    searches = store.searches() if isinstance(store, Holder) else store
    return resolved(brief(searches, url, **headers))


def body_of(answer: Answer) -> bytes:
    body = b""
    for piece in answer.plan:
        assert isinstance(piece, Literal | ByteStream)
        body += piece.payload if isinstance(piece, Literal) else b"".join(piece.chunks(0, None))
    assert answer.length in (None, len(body))
    return body


def results(store: Holder | Searches, url: str) -> list[dict[str, Any]]:
    answer = ask(store, url)
    if answer.status == 204:
        assert answer.length == 0
        return []
    assert answer.status == 200
    found: list[dict[str, Any]] = json.loads(body_of(answer))
    for each in found:
        assert list(each) == sorted(each)
    return found


def values(results: list[dict[str, Any]], tag: str) -> list[Any]:
    return [each[tag]["Value"][0] for each in results]


def header(answer: Answer, name: str) -> list[str]:
    return [value for key, value in answer.headers if key == name]
