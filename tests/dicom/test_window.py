import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import pread_of

from streamsrv.dicom.window import UNKNOWN_END, Inflater, ReadWindow
from streamsrv.errors import InstanceRefused, NotDicom

PLAIN = bytes(range(256)) * 8000  # 2 MB


def squeezed(content):
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(content) + squeezer.flush()


class Counted:
    def __init__(self, content):
        self.content = content
        self.reads = []

    def __call__(self, offset, length):
        self.reads.append((offset, length))
        return self.content[offset : offset + length]


def test_windows_double_while_reading_on_and_are_small_after_a_jump():
    source = Counted(PLAIN)
    window = ReadWindow(source, len(PLAIN))
    position = 0
    for _ in range(7):
        window.load(position, 8)
        position = window.start + len(window.buffer) - 4
    window.load(1_500_000, 8)
    assert [length // 1024 for _, length in source.reads] == [16, 32, 64, 128, 256, 256, 256, 16]


def test_bytes_in_the_window_are_not_read_again():
    source = Counted(PLAIN)
    window = ReadWindow(source, len(PLAIN))
    assert window.bytes_at(10, 20) == PLAIN[10:30]
    assert window.bytes_at(100, 5) == PLAIN[100:105]
    assert len(source.reads) == 1


def test_the_end_of_the_source_cuts():
    window = ReadWindow(pread_of(PLAIN), 100)
    assert window.bytes_at(90, 20) == PLAIN[90:100]
    assert window.load(100, 8) == 0
    assert window.bytes_at(200, 8) == b""


def test_again_is_a_window_of_its_own():
    window = ReadWindow(pread_of(PLAIN), len(PLAIN))
    window.load(0, 8)
    other = window.again()
    assert other.bytes_at(5000, 10) == PLAIN[5000:5010]
    assert window.start == 0


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN)), st.integers(0, 300_000)), max_size=8))
def test_inflater_reads_like_the_plain_file(reads):
    packed = b"head" + squeezed(PLAIN) + b"\0"
    inflater = Inflater(pread_of(packed), 4, len(packed), 1 << 30)
    for offset, length in reads:
        assert inflater.pread(offset, length) == PLAIN[offset : offset + length]


def test_inflater_behind_a_window():
    packed = squeezed(PLAIN)
    window = ReadWindow(Inflater(pread_of(packed), 0, len(packed), 1 << 30).pread, UNKNOWN_END)
    assert window.bytes_at(0, 8) == PLAIN[:8]
    assert window.bytes_at(1_999_000, 70_000) == PLAIN[1_999_000:]
    assert window.load(len(PLAIN), 8) == 0


def test_inflater_beyond_the_end():
    packed = squeezed(b"abc")
    inflater = Inflater(pread_of(packed), 0, len(packed), 100)
    assert inflater.pread(3, 8) == b""
    with pytest.raises(NotDicom, match="beyond the end"):
        inflater.pread(4, 8)


def test_a_deflate_bomb_stops_at_the_limit():
    packed = squeezed(bytes(50_000_000))
    inflater = Inflater(pread_of(packed), 0, len(packed), 1_000_000)
    with pytest.raises(InstanceRefused, match="inflates to more than 1,000,000"):
        inflater.pread(40_000_000, 8)


def test_truncated_and_damaged_streams():
    packed = squeezed(PLAIN)
    with pytest.raises(NotDicom, match="truncated"):
        Inflater(pread_of(packed[:-3]), 0, len(packed) - 3, 1 << 30).pread(0, len(PLAIN))
    with pytest.raises(NotDicom, match="damaged"):
        Inflater(pread_of(b"\xff" * 100), 0, 100, 1 << 30).pread(0, 10)
