"""Metadata in every representation, without HTTP."""

import zlib

import orjson
import pytest
import retrieve_world
import zstandard
from retrieve_world import (
    SERIES,
    STUDY,
    ask,
    dataset_of,
    header,
    instance_path,
    keep,
    part10,
    parts_of,
    payload,
)
from xml_models import check_model, json_of, parsed

from streamsrv.errors import NotAcceptable, SegmentGone, StoreCorrupt
from streamsrv.pixels.pool import PixelPool
from streamsrv.plans.selection import Selection
from streamsrv.retrieve import metadata
from streamsrv.store.rows import SHORT_TEXT
from streamsrv.wire.answers import ByteStream, Literal

XML = 'multipart/related; type="application/dicom+xml"'
LEVELS = [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}", instance_path("1.2.3.4.1")]


@pytest.fixture
def study(store):
    keep(store, *(part10(dataset_of(f"1.2.3.4.{number}")) for number in range(1, 4)))
    return store


@pytest.mark.parametrize("level", LEVELS)
def test_xml_says_what_json_says(study, level):
    asked = orjson.loads(payload(ask(study, f"{level}/metadata")))
    answer = ask(study, f"{level}/metadata", accept=XML)
    assert answer.length is not None
    parts = parts_of(answer)
    assert len(parts) == len(asked) == (1 if level is LEVELS[2] else 3)
    for (headers, document), dataset in zip(parts, asked, strict=True):
        root = parsed(document)
        check_model(root)
        assert json_of(root) == dataset
        url = dataset["00081190"]["Value"][0]
        assert headers == {"content-type": "application/dicom+xml", "content-location": f"{url}/metadata"}


def test_long_xml_is_made_while_it_is_sent(study, monkeypatch):
    whole = payload(ask(study, f"{LEVELS[0]}/metadata", accept=XML))
    monkeypatch.setattr(metadata, "AT_ONCE", 10)
    answer = ask(study, f"{LEVELS[0]}/metadata", accept=XML)
    (piece,) = answer.plan
    assert isinstance(piece, ByteStream)
    assert payload(answer) == whole


def test_a_single_document_is_not_offered(study):
    """PS3.18 8.7.3: metadata in XML come in parts."""
    with pytest.raises(NotAcceptable) as refusal:
        ask(study, f"{LEVELS[2]}/metadata", accept="application/dicom+xml")
    assert XML in refusal.value.acceptable


def test_etags_tell_representations_apart(study):
    answers = [ask(study, f"{LEVELS[0]}/metadata", accept=accept) for accept in ("*/*", XML)]
    etags = [header(answer, "etag") for answer in answers]
    assert len(set(etags)) == 2
    again = ask(study, f"{LEVELS[0]}/metadata", accept=XML, if_none_match=etags[1])
    assert (again.status, payload(again)) == (304, b"")
    head = ask(study, f"{LEVELS[0]}/metadata", accept=XML, method="HEAD")
    assert (head.length, payload(head) if not head.length else b"") == (answers[1].length, b"")


def test_the_whole_array_has_a_length_and_ranges(study, monkeypatch):
    whole = payload(ask(study, f"{LEVELS[0]}/metadata"))
    monkeypatch.setattr(metadata, "TEXT_AT_ONCE", 10)
    answer = ask(study, f"{LEVELS[0]}/metadata", range="bytes=100-2999")
    assert answer.status == 206
    (piece,) = answer.plan
    assert b"".join(piece.chunks(0, piece.length)) == whole[100:3000]


@pytest.mark.parametrize("size", [1, 3_000, 1 << 20])
def test_a_long_array_goes_out_in_pieces_and_is_kept_when_it_is_asked_for_again(study, monkeypatch, size):
    whole = payload(ask(study, f"{LEVELS[0]}/metadata"))
    monkeypatch.setattr(retrieve_world, "POOL", PixelPool(1))
    monkeypatch.setattr(metadata, "TEXT_AT_ONCE", 10)
    monkeypatch.setattr(metadata, "PIECE", size)
    for _ in range(2):
        part = ask(study, f"{LEVELS[0]}/metadata", range="bytes=0-99")
        assert payload(part) == whole[:100]
    monkeypatch.setattr(retrieve_world, "POOL", PixelPool(1))
    for kind in (ByteStream, ByteStream, Literal, Literal):  # a part is not kept, the whole is
        answer = ask(study, f"{LEVELS[0]}/metadata")
        (piece,) = answer.plan
        assert isinstance(piece, kind)
        assert answer.length == len(whole)
        sent = piece.payload if kind is Literal else whole_of(piece)
        assert sent == whole


