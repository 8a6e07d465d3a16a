"""Part 10 files encoded anew with elements changed, added, left out, or left to their caller."""

import io

import pydicom
import pytest
from made_files import piece_bytes
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage

from streamsrv.dicom.explicit import Changes, Here, changed_pieces

EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
J2K = "1.2.840.10008.1.2.4.90"


def source(syntax):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    dataset.PatientName = "Doe^Jane"
    inner = Dataset()
    inner.Rows, inner.PatientName = 7, "Within"
    nested = Dataset()
    nested.IconImageSequence = [inner, Dataset()]
    dataset.IconImageSequence = [nested, inner]
    dataset.Rows, dataset.Columns = 4, 5
    dataset.PixelData = b"12345678"
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def changed(content, syntax, elements, here=b""):
    def pread(offset, length):
        return content[offset : offset + length]

    made = b""
    for piece in changed_pieces(pread, len(content), Changes(syntax, elements)):
        made += here if isinstance(piece, Here) else b"".join(piece_bytes(pread, piece))
    return pydicom.dcmread(io.BytesIO(made))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
def test_elements_are_changed_added_and_left_out(syntax):
    here = b"\xe0\x7f\x10\x00OB\0\0\x02\0\0\0ok"
    elements = {
        0x00100010: ("PN", b"Roe^J"),
        0x00280004: ("CS", b"RGB"),
        0x00280010: None,
        0x00880200: None,
        0x7FE00010: Here(0x7FE00010),
        0xFFFCFFFC: ("OB", b"\0"),
    }
    made = changed(source(syntax), J2K, elements, here)
    assert made.file_meta.TransferSyntaxUID == J2K
    assert [f"{element.tag:08X}" for element in made] == [
        "00080016",
        "00080018",
        "00100010",
        "00280004",
        "00280011",
        "7FE00010",
        "FFFCFFFC",
    ]
    assert (made.PatientName, made.PhotometricInterpretation, made.PixelData) == ("Roe^J", "RGB", b"ok")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_stands_in_sequences_is_left_alone(syntax):
    made = changed(source(syntax), EXPLICIT, {0x00280010: ("US", b"\x09\0"), 0x00100010: None})
    assert made.Rows == 9
    assert made.IconImageSequence[0].IconImageSequence[0].Rows == 7
    assert made.IconImageSequence[1].PatientName == "Within"
    assert "PatientName" not in made
