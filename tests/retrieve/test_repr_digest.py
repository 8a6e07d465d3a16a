"""Repr-Digest (RFC 9530) of single instances, and what it verifies."""

import hashlib
from base64 import b64encode

import pytest
from pixel_world import HTJ2K, KINDS, LITTLE, arrays_of, frames_of_type, image, of_syntax, stored_as
from retrieve_world import SERIES, STUDY, ask, header, keep, payload

from streamsrv.errors import InstanceDamaged
from streamsrv.retrieve import answering
from streamsrv.store.store import Store
from streamsrv.wire.answers import Request

UID = "1.2.3.4.1"
ABOVE = f"/studies/{STUDY}/series/{SERIES}"
ONE = f"{ABOVE}/instances/{UID}"
WHOLE = "application/dicom; transfer-syntax=*"
CONTENT = stored_as(image(KINDS["12 in 16"], arrays_of(KINDS["12 in 16"], 4), UID), LITTLE)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path) as store:
        keep(store, CONTENT)
        yield store


def expected(body, algorithm="sha-256"):
    digest = hashlib.new(algorithm.replace("-", ""), body).digest()
    return f"{algorithm}=:{b64encode(digest).decode()}:"


@pytest.mark.parametrize(
    ("field", "algorithm"),
    [
        ("sha-256=1", "sha-256"),
        ("sha-512=3, sha-256=2", "sha-512"),
        ("sha-512=2,sha-256=2", "sha-256"),
        ("md5=10, sha-512=1", "sha-512"),
        (" sha-256=10 ; a=1", "sha-256"),
        ("sha-256=0", None),
        ("sha-256=11", None),
        ("sha-256", None),
        ("sha-256=-1", None),
        ("sha-256=\u00b2", None),
        ("sha=1", None),
        ("", None),
        (",,=,;", None),
    ],
)
def test_which_algorithm_is_wanted(field, algorithm):
    assert answering.wanted_digest(Request("GET", "/", (), {"want-repr-digest": field}, "", 2)) == algorithm


@pytest.mark.parametrize("algorithm", answering.ALGORITHMS)
@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (ONE, WHOLE),
        (ONE, 'multipart/related; type="application/dicom"; transfer-syntax=*'),
        (ONE, of_syntax(HTJ2K)),
        (f"{ONE}/frames/2", "*/*"),
        (f"{ONE}/frames/1,3", 'multipart/related; type="application/octet-stream"'),
        (f"{ONE}/frames/2", frames_of_type("image/jphc", HTJ2K)),
        (f"{ONE}/bulkdata/7FE00010", "*/*"),
    ],
)
def test_it_is_that_of_the_whole_representation(store, path, accept, algorithm):
    wish = {"accept": accept, "want_repr_digest": f"{algorithm}=5"}
    for _ in range(2):  # no answer is remembered without it
        answer = ask(store, path, **wish)
        whole = payload(answer)
        assert header(answer, "repr-digest") == expected(whole, algorithm)
    plain = ask(store, path, accept=accept)
    assert header(plain, "repr-digest") is None
    assert (header(plain, "etag"), payload(plain)) == (header(answer, "etag"), whole)
    part = ask(store, path, range="bytes=5-20", **wish)
    if part.status == 206:
        assert payload(part) == whole[5:21]
    assert header(part, "repr-digest") == expected(whole, algorithm)
    part.release()
    head = ask(store, path, method="HEAD", **wish)
    assert (header(head, "repr-digest"), list(head.plan)) == (expected(whole, algorithm), [])
    head.release()
    known = ask(store, path, if_none_match=header(plain, "etag"), **wish)
    assert (known.status, header(known, "repr-digest")) == (304, None)
    known.release()


@pytest.mark.parametrize("path", [ABOVE, f"/studies/{STUDY}", f"{ONE}/metadata"])
def test_elsewhere_the_wish_is_ignored(store, path):
    answer = ask(store, path, want_repr_digest="sha-256=1")
    assert (answer.status, header(answer, "repr-digest")) == (200, None)
    answer.release()


def test_a_long_instance_goes_out_without(store, monkeypatch):
    monkeypatch.setattr(answering, "LONGEST", dict.fromkeys(answering.LONGEST, len(CONTENT) - 1))
    for path in (ONE, f"{ONE}/frames/1"):
        answer = ask(store, path, accept=WHOLE if path == ONE else "*/*", want_repr_digest="sha-256=1")
        assert (answer.status, header(answer, "repr-digest")) == (200, None)
        answer.release()


@pytest.mark.parametrize(
    ("path", "wish"),
    [
        (ONE, {"accept": WHOLE, "want_repr_digest": "sha-256=1"}),
        (f"{ONE}/frames/1", {"want_repr_digest": "sha-256=1"}),
        (ONE, {"accept": of_syntax(HTJ2K)}),
        (ABOVE, {"accept": of_syntax(HTJ2K)}),
    ],
)
def test_damaged_bytes_are_found_registered_and_refused(store, path, wish):
    row = store.lookup(STUDY, SERIES, UID)[0]
    with store.layout.segment(row.location.segment).open("r+b") as file:
        file.seek(row.location.offset + row.location.length - 30)
        file.write(b"rot")
    ask(store, ONE, accept=WHOLE).release()
    with pytest.raises(InstanceDamaged, match=UID):
        ask(store, path, **wish)
    assert [record.key.instance for record in store.index.damage()] == [UID]
    with pytest.raises(InstanceDamaged, match=UID):
        ask(store, ONE, accept=WHOLE)
