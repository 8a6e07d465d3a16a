import os
import threading
import time

import pytest

from streamsrv.errors import SegmentGone
from streamsrv.store.folder import Layout
from streamsrv.store.segments.leases import LINGER, MOST_LINGERING, Readers


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def readers(tmp_path):
    layout = Layout(tmp_path)
    layout.segments.mkdir()
    for segment in (1, 2):
        layout.segment(segment).write_bytes(b"segment %d" % segment)
    readers = Readers(layout)
    yield readers
    readers.forget()


def test_reading(readers):
    with readers.open([1, 2, 1]) as lease:
        assert lease.pread(1, 8, 10) == b"1"
        assert lease.pread(2, 0, 7) == b"segment"
        assert os.pread(lease.fd(2), 9, 0) == b"segment 2"


def test_descriptors_are_shared_and_closed_with_the_last_lease(readers):
    before = open_descriptors()
    first, second = readers.open([1, 2]), readers.open([1])
    assert open_descriptors() == before + 2
    assert first.fd(1) == second.fd(1)
    first.release()
    first.release()
    readers.forget()
    assert open_descriptors() == before + 1
    assert second.pread(1, 0, 7) == b"segment"
    second.release()
    readers.forget()
    assert open_descriptors() == before


def test_nothing_lingers_after_the_end(readers):
    before, threads = open_descriptors(), threading.active_count()
    lease = readers.open([1])
    readers.end()
    assert lease.pread(1, 0, 7) == b"segment"
    lease.release()
    assert (open_descriptors(), threading.active_count()) == (before, threads)


def test_the_next_reader_finds_it_open_for_a_moment(readers):
    before = open_descriptors()
    with readers.open([1]) as lease:
        first = lease.fd(1)
    with readers.open([1]) as lease:
        assert lease.fd(1) == first
    assert open_descriptors() == before + 1


def test_a_descriptor_does_not_outlive_its_moment(readers):
    before = open_descriptors()
    readers.open([1]).release()
    time.sleep(LINGER / 2)
    readers.open([2]).release()
    assert open_descriptors() == before + 2
    deadline = time.monotonic() + 10
    while open_descriptors() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_has_been_unlinked_does_not_linger(readers, tmp_path):
    before = open_descriptors()
    readers.open([1]).release()
    lease = readers.open([2])
    for segment in (1, 2):
        Layout(tmp_path).segment(segment).unlink()
        readers.gone(segment)
    assert open_descriptors() == before + 1
    lease.release()
    assert open_descriptors() == before
    with pytest.raises(SegmentGone):
        readers.open([2])


def test_few_linger(readers, tmp_path):
    before = open_descriptors()
    many = range(1, MOST_LINGERING + 10)
    for segment in many:
        Layout(tmp_path).segment(segment).write_bytes(b"x")
    readers.open(many).release()
    assert open_descriptors() == before + MOST_LINGERING
    readers.forget()
    assert open_descriptors() == before


def test_an_unlinked_segment_stays_readable_to_who_has_it(readers, tmp_path):
    lease = readers.open([1])
    Layout(tmp_path).segment(1).unlink()
    assert lease.pread(1, 0, 9) == b"segment 1"
    lease.release()
    readers.forget()
    with pytest.raises(SegmentGone):
        readers.open([1])


def test_when_one_is_gone_the_others_are_closed(readers):
    before = open_descriptors()
    with pytest.raises(SegmentGone):
        readers.open([1, 2, 3])
    readers.forget()
    assert open_descriptors() == before


def test_threads_share(readers):
    before = open_descriptors()
    wrong = []

    def read():
        for _ in range(200):
            with readers.open([1, 2]) as lease:
                if lease.pread(1, 0, 9) != b"segment 1":
                    wrong.append(True)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    readers.forget()
    assert open_descriptors() == before
