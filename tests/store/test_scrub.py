"""Scrub: damage is found by reading segments from the disk, past the page cache, at a bounded rate."""

import ctypes
import errno
import itertools
import mmap
import os
import time

import pytest
from store_world import OPTIONS, derive, get, key_of, open_store, payload_of, put

from streamsrv.store.fileops import RWF_DONTCACHE
from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.info import info
from streamsrv.store.maintenance.scrub import (
    ALIGNMENT,
    DAY,
    WINDOW,
    Pace,
    Scrub,
    ScrubState,
    UncachedFile,
    Verified,
    WalkPosition,
    check_segments,
    verified_until,
)
from streamsrv.store.rows import FIRST_RECORD, OnDuplicate, SegmentRow
from streamsrv.store.segments.records import HEADER
from streamsrv.store.segments.verifying import WRONG_DIGEST
from streamsrv.store.store import Store, StoreOptions

KEYS = [key_of(1, 1, instance) for instance in (1, 2, 3, 4)]
KEY = KEYS[1]


class ScrubClock:
    """Time that passes by sleeping alone."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += max(seconds, 0)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path) as store:
        put(store, *(payload_of(key, 5_000) for key in KEYS))
        yield store


def flip(store, place, segment=1, mask=1):
    with store.layout.segment(segment).open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def place_of(store, key):
    return store.lookup(*key)[0].location.offset


def scrubbed(store):
    return [str(finding) for finding in check_segments(store, Pace(0))]


def test_a_sound_store(store):
    put(store, payload_of(KEY, fill="y"), on_duplicate=OnDuplicate.REPLACE)
    store.delete(*KEYS[3])
    assert scrubbed(store) == []
    assert store.index.damage() == []


@pytest.mark.parametrize("at", [0, 1, 2_500, 4_999])
def test_a_flipped_bit_is_found_registered_and_named(store, caplog, at):
    place = place_of(store, KEY)
    flip(store, place + at)
    assert scrubbed(store) == [
        f"error: segment 1, byte {place}: payload of 5000 bytes: {WRONG_DIGEST}; "
        f"instance {'/'.join(KEY)}, segment 1, byte {place}: {WRONG_DIGEST}"
    ]
    assert [record.key for record in store.index.damage()] == [KEY]
    assert f"damaged: instance {'/'.join(KEY)}" in caplog.text
    told = info(store)
    assert told["damaged"] == 1
    assert told["damaged_instances"]["/".join(KEY)].startswith(f"segment 1, byte {place}: {WRONG_DIGEST}")
    flip(store, place + at)
    assert scrubbed(store) == []  # the disk has thought better of it
    assert info(store)["damaged_instances"] == {}


def test_what_is_dead_may_rot(store):
    place = place_of(store, KEY)
    store.delete(*KEY)
    flip(store, place + 9)
    (line,) = scrubbed(store)
    assert line.startswith("note: ")
    assert store.index.damage() == []


def test_a_damaged_tombstone_is_an_error(store):
    end = store.index.segment(1).committed_end
    store.delete(*KEY)
    flip(store, end + HEADER)
    (line,) = scrubbed(store)
    assert line.startswith(f"error: segment 1, byte {end + HEADER}: tombstone, payload of 48 bytes")


@pytest.mark.parametrize("payload_too", [False, True])
def test_a_damaged_header_does_not_hide_what_lies_behind_it(store, payload_too):
    place = place_of(store, KEY)
    flip(store, place - 50)
    if payload_too:
        flip(store, place + 5)
    flip(store, place_of(store, KEYS[2]) + 7)
    lines = scrubbed(store)
    assert f"it is that of instance {'/'.join(KEY)}" in lines[0]
    assert [record.key for record in sorted(store.index.damage(), key=lambda each: each.key)] == (
        [KEY, KEYS[2]] if payload_too else [KEYS[2]]
    )
    if not payload_too:
        compact(store, everything=True)
        lines = [str(finding) for finding in check(store, derive)]
        assert all("header" not in line for line in lines)


def test_a_missing_segment_and_a_short_one(store):
    store.index.seal(1)
    store.segments.refresh()
    put(store, payload_of(key_of(2)))
    place = place_of(store, KEYS[2])
    os.truncate(store.layout.segment(1), place + 100)
    assert any("the file of its segment ends before it" in line for line in scrubbed(store))
    assert {record.key for record in store.index.damage()} == {KEYS[2], KEYS[3]}
    store.layout.segment(1).unlink()
    store.readers.forget()
    assert "error: segment 1: its file is missing" in scrubbed(store)
    assert {record.key for record in store.index.damage()} == set(KEYS)


def test_a_store_that_is_open_for_reading_only_is_not_changed(store, tmp_path):
    flip(store, place_of(store, KEY) + 9)
    store.close()
    with Store.open(tmp_path, OPTIONS, read_only=True) as reader:
        assert len(scrubbed(reader)) == 1
        assert reader.index.damage() == []
    assert not (tmp_path / "scrub.json").exists()


def test_a_damaged_record_that_is_compacted_stays_known(store):
    place = place_of(store, KEY)
    flip(store, place + 9)
    wrong = get(store, KEY)
    report = compact(store, everything=True)
    assert (report.damaged_instances, report.moved) == (1, 4)
    (record,) = store.index.damage()
    assert (record.key, record.location.segment) == (KEY, 2)
    assert get(store, KEY) == wrong  # nothing is lost that may be of use
    (line,) = scrubbed(store)
    assert f"instance {'/'.join(KEY)}, segment 2" in line
    assert [str(each)[:5] for each in check(store, derive)] == ["error"]
    put(store, payload_of(KEY, 5_000))
    assert [str(each)[:4] for each in check(store, derive)] == ["note"]
    assert store.index.damage() == []


# Rate, cache


def test_the_rate_is_kept(store):
    clock = ScrubClock()
    began, size = clock.now, store.index.segment(1).committed_end
    list(check_segments(store, Pace(1_000, clock.time, clock.sleep)))
    assert size / 1_000 <= clock.now - began < size / 1_000 + 5
    idle = Pace(1_000, clock.time, clock.sleep)
    clock.now += 3_600  # what was not read then is not made up for
    before = clock.now
    idle.take(2_000)
    assert clock.now - before == pytest.approx(2.0)


def cached_pages(path):
    """How many pages of the file are in the page cache (mincore)."""
    libc, length = ctypes.CDLL(None, use_errno=True), path.stat().st_size
    libc.mmap.restype = ctypes.c_void_p
    size, pages = ctypes.c_size_t(length), -(-length // mmap.PAGESIZE)
    state = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0))
        assert address != ctypes.c_void_p(-1).value
        try:
            assert libc.mincore(ctypes.c_void_p(address), size, state) == 0
        finally:
            libc.munmap(ctypes.c_void_p(address), size)
    return sum(page & 1 for page in state)


def drop(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def large(tmp_path):
    """A store whose segment has 3 MB."""
    with open_store(tmp_path, options=StoreOptions(segment_size=1 << 30, min_free=0)) as store:
        put(store, *(payload_of(key_of(1, 1, number), 300_000) for number in range(10)))
        yield store


def test_a_read_that_fails_once_is_no_damage_and_a_bad_block_costs_its_record(large, monkeypatch):
    key = key_of(1, 1, 4)
    bad = large.lookup(*key)[0].location.offset + 100_000
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))] * 2
    real = os.preadv

    def preadv(fd, buffers, offset, *flags):
        if failures and offset <= bad < offset + len(buffers[0]):
            raise failures.pop()
        return real(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", preadv)
    clock = ScrubClock()
    pace = Pace(0, clock.time, clock.sleep)
    assert list(check_segments(large, pace)) == []
    assert failures == []
    failures += [OSError(errno.EIO, os.strerror(errno.EIO))] * 1000
    lines = [str(finding) for finding in check_segments(large, pace)]
    assert len(lines) == 1
    assert "it cannot be read: Input/output error" in lines[0]
    assert [record.key for record in large.index.damage()] == [key]


WAYS = {
    "direct": (),
    "dontcache": (os.O_DIRECT,),
    "plain": (os.O_DIRECT, RWF_DONTCACHE),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_page_cache_stays_as_it_is(large, monkeypatch, way):
    """Hot pages stay, and none are brought in but those that metadata or a neighbour's window take."""
    path, missing = large.layout.segment(1), WAYS[way]
    real_open, real_preadv = os.open, os.preadv

    def opened(name, flags, *mode, **named):
        if flags & os.O_DIRECT and os.O_DIRECT in missing:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return real_open(name, flags, *mode, **named)

    def preadv(fd, buffers, offset, flags=0):
        if flags & RWF_DONTCACHE and RWF_DONTCACHE in missing:
            raise OSError(errno.EOPNOTSUPP, "no RWF_DONTCACHE here")
        return real_preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", preadv)
    pages = path.stat().st_size // mmap.PAGESIZE
    large.readers.forget()
    path.read_bytes()
    assert cached_pages(path) >= pages
    assert scrubbed(large) == []
    assert cached_pages(path) >= pages
    drop(path)
    before = cached_pages(path)
    assert before < pages // 4
    assert scrubbed(large) == []
    assert cached_pages(path) <= before + pages // 4


