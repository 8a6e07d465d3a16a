import pydicom.uid
import pytest

from streamsrv.dicom import syntaxes


@pytest.mark.parametrize("uid", pydicom.uid.AllTransferSyntaxes)
def test_every_transfer_syntax_of_pydicom_agrees(uid):
    row = syntaxes.lookup(uid)
    assert row.explicit_vr is not uid.is_implicit_VR
    assert row.little_endian is uid.is_little_endian
    if "JPIP" not in row.name:  # PS3.5 A.9 and A.12: pydicom knows only one of the two as deflated
        assert row.deflated is uid.is_deflated
        assert row.encapsulated is (uid.is_encapsulated or row.name == "Unknown")


def test_rows_are_their_own_keys():
    assert all(row.uid == uid for uid, row in syntaxes.SYNTAXES.items())


def test_media_types():
    assert syntaxes.lookup("1.2.840.10008.1.2.4.50").media_type == "image/jpeg"
    assert syntaxes.lookup("1.2.840.10008.1.2.4.201").media_type == "image/jphc"
    assert syntaxes.lookup(syntaxes.EXPLICIT_VR_LITTLE_ENDIAN).media_type == "application/octet-stream"


def test_unknown_and_private_uids_have_a_row():
    row = syntaxes.lookup("1.2.3.4")
    assert row == syntaxes.TransferSyntax("1.2.3.4", "Unknown")
    assert row.explicit_vr
    assert row.little_endian
    assert not row.deflated
