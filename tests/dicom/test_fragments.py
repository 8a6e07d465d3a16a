import struct
import tracemalloc

import pytest
from made_files import ITEM, SEQUENCE_END, delimiter, fragments, item, pread_of

from streamsrv.dicom.frames import fragment_spans, scan_items
from streamsrv.errors import InstanceRefused, NotDicom


def scanned(content, limit=1000, **options):
    items = scan_items(pread_of(content), 0, len(content), limit, **options)
    return list(zip(items.offsets, items.lengths, strict=True)), items.end


@pytest.mark.parametrize("sizes", [[], [0], [1, 2, 3], [5000, 0, 70_000, 8], [300_000, 2] * 5, [10] * 40_000])
def test_items_of_every_size(sizes):
    content = b"".join(item(bytes(size)) for size in sizes) + delimiter(SEQUENCE_END) + b"rest"
    found, end = scanned(content, limit=100_000)
    assert [length for _, length in found] == sizes
    assert all(content[offset - 8 : offset] == item(bytes(length))[:8] for offset, length in found)
    assert end == len(content) - 12


def test_big_endian_items():
    content = item(b"ab", order=">") + delimiter(SEQUENCE_END, ">")
    assert scanned(content, little=False) == ([(8, 2)], 10)


def test_every_truncation_is_refused():
    content = fragments([b"abcd", b"", b"ef"])
    for end in range(len(content) - 7):
        with pytest.raises(NotDicom):
            scanned(content[:end])


def test_lies_are_refused_with_their_offset():
    with pytest.raises(NotDicom, match="longer than its container") as refusal:
        scanned(item(b"") + item(b"abcd", length=400) + delimiter(SEQUENCE_END))
    assert refusal.value.offset == 8
    with pytest.raises(NotDicom, match="expected a fragment"):
        scanned(item(b"") + b"\x10\0\x10\0" + bytes(12))
    with pytest.raises(NotDicom, match="expected a fragment"):
        scanned(item(b"", undefined=True) + delimiter(SEQUENCE_END))


def test_too_many_fragments_are_refused_in_bounded_memory():
    content = item(b"") * 200_000
    tracemalloc.start()
    with pytest.raises(InstanceRefused, match="more than 1,000 fragments"):
        scanned(content, limit=1000)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_fragment_spans_resolve_a_range():
    content = b"xx" + item(b"abc") + item(b"") + item(b"de") + delimiter(SEQUENCE_END)
    length = len(content) - 2 - 8
    spans = fragment_spans(pread_of(content), 2, length | 1 << 63)
    assert [content[offset : offset + size] for offset, size in spans] == [b"abc", b"", b"de"]
    assert fragment_spans(pread_of(content), 2, length) == spans


def test_fragment_spans_of_damaged_ranges():
    content = item(b"abc")
    with pytest.raises(NotDicom, match="expected a fragment"):
        fragment_spans(pread_of(content), 0, 10)
    with pytest.raises(NotDicom, match="expected a fragment"):
        fragment_spans(pread_of(struct.pack("<HHI", ITEM >> 16, 1, 0)), 0, 8)
    with pytest.raises(NotDicom, match="truncated"):
        fragment_spans(pread_of(content[:5]), 0, 11)
