"""Files encoded anew, read by pydicom: the same dataset, as Explicit VR Little Endian."""

import io
import struct
import tracemalloc

import numpy as np
import pydicom
import pytest
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    UNDEFINED,
    element,
    fragments,
    identity,
    image,
    item,
    part10,
    piece_bytes,
    piece_length,
    pread_of,
    pydicom_read,
    read,
    readable_paths,
    sequence,
)

from streamsrv.dicom.explicit import (
    Copy,
    Swap,
    explicit_pieces,
    file_meta,
    inflater,
    swap_width,
)
from streamsrv.dicom.part10 import read_file_meta
from streamsrv.dicom.values import WORDS
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import NotDicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def encoded(content):
    """(pieces, the file anew); its length was known before."""
    pread = pread_of(content)
    pieces = list(explicit_pieces(pread, len(content)))
    window = ReadWindow(pread, len(content))
    deflated = read_file_meta(window, len(content), ReadLimits()).syntax == DEFLATED
    source = inflater(pread, len(content)).pread if deflated else pread
    whole = b"".join(chunk for piece in pieces for chunk in piece_bytes(source, piece))
    assert len(whole) == sum(map(piece_length, pieces))
    return pieces, whole


def without_group_lengths(dataset):
    for tag in [tag for tag in dataset if not tag.tag & 0xFFFF]:
        del dataset[tag.tag]
    for each in dataset:
        if each.VR == "SQ":
            for below in each.value:
                without_group_lengths(below)
    return dataset


def in_little_endian(dataset):
    """pydicom leaves words of big endian as they lie; ours are swapped."""
    bits = dataset.get("BitsAllocated", 0)
    for each in dataset:
        if each.VR == "SQ":
            for below in each.value:
                in_little_endian(below)
        elif each.VR in ("OW", "OF", "OL", "OD", "OV"):
            width = swap_width(each.VR, bits if each.tag == 0x7FE00010 else 0)
            each.value = np.frombuffer(each.value, f">u{width}").byteswap().tobytes()
    return dataset


@pytest.mark.no_cover
def test_every_pydicom_file_reads_equal():
    counted = dict.fromkeys((IMPLICIT, BIG, DEFLATED, EXPLICIT), 0)
    for path in readable_paths():
        content = path.read_bytes()
        try:
            _, whole = encoded(content)
        except NotDicom:
            continue
        before = without_group_lengths(pydicom_read(content))
        after = pydicom_read(whole)
        if not before.original_encoding[1]:
            before = in_little_endian(before)
        assert after == before, path.name
        assert after.original_encoding == (False, True), path.name
        assert after.file_meta.TransferSyntaxUID == EXPLICIT
        assert after.preamble == content[:128]
        syntax = str(before.file_meta.get("TransferSyntaxUID", ""))
        counted[syntax] = counted.get(syntax, 0) + 1
    assert counted[IMPLICIT] > 8
    assert counted[BIG] > 15
    assert counted[DEFLATED] > 0


def test_pictures_of_big_endian_files_stay_the_same():
    compared = 0
    for path in readable_paths():
        content = path.read_bytes()
        dataset = pydicom_read(content)
        if dataset.original_encoding[1] or "PixelData" not in dataset or len(content) > 200_000:
            continue
        after = pydicom_read(encoded(content)[1])
        assert np.array_equal(after.pixel_array, dataset.pixel_array), path.name
        compared += 1
    assert compared > 8


@pytest.mark.parametrize(("vr", "width"), list(WORDS.items()))
def test_big_endian_words(vr, width):
    value = bytes(range(16))
    content = part10(identity(BIG) + element(0x00420011, vr, value, BIG), BIG)
    after = encoded(content)[1]
    assert after.endswith(np.frombuffer(value, f">u{width}").byteswap().tobytes())


def test_big_endian_pieces():
    long = bytes(range(256)) * 400
    content = part10(
        identity(BIG)
        + element(0x00280100, "US", b"\0\x20", BIG)
        + element(0x00420011, "OF", long, BIG)
        + element(0x00420012, "UT", long, BIG)
        + element(0x7FE00010, "OW", bytes(8), BIG),
        BIG,
    )
    pieces, whole = encoded(content)
    offset = content.index(long)
    assert [piece for piece in pieces if not isinstance(piece, bytes)] == [
        Swap(offset, len(long), 4),
        Copy(offset + len(long) + 12, len(long)),
        Swap(len(content) - 8, 8, 4),
    ]
    assert np.frombuffer(long, ">f4").tolist() == pytest.approx(
        np.frombuffer(pydicom_read(whole)[0x00420011].value, "<f4"), nan_ok=True
    )


def test_un_in_big_endian_keeps_its_bytes():
    items = [item(element(0x00280010, "US", b"\1\2", IMPLICIT))]
    content = part10(
        identity(BIG)
        + element(0x00091010, "UN", b"\1\2", BIG)
        + element(0x00400555, "UN", b"".join(items), BIG),
        BIG,
    )
    after = encoded(content)[1]
    dataset = pydicom_read(after)
    assert dataset[0x00091010].value == b"\1\2"


