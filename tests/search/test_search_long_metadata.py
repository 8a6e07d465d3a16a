"""Searches by attributes that are not indexed, where metadata are long: nothing but what is asked for is
parsed, and all searches of a worker share what they may hold parsed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import zstandard
from search_world import CT, Holder, ask, body_of, element, instance, patient, results, values

from streamsrv.errors import ContentTooLarge, Overloaded
from streamsrv.query.budget import Parsing
from streamsrv.search.attributes import _over, merged
from streamsrv.store.index.index import Index
from streamsrv.store.rows import METADATA_CHUNK, NewInstance

ITEMS = 20_000
ITEM: dict[str, Any] = {
    "00181000": element("LO", "nested"),
    "00200032": element("DS", 1.5, 2.5, 3.5),
    "00080005": element("CS", 'in a "name" {[\\'),
}


def long_instance(number: int) -> tuple[NewInstance, dict[str, Any]]:
    """3 MB of text, in which DeviceSerialNumber stands in each item, and at the top level of odd numbers."""
    key = (f"2.{number}", f"2.{number}.1", f"2.{number}.1.1")
    attributes = patient(f"Long{number}", f"L{number}", "20240101") | {"00080016": element("UI", CT)}
    long = {"00081140": {"vr": "SQ", "Value": [ITEM] * ITEMS}, "52009230": {"vr": "SQ", "Value": [ITEM]}}
    top = {"00181000": element("LO", "outer"), "00181250": element("SH", 'HEAD "}')} if number % 2 else {}
    uids = {
        tag: element("UI", uid) for tag, uid in zip(("0020000D", "0020000E", "00080018"), key, strict=True)
    }
    dataset = dict(sorted((attributes | uids | long | top).items()))
    text = orjson.dumps(dataset)
    new = instance(key, 1000 + number, attributes)
    chunks = [
        zstandard.compress(text[at : at + METADATA_CHUNK]) for at in range(0, len(text), METADATA_CHUNK)
    ]
    return NewInstance(new.row._replace(metadata_length=len(text)), chunks, b"", [], attributes), dataset


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Holder, dict[int, dict[str, Any]]]]:
    index = Index.open(tmp_path_factory.mktemp("long"))
    index.add_segment()
    made = {number: long_instance(number) for number in (1, 2)}
    index.commit([new for new, _ in made.values()], segment=1, committed_end=0)
    yield Holder(index), {number: dataset for number, (_, dataset) in made.items()}
    index.close()


Long = tuple[Holder, dict[int, dict[str, Any]]]


def test_a_nested_attribute_of_the_same_name_does_not_match(long: Long) -> None:
    store, _ = long
    assert values(results(store, "/studies?DeviceSerialNumber=outer"), "0020000D") == ["2.1"]
    assert results(store, "/studies?DeviceSerialNumber=nested") == []
    assert results(store, "/studies?DetectorType=none") == []
    (found,) = results(store, "/instances?ReceiveCoilName=HEAD*")
    assert found["00181250"] == element("SH", 'HEAD "}')


def test_paths_into_short_and_long_sequences(long: Long) -> None:
    store, datasets = long
    path = "SharedFunctionalGroupsSequence"
    assert results(store, f"/studies?{path}.DeviceSerialNumber=nested") == []
    found = results(store, "/instances?52009230.DeviceSerialNumber=nested")
    assert [each["52009230"]["Value"] for each in found] == [[{"00181000": element("LO", "nested")}]] * 2
    assert len(datasets) == 2
    store.index.parsing = Parsing(1_000_000)
    try:
        with pytest.raises(ContentTooLarge, match="00081140: narrow the search by a UID"):
            results(store, "/studies?ReferencedImageSequence.DeviceSerialNumber=nested")
    finally:
        store.index.parsing = Parsing()


def test_memory_is_bounded(long: Long) -> None:
    """Eight at once. Parsed whole each would hold some 30 MB."""
    store, _ = long
    urls = [
        f"/studies?{query}" for query in ("DeviceSerialNumber=outer", "ReceiveCoilName=x", "DetectorType=y")
    ]
    store.index.parsing = Parsing(wait=60)
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda url: results(store, url), urls * 3))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        store.index.parsing = Parsing()
    assert [len(each) for each in found[:3]] == [1, 0, 0]
    assert peak < 40_000_000


@pytest.mark.parametrize(
    "accept", ["application/dicom+json", 'multipart/related; type="application/dicom+xml"']
)
def test_all_attributes_come_in_pieces(long: Long, accept: str) -> None:
    store, datasets = long
    answer = ask(store, "/instances?PatientID=L1&includefield=all", accept=accept)
    assert answer.status == 200
    longest = 0
    chunks = []
    for chunk in answer.plan[0].chunks(0, None):  # type: ignore[union-attr,index]  # a stream
        longest = max(longest, len(chunk))
        chunks.append(chunk)
    assert longest < 1_000_000
    if accept == "application/dicom+json":
        (found,) = json.loads(b"".join(chunks))
        assert list(found) == sorted(found)
        assert {tag: found[tag] for tag in datasets[1]} == datasets[1]


def test_what_is_merged_in_pieces_is_what_is_merged_whole() -> None:
    metadata = {f"0010{at:04X}": element("LO", str(at)) for at in range(0, 40, 2)} | {
        "00400275": {"vr": "SQ"}
    }
    for rows in (
        {},
        {
            "00080005": element("CS", "first"),
            "00100004": element("LO", "mine"),
            "7FE00010": element("LO", "last"),
        },
        {"00400275": {"vr": "SQ", "Value": [{}]}, "00100001": element("LO", "between")},
    ):
        for text in (orjson.dumps(metadata), b"{}"):
            pieces = [text[at : at + 50] for at in range(0, len(text), 50)]
            found = orjson.loads(b"".join(merged(pieces, rows)))
            assert found == _over(rows, orjson.loads(text))
            assert list(found) == sorted(found)


def test_a_search_waits_for_others_and_is_told_to_come_again(long: Long) -> None:
    store, _ = long
    store.index.parsing = Parsing(wait=0.2)
    path = "/studies?ReferencedImageSequence.DeviceSerialNumber=nested"
    try:
        with store.index.parsing.hold(1 << 40):
            with pytest.raises(Overloaded) as refusal:
                results(store, path)
            assert (refusal.value.status, refusal.value.retry_after) == (503, 5)
            assert len(results(store, "/studies?DeviceSerialNumber=outer")) == 1  # little has to be parsed
        assert len(results(store, path + "&PatientID=L1")) == 1
    finally:
        store.index.parsing = Parsing()
    assert body_of(ask(store, "/studies?DeviceSerialNumber=outer"))
