"""Instances that lie, nest, swell or repeat each other: each costs itself and nothing else, and is told with
its reason, its tag and its byte."""

import json
import struct
import zlib

import pytest
from hostile_files import (
    DEFLATED,
    ITEM_END,
    JPEG,
    SEQUENCE_END,
    UIDS,
    UNDEFINED,
    dataset,
    element,
    instance,
    item,
    new_uid,
    part10,
)
from hostile_world import DICOM, Probes, World, post, resident

NOT_DICOM, OTHER_STUDY, DUPLICATE, REFUSED = 43264, 43265, 45070, 272
PRIVATE = 0x70010000  # behind everything else that these files hold


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("instances"), "--max-metadata", "25000000")
    yield world
    world.end()


@pytest.fixture(autouse=True)
def unharmed(hostile):
    yield
    hostile.unharmed()


# Refused with 43264


def behind(more):
    return part10(dataset() + more)


def sequence(content, length=None):
    return element(PRIVATE | 0x1000, "SQ", content, len(content) if length is None else length)


def nested(depth, undefined):
    if undefined:
        return sequence(item(length=UNDEFINED), UNDEFINED) * depth
    content = b""
    for _ in range(depth):
        content = sequence(item(content))
    return content


def deflated(content, cut=0):
    squeezer = zlib.compressobj(wbits=-15)
    return part10((squeezer.compress(content) + squeezer.flush())[: -cut or None], DEFLATED)


