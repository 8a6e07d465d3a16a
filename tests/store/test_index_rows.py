"""Rows: what was packed is unpacked, and what is damaged is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_examples import row

from streamsrv.dicom.instance import FrameKind
from streamsrv.errors import StoreCorrupt, StoreError
from streamsrv.query.attributes import KEEP, QUERY_ATTRIBUTES, Level, attributes_at, term_prefix
from streamsrv.store.index import rows as index_rows
from streamsrv.store.rows import ChangeKind, InstanceKey, Location

KEY = InstanceKey("1.1", "1.2", "1.3")
U16 = st.integers(0, 0xFFFF)


def test_an_instance_row_in_its_parts() -> None:
    facts = row(KEY, 7)
    value = index_rows.with_serial(99, index_rows.pack_instance(facts, b"v" * 16, b"answer"))
    assert index_rows.unpack_instance(KEY, value) == facts
    assert index_rows.serial_of(value) == 99
    assert index_rows.record_id_of(value) == facts.record_id
    assert index_rows.order_in(value) == index_rows.order_of(facts)
    assert index_rows.variant_of(value) == b"v" * 16
    assert index_rows.instance_answer(value) == b"answer"
    moved = index_rows.moved(value, Location(5, 6, 7))
    assert index_rows.unpack_instance(KEY, moved).location == Location(5, 6, 7)
    assert index_rows.instance_answer(moved) == b"answer"


@given(
    rows=st.integers(0, 0xFFFFFFFF),
    columns=U16,
    pixel_facts=U16,
    samples_per_pixel=U16,
    bits_allocated=U16,
    deflated=st.booleans(),
    pixel_length=st.integers(0, (1 << 64) - 1),
)
def test_whatever_fits_comes_back(**facts: Any) -> None:
    given_row = row(KEY, 7, **facts)
    value = index_rows.with_serial(1, index_rows.pack_instance(given_row, b"v" * 16, b"answer"))
    assert index_rows.unpack_instance(KEY, value) == given_row


@pytest.mark.parametrize("name", ["rows", "columns", "pixel_facts", "samples_per_pixel"])
def test_facts_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="does not fit"):
        index_rows.pack_instance(row(KEY, **{name: 1 << 40}), b"v" * 16, b"")


@pytest.mark.parametrize(
    "unpack",
    [
        lambda value: index_rows.unpack_instance(KEY, value),
        lambda value: index_rows.unpack_changes(1, value),
        lambda value: index_rows.unpack_segment(b"0001", value),
        lambda value: index_rows.LevelRow.unpack(value),
        lambda value: index_rows.Variant.unpack(value),
        lambda value: index_rows.json_object(b"{" + value),
    ],
)
def test_rows_that_are_cut_short_are_told(unpack: Callable[[bytes], object]) -> None:
    with pytest.raises(StoreCorrupt):
        unpack(b"cut")


def test_values_that_mean_nothing_are_told() -> None:
    kinds = (FrameKind.NATIVE, FrameKind.TABLE)
    packed = [index_rows.pack_instance(row(KEY, frame_kind=kind), b"v" * 16, b"") for kind in kinds]
    value = index_rows.with_serial(1, packed[0])
    at = 8 + next(number for number, (one, two) in enumerate(zip(*packed, strict=True)) if one != two)
    damaged = [value[:at] + b"\xee" + value[at + 1 :], value[:-3] + b"\xff" * 3]
    for each in damaged:
        with pytest.raises(StoreCorrupt):
            index_rows.unpack_instance(KEY, each)
    change = index_rows.pack_change(1, ChangeKind.STORED, 1, bytes(16), b"facts6", b"1\x002\x003")[:-4]
    key = index_rows.number_key(1)
    with pytest.raises(StoreCorrupt):
        index_rows.unpack_changes(1, index_rows.with_sum(key, b"\x09" + change[1:]))
    keys = [b"1\x002\x003", b"1\x002\x004"]
    deletions = index_rows.pack_deletions(2, 1, [bytes(16)] * 2, [b"facts6"] * 2, keys)[:-4]
    for each in (deletions[:12], deletions[:40], deletions[:-2], b""):
        with pytest.raises(StoreCorrupt):
            index_rows.unpack_changes(1, index_rows.with_sum(key, each))


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_instances_deleted_together_are_one_row(count: int) -> None:
    keys = sorted(index_rows.triple(InstanceKey("1.2", f"1.3.{n % 3}", f"1.4.{n}")) for n in range(count))
    ids = [number.to_bytes(16, "big") for number in range(count)]
    facts = [number.to_bytes(6, "little") for number in range(count)]
    last = 5000 + count - 1
    changes = index_rows.unpack_changes(last, index_rows.pack_deletions(last, 7, ids, facts, keys))
    assert [change.sequence for change in changes] == list(range(5000, 5000 + count))
    assert [index_rows.triple(change.key) for change in changes] == keys
    assert [change.record_id for change in changes] == ids
    assert [change.facts for change in changes] == facts
    assert {(change.kind, change.at) for change in changes} == {(ChangeKind.DELETED, 7)}


def test_the_lists_of_attributes_are_apart() -> None:
    prefixes = [term_prefix(each) for each in QUERY_ATTRIBUTES if each.indexed]
    assert len(set(prefixes)) == len(prefixes)
    assert {len(each) for each in prefixes} == {5}


def test_the_table_has_what_the_standard_requires() -> None:
    """PS3.18 Tables 10.6.1-3 to 10.6.1-5."""
    required = {level: {each.keyword for each in attributes_at(level) if each.required} for level in Level}
    assert required[Level.STUDY] >= {
        "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName",
        "PatientName", "PatientID", "StudyInstanceUID", "StudyID",
    }  # fmt: skip
    assert required[Level.SERIES] >= {
        "Modality", "SeriesInstanceUID", "SeriesNumber", "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime", "ScheduledProcedureStepID", "RequestedProcedureID",
    }  # fmt: skip
    assert required[Level.INSTANCE] >= {"SOPClassUID", "SOPInstanceUID", "InstanceNumber"}
    assert {"00100010", "00400275", "00280010"} <= KEEP
    assert not {"00080061", "0020000D", "00081190"} & KEEP
    assert all(len(tag) == 8 for tag in KEEP)
