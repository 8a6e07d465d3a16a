"""Metadata in every representation, without HTTP."""

import orjson
import pytest
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

from streamsrv.errors import NotAcceptable
from streamsrv.retrieve import metadata, metadata_answers
from streamsrv.wire.answers import Stream

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
    monkeypatch.setattr(metadata_answers, "AT_ONCE", 10)
    answer = ask(study, f"{LEVELS[0]}/metadata", accept=XML)
    (piece,) = answer.plan
    assert isinstance(piece, Stream)
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
    monkeypatch.setattr(metadata, "AT_ONCE", 10)
    answer = ask(study, f"{LEVELS[0]}/metadata", range="bytes=100-2999")
    assert answer.status == 206
    (piece,) = answer.plan
    assert b"".join(piece.chunks(0, piece.length)) == whole[100:3000]