WHOLE = instance()
LIARS = {
    "nothing": (b"", "no DICM prefix"),
    "text": (b"this is no instance " * 100, "no DICM prefix"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(1000), "no DICM prefix"),
    "no preamble": (WHOLE[128:], "`streamsrv store --add-meta` writes them"),
    "no preamble and no prefix": (WHOLE[132:], "`streamsrv store --add-meta` writes them"),
    "no file meta": (dataset(), "`dcmconv` or `streamsrv store --add-meta` writes them"),
    "only the prefix": (WHOLE[:132], ""),
    "cut in the file meta": (WHOLE[:150], ""),
    "cut in an element's head": (WHOLE[:-7], ""),
    "cut in a value": (WHOLE + element(PRIVATE | 0x10, "LO", b"value")[:-2], "at tag 70010010, byte"),
    "cut in half": (WHOLE[: len(WHOLE) // 2], ""),
    "a value beyond the file": (
        behind(element(PRIVATE | 0x10, "OB", b"few", 1 << 30)),
        "at tag 70010010, byte",
    ),
    "a value of 4 GB": (
        behind(element(PRIVATE | 0x10, "OB", b"few", UNDEFINED - 1)),
        "at tag 70010010, byte",
    ),
    "a short value beyond": (behind(element(PRIVATE | 0x10, "LO", b"few", 65535)), "at tag 70010010, byte"),
    "an item beyond its sequence": (behind(sequence(item(b"", 100))), "at tag 70011000, byte"),
    "a sequence beyond the file": (behind(sequence(item(), 1000)), "at tag 70011000, byte"),
    "a value beyond its item": (
        behind(sequence(item(element(PRIVATE | 0x2000, "LO", b"few", 50)))),
        "at tag 70012000, byte",
    ),
    "no item in a sequence": (behind(sequence(element(PRIVATE | 0x2000, "LO", b"value"))), "byte"),
    "a sequence without end": (behind(sequence(item() * 3, UNDEFINED)), "byte"),
    "an item without end": (behind(sequence(item(length=UNDEFINED) + SEQUENCE_END, UNDEFINED)), "byte"),
    "a delimiter where none belongs": (behind(ITEM_END), "byte"),
    "undefined length of text": (behind(element(PRIVATE | 0x10, "LT", b"", 65535)), "at tag 70010010, byte"),
    "65 sequences in each other": (
        behind(nested(65, undefined=False)),
        "nest deeper than 64 levels",
    ),
    "100,000 in each other": (
        behind(nested(100_000, undefined=True)),
        "nest deeper than 64 levels",
    ),
    "fragments without end": (
        part10(dataset() + element(0x7FE00010, "OB", item() + item(b"ab"), UNDEFINED), JPEG),
        "byte",
    ),
    "a fragment beyond the file": (
        part10(dataset() + element(0x7FE00010, "OB", item() + item(b"ab", 1 << 31), UNDEFINED), JPEG),
        "byte",
    ),
    "deflated rubbish": (part10(b"\xff" * 1000, DEFLATED), "damaged"),
    "deflated, cut": (deflated(dataset(), cut=5), "truncated"),
    "deflated, a value beyond": (
        deflated(dataset() + element(PRIVATE | 0x10, "OB", b"few", 1 << 30)),
        "beyond the end",
    ),
    **{f"no {name} UID": (instance(**{name: None}), f"tag {tag:08X}") for name, tag in UIDS.items()},
    **{f"an empty {name} UID": (instance(**{name: ""}), f"tag {tag:08X}") for name, tag in UIDS.items()},
    **{
        f"a {name} UID of letters": (instance(**{name: "1.2.x"}), f"tag {tag:08X}")
        for name, tag in UIDS.items()
    },
    **{f"a long {name} UID": (instance(**{name: "1" * 65}), f"tag {tag:08X}") for name, tag in UIDS.items()},
    "a UID of 10 kB": (instance(study="1." * 5000), "tag 0020000D"),
    "a UID with a path": (instance(study="../../1"), "tag 0020000D"),
    "a UID with NUL within": (instance(study="1.2\0.3"), "tag 0020000D"),
}


@pytest.mark.parametrize("kind", LIARS)
def test_what_cannot_be_read_costs_itself(hostile, kind):
    content, words = LIARS[kind]
    uid = new_uid()
    reply = hostile.store(instance(study=uid), content, instance(study=uid))
    assert reply.status == 202, reply
    ((reason, comment),) = reply.failures()
    assert reason == NOT_DICOM
    assert words in comment
    assert len(json.loads(hostile.get(f"/v2/studies/{uid}/metadata").body)) == 2
    alone = hostile.answered(post(DICOM, content))
    assert alone.status == (409 if content else 204)
    assert content == b"" or alone.failures() == reply.failures()


def test_every_truncation_is_refused_or_stored_whole(hostile):
    """A file has places where its end cannot be told from its cut: between elements. There it is stored as
    it came, and given back so."""
    file = instance()
    cuts = range(0, len(file), 3)
    reply = hostile.store(*(file[:cut] for cut in cuts))
    assert reply.status == 409
    assert len(reply.failures()) == len(cuts)
    assert {reason for reason, _ in reply.failures()} == {NOT_DICOM}


# Refused for other reasons


def test_another_study_than_the_targets(hostile):
    mine, other = new_uid(), new_uid()
    reply = hostile.store(instance(study=other), instance(study=mine), line=f"POST /v2/studies/{mine}")
    assert reply.status == 202
    assert reply.failures() == [
        (OTHER_STUDY, "the Study Instance UID (0020,000D) differs from the study of the target URI")
    ]
    assert hostile.get(f"/v2/studies/{other}").status == 404
    reply = hostile.store(instance(study=other), line=f"POST /v2/studies/{mine}")
    assert reply.status == 409
    assert reply.json()["00081198"]["Value"][0]["00081155"]["vr"] == "UI"


def test_duplicates(hostile):
    """In one request, in the store, with other bytes: the first one stays."""
    uids = {name: new_uid() for name in ("study", "series", "instance")}
    first, other = instance(**uids), instance({0x00100020: element(0x00100020, "LO", b"OTHER ")}, **uids)
    assert (
        hostile.store(first, other, first).failures()
        == [(DUPLICATE, "this SOP instance is already stored")] * 2
    )
    for again in (first, other, hostile.stored):
        reply = hostile.store(again)
        assert reply.status == 409
        assert [reason for reason, _ in reply.failures()] == [DUPLICATE]
    path = "/v2/studies/{study}/series/{series}/instances/{instance}".format(**uids)
    assert hostile.get(path, "Accept: application/dicom; transfer-syntax=*").body == first


# Bombs


def tiny_elements(number):
    """Empty private elements of 8 bytes."""
    tags = ((0x7011 + 2 * (at >> 15), 0x1000 + (at & 0x7FFF)) for at in range(number))
    return b"".join(struct.pack("<HH2sH", group, low, b"LO", 0) for group, low in tags)


def deflate_bomb():
    """3 MB that inflate to 3 GB."""
    squeezer = zlib.compressobj(1, wbits=-15)
    packed = squeezer.compress(dataset() + element(PRIVATE | 0x10, "OB", b"", 3 << 30))
    zeros = bytes(1 << 20)
    packed += b"".join(squeezer.compress(zeros) for _ in range(2100))
    return part10(packed + squeezer.flush(), DEFLATED)


BOMBS = {
    "a million elements and more": (
        lambda: part10(dataset() + tiny_elements(1_300_000)),
        "more than 20,000 attributes at the top level of the dataset (max_attributes)",
    ),
    "a million elements and more in an item": (
        lambda: part10(dataset() + sequence(item(tiny_elements(1_300_000)))),
        "bytes of metadata",
    ),
    "a deflated dataset of 3 GB": (deflate_bomb, "inflates to more than 2,147,483,648 bytes"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_and_stops_nobody(hostile, kind):
    make, words = BOMBS[kind]
    file, before = make(), resident(hostile.server.process.pid)
    with Probes(hostile) as probes:
        reply = hostile.answered(post(DICOM, file))
    ((reason, comment),) = reply.failures()
    assert (reply.status, reason) == (409, REFUSED)
    assert words in comment
    assert max(probes.seconds) < 2
    assert resident(hostile.server.process.pid) - before < 150_000_000


def test_a_million_tiny_elements_are_stored(hostile):
    uid = new_uid()
    file = part10(dataset(study=uid) + sequence(item(tiny_elements(1_000_000))))
    with Probes(hostile) as probes:
        assert hostile.answered(post(DICOM, file)).status == 200
        reply = hostile.get(f"/v2/studies/{uid}/metadata")
    (metadata,) = reply.json()  # here, for it stops all threads of this process
    assert len(metadata["70011000"]["Value"][0]) == 1_000_000
    assert max(probes.seconds) < 2


def test_wide_sequences_are_stored(hostile):
    uid = new_uid()
    deep = nested(60, undefined=False)
    file = part10(
        dataset(study=uid) + sequence(item() * 100_000) + deep.replace(b"\1\x70\0\x10", b"\1\x70\1\x10")
    )
    assert hostile.answered(post(DICOM, file)).status == 200
    (metadata,) = hostile.get(f"/v2/studies/{uid}/metadata").json()
    assert len(metadata["70011000"]["Value"]) == 100_000