def test_reads_anywhere_are_those_of_the_file(tmp_path):
    path = tmp_path / "file"
    content = os.urandom(3 * WINDOW + 1234)
    path.write_bytes(content)
    loaded = []
    file = UncachedFile(path, loaded.append)
    longest = WINDOW - ALIGNMENT
    places = [(0, 1), (1, longest), (WINDOW - 3, 9), (len(content) - 5, 5), (len(content) - 5, 50)]
    for offset, length in [*places, (len(content), 3), (4096, 4096), (2 * WINDOW + 7, longest)]:
        assert file.read(offset, length) == content[offset : offset + length]
    assert file.length == len(content)
    assert sum(loaded) <= 9 * WINDOW
    file.close()


# Turns


def rows_of(**sizes):
    return {int(name[1:]): SegmentRow(int(name[1:]), size) for name, size in sizes.items()}


def turn(state, rows, clock, period, days):
    """Segments in the order in which they were walked, with the day; a walk takes no time."""
    walked, end = [], clock.now + days * DAY
    while clock.now < end:
        state.see(rows(), clock.now)
        segment, wait = state.due(rows(), clock.now, period * DAY)
        clock.now += min(wait, DAY / 8)
        if wait <= DAY / 8:
            state.walked(segment, clock.now, rows()[segment].committed_end)
            state.next = 0.0
            walked.append((segment, clock.now))
    return walked