def whole_of(stream):
    """Read as it is sent: a stream of known length is not asked for its end."""
    sent, chunks = b"", stream.chunks(0, stream.length)
    while len(sent) < stream.length:
        sent += next(chunks)
    return sent


def test_pieces_are_of_some_size(monkeypatch):
    monkeypatch.setattr(metadata, "PIECE", 13)
    pieces = list(metadata.json_array([(b"aaaa", b"bbbb"), (b"cccc",), (b"d" * 30, b"e"), (b"f",)]))
    assert pieces == [b"[aaaabbbb,cccc", b"," + b"d" * 30, b"e,f]"]
    assert list(metadata.json_array([(b"a",)])) == [b"[a]"]


def test_texts_are_those_of_the_rows_one_by_one(study, monkeypatch):
    """However they are kept: together, by themselves, or long ones among them."""
    keep(study, part10(dataset_of("1.2.3.4.0")))
    long = dataset_of("1.2.3.4.5")
    long.ImageComments = long.PatientComments = "x" * 10_000
    keep(study, part10(long), part10(dataset_of("1.2.3.4.6")))
    selection = Selection(study, STUDY, None, None)
    rows = list(selection.rows())
    assert sorted(row.metadata_length > SHORT_TEXT for row in rows) == [False] * 5 + [True]
    expected = [b"".join(text) for _, text in metadata.instance_texts(study, rows, "http://h/100%25")]
    for size in (1, 2, 256):
        monkeypatch.setattr(metadata, "ROWS_AT_ONCE", size)
        found = metadata.texts(study, selection, "http://h/100%25")
        assert b",".join(b"".join(text) for text in found) == b",".join(expected)
    whole = b"[" + b",".join(expected) + b"]"
    assert metadata.lengths(selection, "http://h/100%25")[1] == len(whole)
    selection.release()


def test_an_instance_that_goes_before_its_text_is_read_ends_the_answer(study):
    selection = Selection(study, STUDY, None, None)
    study.delete(STUDY, SERIES, "1.2.3.4.2")
    with pytest.raises(SegmentGone):
        list(metadata.texts(study, selection, "http://h"))
    selection.release()


def test_a_text_of_another_length_ends_the_answer(study, monkeypatch):
    selection = Selection(study, STUDY, None, None)
    monkeypatch.setattr(study, "short_metadata", lambda rows: iter([[b"{}"] * len(rows)]))
    with pytest.raises(StoreCorrupt, match="not the"):
        list(metadata.texts(study, selection, "http://h"))
    selection.release()


# Codings


def plain(answer):
    decode = {"gzip": gunzip, "zstd": unzstd, None: lambda payload: payload}
    return decode[header(answer, "content-encoding")](payload(answer))


def gunzip(payload):
    return zlib.decompress(payload, 31)


def unzstd(payload):
    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("accept", ["application/dicom+json", XML])
@pytest.mark.parametrize("query", ["", "?includefield=OpticalPathSequence"])
@pytest.mark.parametrize("at_once", [True, False])
def test_compressed_bodies(study, monkeypatch, coding, accept, query, at_once):
    monkeypatch.setattr(retrieve_world, "POOL", PixelPool(1))
    path = f"{LEVELS[0]}/metadata{query}"
    whole = ask(study, path, accept=accept)
    if not at_once:
        monkeypatch.setattr(metadata, "AT_ONCE", 10)
    first = ask(study, path, accept=accept, accept_encoding=coding)
    assert (first.length is not None) is at_once
    assert header(first, "content-encoding") == coding
    assert header(first, "vary") == header(whole, "vary") == "Accept, Accept-Encoding"
    assert header(first, "etag") != header(whole, "etag")
    sent = payload(first)
    assert len(sent) < 2_000
    again = ask(study, path, accept=accept, accept_encoding=coding)
    assert again.length == len(sent)  # kept
    assert payload(again) == sent
    if accept is not XML:  # whose boundary follows the ETag
        assert (gunzip if coding == "gzip" else unzstd)(sent) == payload(whole)
    part = ask(study, path, accept=accept, accept_encoding=coding, range="bytes=10-19")
    assert (part.status, payload(part)) == (206, sent[10:20])
    known = ask(study, path, accept=accept, accept_encoding=coding, if_none_match=header(first, "etag"))
    assert known.status == 304


def test_a_long_compressed_body_is_not_kept(study, monkeypatch):
    monkeypatch.setattr(retrieve_world, "POOL", PixelPool(1))
    monkeypatch.setattr(metadata, "AT_ONCE", 10)
    monkeypatch.setattr(metadata, "KEPT", 100)
    for _ in range(2):
        answer = ask(study, f"{LEVELS[0]}/metadata", accept_encoding="gzip")
        assert answer.length is None
        assert len(orjson.loads(plain(answer))) == 3


