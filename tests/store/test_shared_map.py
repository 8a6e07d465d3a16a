"""Maps and orders of studies that share their memory, beside plain dictionaries and lists."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.store import shared_map
from streamsrv.store.shared_map import SharedMap, SharedOrder

STUDIES = [f"1.2.{number}" for number in range(40)]
KEYS = [b"a", b"a\x01", b"b", b"cc"]
steps_of_changes = st.lists(st.tuples(st.sampled_from(STUDIES), st.none() | st.sampled_from(KEYS)))
changes = st.lists(steps_of_changes, max_size=5)
few = settings(max_examples=30, deadline=None)


def same(found, expected):
    assert dict(zip(found, map(found.get, found), strict=True)) == expected
    assert (len(found), sorted(found.values())) == (len(expected), sorted(expected.values()))
    assert found.among(STUDIES, there=True) == [each for each in STUDIES if each in expected]
    assert found.among(STUDIES, there=False) == [each for each in STUDIES if each not in expected]
    assert [each in found for each in STUDIES] == [each in expected for each in STUDIES]


@few
@given(changes)
def test_a_changed_map_leaves_the_former_one(steps):
    versions = [(SharedMap({}), {})]
    for step in steps:
        expected = dict(versions[-1][1])
        for study, value in step:
            expected.pop(study, None)
            if value is not None:
                expected[study] = value
        versions.append((versions[-1][0].changed(step), expected))
        same(SharedMap(expected), expected)
    for found, expected in versions:
        same(found, expected)


def backwards(entries, low, end):
    keys = sorted({key for key, _ in entries if key >= low}, reverse=True)
    return [each for key in keys for each in sorted(entries) if each[0] == key and each < end]


def same_order(found, expected):
    probes = [(key,) for key in (b"", *KEYS, b"d")] + [(b"b", STUDIES[7])]
    for first in probes:
        for end in probes:
            between = sorted(each for each in expected if first <= each < end)
            assert list(found.between(first, end)) == between
        assert list(found.backwards(b"a\x01", first[0])) == backwards(expected, b"a\x01", first[:1])
    assert [found.count(key) for key in KEYS] == [sum(each[0] == key for each in expected) for key in KEYS]


@few
@given(changes, st.sampled_from([1, 2, 5]), st.booleans())
def test_a_changed_order_leaves_the_former_one(steps, chunk, counted):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shared_map, "CHUNK", chunk)
        versions = [(SharedOrder((), counted=counted), set())]
        for step in steps:
            found, expected = versions[-1][0], set(versions[-1][1])
            last = dict(step)
            gone = {each for each in expected if each[1] in last}
            new = {(key, study) for study, key in last.items() if key is not None}
            versions.append((found.changed(gone, new), (expected - gone) | new))
        for found, expected in versions:
            same_order(found, expected)
            same_order(SharedOrder(expected, counted=counted), expected)


def test_a_change_copies_little():
    """One bucket and one chunk of many."""
    order = SharedOrder([(b"%08d" % number, f"1.{number}") for number in range(50_000)])
    chosen = random.Random(1).randrange(50_000)
    changed = order.changed([(b"%08d" % chosen, f"1.{chosen}")], [])
    former = {id(chunk) for chunk in order._chunks}
    assert sum(id(chunk) not in former for chunk in changed._chunks) == 1