def test_implicit_pixel_data_are_copied():
    content = part10(
        image(2, 3, 16, syntax=IMPLICIT) + element(0x7FE00010, "OW", bytes(range(12)), IMPLICIT), IMPLICIT
    )
    pieces, whole = encoded(content)
    assert pieces[1:] == [Copy(len(content) - 12, 12)]
    assert pydicom_read(whole)["PixelData"].VR == "OW"
    assert whole.endswith(bytes(range(12)))


def test_fragments_in_an_implicit_dataset():
    pixels = element(0x7FE00010, "OB", fragments([b"ab", b"cd"]), IMPLICIT, UNDEFINED)
    content = part10(image(syntax=IMPLICIT) + pixels + element(0xFFFCFFFC, "OB", b"\0\0", IMPLICIT), IMPLICIT)
    pieces, whole = encoded(content)
    assert pieces[1] == Copy(content.index(fragments([b"ab", b"cd"])), len(fragments([b"ab", b"cd"])) - 8)
    dataset = pydicom_read(whole)
    assert dataset["PixelData"].VR == "OB"
    assert dataset["PixelData"].is_undefined_length
    assert 0xFFFCFFFC in dataset


@pytest.mark.parametrize("length", [65_532, 65_534, 65_536, 100_000])
def test_long_values_of_short_vrs_become_un(length):
    value = b"x" * length
    content = part10(identity(IMPLICIT) + element(0x00104000, "LT", value, IMPLICIT), IMPLICIT)
    whole = encoded(content)[1]
    head = whole[whole.index(b"\x10\0\0\x40") :][:12]
    if length <= 65_534:
        assert head[4:8] == b"LT" + struct.pack("<H", length)
    else:
        assert head[4:] == b"UN\0\0" + struct.pack("<I", length)
    assert whole.endswith(value)


def test_sequences_get_delimiters_and_group_lengths_go():
    empty = sequence(0x00081140, [], IMPLICIT)
    items = [item(element(0x00080060, "CS", b"CT", IMPLICIT)), item(b"")]
    content = part10(
        element(0x00080000, "UL", b"\4\0\0\0", IMPLICIT)
        + empty
        + sequence(0x00081199, items, IMPLICIT)
        + identity(IMPLICIT),
        IMPLICIT,
    )
    whole = encoded(content)[1]
    dataset = pydicom_read(whole)
    assert 0x00080000 not in dataset
    assert dataset[0x00081140].value == []
    assert [len(each) for each in dataset[0x00081199].value] == [1, 0]
    assert dataset[0x00081199].is_undefined_length


def test_the_file_meta_is_true():
    meta = element(0x00020012, "UI", b"1.2\0") + element(0x00020102, "OB", b"\1\2")
    whole = encoded(part10(identity(IMPLICIT), IMPLICIT, meta, group_length=9999))[1]
    dataset = pydicom.dcmread(io.BytesIO(whole))
    assert dataset.file_meta.FileMetaInformationGroupLength == whole.index(identity()) - 144
    assert dataset.file_meta.ImplementationClassUID == "1.2"
    assert dataset.file_meta.PrivateInformation == b"\1\2"
    window = ReadWindow(pread_of(whole), len(whole))
    again = read_file_meta(window, len(whole), ReadLimits())
    assert file_meta(again, EXPLICIT) == whole[132 : again.end]


def test_explicit_datasets_under_a_false_name():
    content = part10(identity(), IMPLICIT)
    assert encoded(content)[1] == part10(identity(), EXPLICIT)


def test_deflated_datasets_are_inflated():
    plain = image() + element(0x7FE00010, "OB", bytes(600_000))
    content = part10(plain, DEFLATED)
    pieces, whole = encoded(content)
    assert pieces[1:] == [Copy(0, len(plain))]
    assert whole.endswith(plain)
    instance, _ = read(whole)
    assert instance.transfer_syntax == EXPLICIT


def test_memory_is_bounded_and_pixel_data_are_not_read():
    reads = []
    head = part10(image(2000, 2000, 16, syntax=IMPLICIT, frames=500), IMPLICIT) + element(
        0x7FE00010, "OW", b"", IMPLICIT, 4_000_000_000
    )
    size = len(head) + 4_000_000_000

    def pread(offset, length):
        reads.append((offset, length))
        return (head[offset : offset + length] + bytes(length))[: min(length, size - offset)]

    tracemalloc.start()
    pieces = list(explicit_pieces(pread, size))
    assert sum(map(piece_length, pieces)) > 4_000_000_000
    piece = pieces[-1]
    assert piece == Copy(len(head), 4_000_000_000)
    assert all(offset < len(head) or offset == size for offset, _ in reads)
    chunks = piece_bytes(pread, piece)
    assert len(next(chunks)) == 256 * 1024
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_a_large_header_is_cut_into_literals():
    content = part10(identity(IMPLICIT) + element(0x00104000, "LT", b"x" * 50_000, IMPLICIT) * 20, IMPLICIT)
    pieces, _ = encoded(content)
    assert max(map(piece_length, pieces)) < 200_000
    assert len(pieces) > 5


def test_what_cannot_be_read_is_refused():
    with pytest.raises(NotDicom):
        list(explicit_pieces(pread_of(b"nothing"), 7))
