import pytest
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    UNDEFINED,
    element,
    identity,
    part10,
    pread_of,
    read,
)

from streamsrv.dicom.part10 import encoding_of, read_file_meta
from streamsrv.dicom.window import ReadLimits, ReadWindow
from streamsrv.errors import NotDicom


def meta_of(content):
    window = ReadWindow(pread_of(content), len(content))
    return read_file_meta(window, len(content), ReadLimits()), window


@pytest.mark.parametrize("group_length", [None, False, 0, 7, 100_000])
def test_the_group_length_is_not_believed(group_length):
    content = part10(identity(), meta=element(0x00020012, "UI", b"1.2\0"), group_length=group_length)
    meta, _ = meta_of(content)
    assert meta.syntax == EXPLICIT
    assert content[meta.end :] == identity()
    assert meta.elements[-1] == (0x00020012, "UI", b"1.2\0")
    assert read(content)[0].dataset_offset == meta.end


def test_a_deflated_dataset_that_looks_like_group_2():
    content = part10(b"", DEFLATED)
    packed = b"\2\0\x10\0UI\2\0xx"
    content = content[:-2] + packed  # the two bytes of an empty deflate stream
    meta, _ = meta_of(content)
    assert content[meta.end :] == packed


def test_implicit_vr_in_the_file_meta():
    body = element(0x00020010, "", b"1.2.840.10008.1.2\0", IMPLICIT)
    content = bytes(128) + b"DICM" + body + identity(IMPLICIT)
    meta, _ = meta_of(content)
    assert meta.syntax == IMPLICIT
    assert read(content)[0].study_uid == "1.2.5"


def test_no_prefix():
    with pytest.raises(NotDicom, match="no DICM prefix") as refusal:
        meta_of(identity() * 5)
    assert refusal.value.offset == 128
    for content in (b"", b"DICM", bytes(131)):
        with pytest.raises(NotDicom):
            meta_of(content)


def test_sequences_and_undefined_lengths_do_not_belong_there():
    with pytest.raises(NotDicom, match="a sequence in the file meta"):
        meta_of(part10(identity(), meta=element(0x00020011, "SQ", b"")))
    with pytest.raises(NotDicom, match="undefined length in the file meta"):
        meta_of(part10(identity(), meta=element(0x00020011, "OB", b"", length=UNDEFINED)))


def test_long_private_information_is_passed_over():
    meta, _ = meta_of(part10(identity(), meta=element(0x00020102, "OB", bytes(5000))))
    assert [tag for tag, _, _ in meta.elements] == [0x00020000, 0x00020010]


@pytest.mark.parametrize(
    ("declared", "real", "recorded", "explicit", "little", "warned"),
    [
        (EXPLICIT, EXPLICIT, EXPLICIT, True, True, False),
        (IMPLICIT, IMPLICIT, IMPLICIT, False, True, False),
        (BIG, BIG, BIG, True, False, False),
        (JPEG, EXPLICIT, JPEG, True, True, False),
        ("1.2.3", EXPLICIT, "1.2.3", True, True, False),
        (EXPLICIT, IMPLICIT, IMPLICIT, False, True, True),
        (IMPLICIT, EXPLICIT, IMPLICIT, True, True, True),
        (JPEG, IMPLICIT, JPEG, False, True, True),
        ("", EXPLICIT, EXPLICIT, True, True, True),
        ("", IMPLICIT, IMPLICIT, False, True, True),
        ("", BIG, BIG, True, False, True),
    ],
)
def test_the_first_element_shows_the_encoding(declared, real, recorded, explicit, little, warned):
    content = part10(identity(real), declared)
    encoding = encoding_of(*meta_of(content))
    assert (encoding.syntax, encoding.explicit, encoding.little) == (recorded, explicit, little)
    assert bool(encoding.warning) is warned
    instance, _ = read(content)
    assert (instance.transfer_syntax, instance.study_uid) == (recorded, "1.2.5")
    assert [warning.tag for warning in instance.warnings] == ["00020010"] * warned


def test_nothing_behind_the_file_meta():
    cut = part10(b"", "")[:132] + element(0x00020001, "OB", b"\0\1", length=2)
    assert meta_of(cut)[0].end == len(cut)
    for syntax in (EXPLICIT, IMPLICIT, ""):
        assert not encoding_of(*meta_of(part10(b"", syntax))).deflated
