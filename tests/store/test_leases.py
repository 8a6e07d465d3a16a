import os
import threading

import pytest

from streamsrv.errors import SegmentGone
from streamsrv.store.folder import Layout
from streamsrv.store.leases import Readers


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def readers(tmp_path):
    layout = Layout(tmp_path)
    layout.segments.mkdir()
    for segment in (1, 2):
        layout.segment(segment).write_bytes(b"segment %d" % segment)
    return Readers(layout)


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
    assert open_descriptors() == before + 1
    assert second.pread(1, 0, 7) == b"segment"
    second.release()
    assert open_descriptors() == before


def test_an_unlinked_segment_stays_readable_to_who_has_it(readers, tmp_path):
    lease = readers.open([1])
    Layout(tmp_path).segment(1).unlink()
    assert lease.pread(1, 0, 9) == b"segment 1"
    lease.release()
    with pytest.raises(SegmentGone):
        readers.open([1])


def test_when_one_is_gone_the_others_are_closed(readers):
    before = open_descriptors()
    with pytest.raises(SegmentGone):
        readers.open([1, 2, 3])
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
    assert open_descriptors() == before
