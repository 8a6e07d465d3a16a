"""The plan of an object's parts, and the records that the tools find in the finished object."""

import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.store.objects.layout import PartPlan, final_header, pack_trailer, pending_header, walk_object
from streamsrv.store.rows import FIRST_RECORD, Location
from streamsrv.store.segments.records import (
    HEADER,
    DamagedBytes,
    PayloadDigest,
    Record,
    RecordFormat,
    RecordKind,
    pack_file_header,
)

FORM = RecordFormat(b"s" * 32, b"f" * 16)
SEGMENT = 7
PART = 600


class Making:
    """An object as a program without files would make it: `sent` are the bytes that have left."""

    def __init__(self, part=PART):
        self.plan = PartPlan(part)
        self.content = bytearray()
        self.sent = bytearray()
        self.records = []
        self.payloads = {}
        self.append(pack_file_header(FORM, SEGMENT))

    @property
    def file(self):
        return self

    def append(self, piece):
        del self.content[self.plan.end :]
        self.content += piece
        self.plan.end += len(piece)
        self.move()

    def move(self, last=False):
        for offset, header in self.plan.patches():
            self.content[offset : offset + HEADER] = header
        for begin, end in self.plan.take(last=last):
            assert begin == len(self.sent)
            self.sent += self.content[begin:end]

    def store(self, pieces, kept=True):
        """A record whose header and first piece may leave before the next one comes."""
        begin, number = self.plan.end, len(self.payloads) + 1
        record_id = number.to_bytes(16, "big")
        self.plan.open_record(begin)
        self.append(pending_header(FORM, record_id, SEGMENT, begin))
        for piece in pieces:
            self.append(piece)
        payload = b"".join(pieces)
        self.payloads[record_id] = payload
        location = Location(SEGMENT, begin + HEADER, len(payload))
        record = Record(self, number, location, record_id, PayloadDigest(payload).digest(), 1_000 + number)
        self.plan.close_record(record.end, final_header(FORM, record))
        self.move()
        if kept:
            self.records.append(record)
        return record

    def give_up(self, pieces):
        """A record that is dropped before its end."""
        begin = self.plan.end
        self.plan.open_record(begin)
        self.append(pending_header(FORM, bytes(16), SEGMENT, begin))
        for piece in pieces:
            self.append(piece)
        self.plan.back_to(begin)

    def finish(self):
        self.append(pack_trailer(FORM, SEGMENT, self.plan.end, self.records))
        self.move(last=True)
        return bytes(self.sent)


def walked(content):
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return list(walk_object(FORM, file.fileno(), SEGMENT, len(content)))


def content_of(content, found):
    assert PayloadDigest(content[found.payload : found.end]).digest() == found.header.digest
    return content[found.payload : found.end]


PIECES = st.lists(st.binary(max_size=500), max_size=5)
ACTIONS = st.lists(st.tuples(st.sampled_from(["keep", "drop", "give up"]), PIECES), max_size=12)


@given(ACTIONS)
@settings(max_examples=150, deadline=None)
def test_an_object_has_exactly_its_records(actions):
    made = Making()
    for action, pieces in actions:
        if action == "give up":
            made.give_up(pieces)
        else:
            made.store(pieces, kept=action == "keep")
    sent = made.finish()
    assert sent == made.content
    found = walked(sent)
    expected = [made.payloads[record.record_id] for record in made.records]
    assert [content_of(sent, each) for each in found] == expected
    assert [each.header.stored_at for each in found] == [record.stored_at for record in made.records]


@given(ACTIONS)
@settings(max_examples=100, deadline=None)
def test_bytes_that_have_left_are_those_of_the_object(actions):
    """No patch comes after its part, and at most two parts and a piece are held back."""
    made = Making()
    for action, pieces in actions:
        if action == "give up":
            made.give_up(pieces)
        else:
            made.store(pieces)
        assert made.content.startswith(made.sent)
        assert made.plan.end - made.plan.sent < 2 * PART + 500 + HEADER


def records_of_a_segment(content):
    """As the tools of segment files read it."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        steps = list(FORM.walk(file.fileno(), SEGMENT, len(content)))
    return [step for step in steps if step.header.kind is RecordKind.INSTANCE], steps[-1].header.kind


def test_records_within_a_part_have_final_headers_in_front():
    """Also those that cross the border of two parts."""
    made = Making()
    for number in range(20):
        made.store([b"%02d" % number * 100] * 2)
    sent = made.finish()
    found, last = records_of_a_segment(sent)
    assert [content_of(sent, each) for each in found] == list(made.payloads.values())
    assert last is RecordKind.SEAL


def test_a_record_longer_than_two_parts_leaves_before_its_end():
    made = Making()
    begin = made.plan.end
    made.plan.open_record(begin)
    made.append(pending_header(FORM, bytes(16), SEGMENT, begin))
    for _ in range(20):
        made.append(b"x" * 100)
    assert made.plan.sent >= 2 * PART


def test_without_a_trailer_the_headers_in_front_are_read():
    made = Making()
    for size in (200, 3 * PART, 300):
        made.store([b"y" * size])
    sent = bytearray(made.finish())
    sent[-HEADER:] = bytes(HEADER)
    seal, first, long, last = walked(bytes(sent))
    assert isinstance(seal, DamagedBytes)
    assert [content_of(sent, each) for each in (first, last)] == [b"y" * 200, b"y" * 300]
    assert (long.offset, long.end) == (made.records[1].begin, made.records[1].end)


@pytest.mark.parametrize("size", [200, 3 * PART])
def test_a_damaged_entry_costs_at_most_one_long_record(size):
    made = Making()
    for _ in range(3):
        made.store([b"z" * size])
    sent = bytearray(made.finish())
    sent[-HEADER - 2 * 112 + 30] ^= 4  # in the second entry
    found = walked(bytes(sent))
    assert [type(each) is DamagedBytes for each in found] == [False, size > PART, False]
    assert [each.offset for each in found] == [record.begin for record in made.records]


def test_a_seal_that_names_no_trailer_is_refused():
    made = Making()
    made.store([b"p" * 100])
    sent = made.finish()
    cut = sent[: made.records[0].end]
    seal, only = walked(cut)
    assert isinstance(seal, DamagedBytes)
    assert content_of(cut, only) == b"p" * 100


def test_an_object_without_records():
    sent = Making().finish()
    assert walked(sent) == []
    assert len(sent) == FIRST_RECORD + 2 * HEADER


def test_another_segment_has_other_checks():
    """A trailer that was copied from another object proves nothing."""
    made = Making()
    made.store([b"q" * 50])
    sent = made.finish()
    with tempfile.TemporaryFile() as file:
        file.write(sent)
        file.flush()
        found = list(walk_object(FORM, file.fileno(), SEGMENT + 1, os.fstat(file.fileno()).st_size))
    assert [type(each) for each in found] == [DamagedBytes]