def test_short_bodies_are_not_compressed(study, monkeypatch):
    monkeypatch.setattr(metadata, "WORTH_CODING", 1 << 20)
    answer = ask(study, f"{LEVELS[2]}/metadata", accept_encoding="gzip")
    assert header(answer, "content-encoding") is None
    assert len(orjson.loads(payload(answer))) == 1


def test_head_says_what_get_says(study):
    for headers in ({}, {"accept_encoding": "gzip"}, {"accept": XML}):
        get = ask(study, f"{LEVELS[0]}/metadata", **headers)
        head = ask(study, f"{LEVELS[0]}/metadata", method="HEAD", **headers)
        assert (head.status, head.length, head.headers) == (200, get.length, get.headers)
        assert list(head.plan) == []


# Lean


@pytest.mark.parametrize("whole", [0, 1 << 18])
@pytest.mark.parametrize("accept", ["application/dicom+json", XML])
def test_lean_metadata(study, accept, whole, monkeypatch):
    monkeypatch.setattr(metadata, "WHOLE", whole)
    path = (
        f"{LEVELS[0]}/metadata?includefield=PatientName&includefield=OpticalPathSequence.ICCProfile,Modality"
    )
    answer = ask(study, path, accept=accept)
    if accept is XML:
        found = [json_of(parsed(document)) for _, document in parts_of(answer)]
    else:
        found = orjson.loads(payload(answer))
    assert [item["00080018"]["Value"] for item in found] == [[f"1.2.3.4.{number}"] for number in (1, 2, 3)]
    expected = ["00080016", "00080018", "00080060", "00100010", "0020000D", "0020000E", "00480105"]
    assert all(list(item) == expected for item in found)
    (optical,) = found[0]["00480105"]["Value"]
    assert list(optical) == ["00282000"]
    assert optical["00282000"]["BulkDataURI"].startswith("http://h/v2/studies/")
    assert header(answer, "warning") is None


@pytest.mark.parametrize("whole", [0, 1 << 18])
@pytest.mark.parametrize("accept", ["application/dicom+json", XML])
@pytest.mark.parametrize("name", ["00020010", "TransferSyntaxUID"])
def test_the_transfer_syntax_by_its_tag_of_file_meta_information(study, name, accept, whole, monkeypatch):
    monkeypatch.setattr(metadata, "WHOLE", whole)
    answer = ask(study, f"{LEVELS[0]}/metadata?includefield={name},00083002", accept=accept)
    if accept is XML:
        found = [json_of(parsed(document)) for _, document in parts_of(answer)]
    else:
        found = orjson.loads(payload(answer))
    assert [list(item) for item in found] == [
        ["00020010", "00080016", "00080018", "00083002", "0020000D", "0020000E"]
    ] * 3
    assert all(item["00020010"] == item["00083002"] for item in found)
    whole = orjson.loads(payload(ask(study, f"{LEVELS[0]}/metadata")))
    assert all("00020010" not in item for item in whole)


def test_lean_metadata_is_another_representation(study):
    etags = {
        header(ask(study, f"{LEVELS[0]}/metadata{query}"), "etag")
        for query in ("", "?includefield=PatientName", "?includefield=PatientID", "?includefield=all")
    }
    assert len(etags) == 3


def test_unknown_fields_are_said(study):
    answer = ask(study, f"{LEVELS[2]}/metadata?includefield=PatientNam")
    assert (
        header(answer, "warning") == '299 streamsrv "the includefield PatientNam is unknown and was ignored"'
    )
    assert list(orjson.loads(payload(answer))[0]) == ["00080016", "00080018", "0020000D", "0020000E"]


def test_text_is_made_once_as_long_as_nothing_is_stored(store, monkeypatch):
    monkeypatch.setattr(metadata, "INLINE", 10)
    keep(store, part10(dataset_of("1.5.1")), part10(dataset_of("1.5.2")))
    path = f"/studies/{STUDY}/series/{SERIES}/metadata"
    first = payload(ask(store, path))
    monkeypatch.setattr(store, "packed", None)  # nothing looks at rows
    monkeypatch.setattr(store, "metadata", None)  # or at texts
    assert payload(ask(store, path)) == first
    monkeypatch.undo()
    keep(store, part10(dataset_of("1.5.3")))
    third = payload(ask(store, path))
    assert len(third) > len(first)
    assert third[: len(first) - 1] == first[:-1]
    store.delete(STUDY, SERIES, "1.5.3")
    assert payload(ask(store, path)) == first