def test_every_segment_is_walked_within_the_period_and_evenly():
    clock, state = ScrubClock(), ScrubState()
    rows = rows_of(**{f"s{number}": 1_000 + 100 * (number % 7) for number in range(1, 61)})
    walked = turn(state, lambda: rows, clock, 30, 95)
    times = {number: [0.0] for number in rows}
    for number, when in walked:
        times[number].append(when - 1_700_000_000.0)
    for found in times.values():
        assert max(after - before for before, after in itertools.pairwise(found)) <= 30.3 * DAY
    a_day = [sum(1 for _, when in walked if int((when - 1_700_000_000) // DAY) == day) for day in range(95)]
    assert max(a_day) <= 8  # on average 2


def test_segments_that_come_later_make_it_faster():
    clock, state = ScrubClock(), ScrubState()
    began, first = clock.now, rows_of(s1=1_000)
    more = rows_of(**{f"s{number}": 100_000 for number in range(1, 41)})
    walked = turn(state, lambda: first if clock.now < began + DAY else more, clock, 30, 33)
    assert {number for number, _ in walked} == set(more)
    assert state.due({1: SegmentRow(1)}, clock.now, DAY) is None


def test_a_walk_goes_on_where_it_was(store, monkeypatch):
    """Killed after three records: their bytes are not read again."""
    clock = ScrubClock()
    pace = Pace(1_000, clock.time, clock.sleep)
    scrub = Scrub(store, pace, clock.time)
    monkeypatch.setattr("streamsrv.store.maintenance.scrub.SAVE_EVERY", 0.0)
    walk = scrub.run(1)
    real, seen = Scrub._verify, []

    def verify(self, file, segment, stretch, registered):
        seen.append(stretch.offset)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(self, file, segment, stretch, registered)

    monkeypatch.setattr(Scrub, "_verify", verify)
    with pytest.raises(KeyboardInterrupt):
        list(walk)
    state = ScrubState.load(store.layout.scrub_state)
    third_end = place_of(store, KEYS[2]) + 5_000
    assert state.current.offset == third_end
    assert info(store)["scrub"]["walk"] == f"segment 1, byte {third_end}"
    assert Scrub(store, pace, clock.time).due(DAY) == (1, 0.0)
    list(Scrub(store, pace, clock.time).run(1))
    assert seen[4:] == [third_end]
    state = ScrubState.load(store.layout.scrub_state)
    assert state.current is None
    assert state.segments[1].end == store.index.segment(1).committed_end
    told = info(store)["scrub"]
    assert told["bytes_never_verified"] == 0
    assert told["oldest_verified_at"].endswith("+00:00")
    put(store, payload_of(key_of(7), 700))
    assert info(store)["scrub"]["bytes_never_verified"] == 700 + HEADER


def test_the_age_of_the_oldest_byte():
    rows = rows_of(s1=1_000, s2=2_000, s3=3_000)
    state = ScrubState({1: Verified(50.0, 1_000), 2: Verified(70.0, 1_500), 3: Verified(10.0)})
    assert verified_until(state, rows) == (50.0, 500 + 3_000 - FIRST_RECORD)
    assert verified_until(ScrubState(), {}) == (None, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"segments": 1}', '{"segments": {"x": {}}}'])
def test_a_state_that_cannot_be_read_means_nothing_was_verified(tmp_path, text):
    (tmp_path / "scrub.json").write_text(text)
    assert ScrubState.load(tmp_path / "scrub.json") == ScrubState()


def test_the_state_comes_back(store):
    state = ScrubState({1: Verified(2.5, 3)}, WalkPosition(1, 4, 5.5), 6.5)
    state.save(store.ops, store.layout.scrub_state)
    state.save(store.ops, store.layout.scrub_state)
    assert ScrubState.load(store.layout.scrub_state) == state
    assert store.layout.scrub_state.stat().st_mode & 0o777 == 0o600


def test_the_time_to_save_the_state_is_linear(store):
    """50 TB have 50,000 segments, and the state is saved once a segment."""

    def seconds(segments):
        state = ScrubState({number: Verified(1.7e9 + number, 1 << 30) for number in range(1, segments + 1)})
        began = time.process_time()
        state.save(store.ops, store.layout.scrub_state)
        assert ScrubState.load(store.layout.scrub_state) == state
        return time.process_time() - began

    assert min(seconds(50_000) / seconds(5_000) for _ in range(2)) < 30
