"""One whole instance: identity, facts, refusals."""

import struct

import pytest
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    element,
    identity,
    image,
    padded,
    part10,
    read,
    readable_paths,
    sequence,
)

from streamsrv.dicom.instance import FrameKind
from streamsrv.dicom.part10 import ReadLimits
from streamsrv.errors import InstanceRefused, NotDicom


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
def test_facts_of_an_image(syntax):
    encoding = EXPLICIT if syntax == DEFLATED else syntax
    pixels = element(0x7FE00010, "OW", bytes(12), encoding)
    content = part10(image(2, 3, 16, frames=1, syntax=encoding) + pixels, syntax)
    instance, ours = read(content)
    assert (instance.study_uid, instance.series_uid) == ("1.2.5", "1.2.6")
    assert (instance.instance_uid, instance.sop_class_uid) == ("1.2.4", "1.2.3")
    assert (instance.rows, instance.columns, instance.samples_per_pixel, instance.bits_allocated) == (
        2,
        3,
        1,
        16,
    )
    assert instance.transfer_syntax == syntax
    assert instance.deflated is (syntax == DEFLATED)
    assert instance.pixel_length == 12
    assert (instance.frames.kind, instance.frames.base) == (FrameKind.NATIVE, instance.pixel_offset)
    assert ours["7FE00010"] == {"vr": "OW", "BulkDataURI": "<slot>/bulkdata/7FE00010"}
    if not instance.deflated:
        assert instance.pixel_offset == len(content) - 12


@pytest.mark.parametrize("field", ["sop_class", "instance", "study", "series"])
@pytest.mark.parametrize("value", [None, "", "1.2.x", "1" * 65, "1 2", "１.2"])
def test_missing_and_malformed_uids(field, value):
    with pytest.raises(NotDicom, match=r"UID is (missing|malformed)") as refusal:
        read(part10(identity(**{field: value})))
    assert refusal.value.failure_reason == 43264
    assert refusal.value.tag in ("00080016", "00080018", "0020000D", "0020000E")


@pytest.mark.parametrize("value", [b"1.2.5\0", b"1.2.5 ", b"1.2.5\0\0\0", b" 1.2.5", b"1.02.0050"])
def test_tolerated_uids(value):
    instance, _ = read(part10(identity(study=value)))
    assert instance.study_uid == value.decode().strip(" \0")


def test_the_dataset_wins_over_the_file_meta():
    content = part10(identity(), meta=element(0x00020003, "UI", padded("9.9.9")))
    assert read(content)[0].instance_uid == "1.2.4"


def test_attributes_of_odd_types_are_no_facts():
    odd = (
        element(0x00280010, "LO", b"many")
        + element(0x00280011, "UL", b"\0\0\1\0")
        + element(0x00280008, "IS", b"-1")
    )
    instance, _ = read(part10(identity() + odd))
    assert (instance.rows, instance.columns, instance.frames.number) == (0, 0, 0)


def test_an_empty_dataset_and_an_empty_file():
    with pytest.raises(NotDicom, match="missing"):
        read(part10(b""))
    with pytest.raises(NotDicom, match="prefix"):
        read(b"")


def test_limits_of_a_deflated_dataset():
    content = part10(identity() + element(0x00420011, "OB", bytes(5_000_000)), DEFLATED)
    instance, _ = read(content)
    assert instance.bulk[0].length == 5_000_000
    with pytest.raises(InstanceRefused, match="inflates to more than"):
        read(content, limits=ReadLimits(max_inflated=1_000_000))


def test_a_lying_length_at_the_end_of_a_deflated_dataset():
    content = part10(identity() + element(0x00420011, "OB", bytes(2000), length=4_000_000_000), DEFLATED)
    with pytest.raises(NotDicom, match="beyond the end"):
        read(content)


def test_every_truncation_of_a_made_file():
    nested = sequence(
        0x00081140,
        [
            b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
            + element(0x00080060, "CS", b"CT")
            + b"\xfe\xff\x0d\xe0\0\0\0\0"
        ],
    )
    content = part10(nested + image() + element(0x7FE00010, "OB", bytes(6)))
    whole = 0
    for end in range(len(content)):
        try:
            read(content[:end])
            whole += 1
        except NotDicom:
            pass
    # Cut between elements behind the identity it is a whole instance still.
    assert 0 < whole <= 8


def test_no_refusal_holds_a_value_of_the_dataset():
    secret = element(0x00100010, "PN", b"Secret^Name ")
    for dataset in (
        secret,
        secret + element(0x00100020, "UT", b"Secret", length=99),
        identity(study="Secret"),
    ):
        with pytest.raises(NotDicom) as refusal:
            read(part10(dataset))
        assert "Secret" not in refusal.value.detail


def test_every_pydicom_file_is_read_or_refused():
    kinds = {"read": 0, "refused": 0}
    for path in readable_paths():
        try:
            read(path.read_bytes())
            kinds["read"] += 1
        except NotDicom:
            kinds["refused"] += 1
    assert kinds["read"] > 150


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_the_group_length_of_pixel_data_is_no_bulk_value(syntax):
    length = element(0x7FE00000, "UL", struct.pack("<I", 12), syntax)
    pixels = element(0x7FE00010, "OW", bytes(4), syntax)
    instance, dataset = read(part10(identity(syntax) + length + pixels, syntax))
    assert [value.path for value in instance.bulk] == ["7FE00010"]
    assert "7FE00000" not in dataset
