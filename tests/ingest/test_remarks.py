"""What a store response says of instances that are stored all the same."""

from __future__ import annotations

import io

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from streamsrv.dicom.instance import SOPInstance
from streamsrv.dicom.part10 import read_instance
from streamsrv.dicom.window import ReadLimits
from streamsrv.ingest.response import StoredItem
from streamsrv.query.attributes import KEEP

UIDS = (CTImageStorage, "1.2.3", "1.2.3.4", "1.5")


def learned(patient: str | None, modality: bytes = b"CT") -> SOPInstance:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = UIDS
    dataset.Modality = "CT"
    if patient is not None:
        dataset.PatientID = patient
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    payload = buffer.getvalue().replace(b"CS\2\0CT", b"CS\2\0" + modality)
    return read_instance(
        lambda offset, length: payload[offset : offset + length],
        len(payload),
        keep=KEEP,
        emit=lambda piece: None,
        limits=ReadLimits(),
    )


def test_of_most_there_is_nothing_to_say() -> None:
    assert StoredItem.of(learned("ID1")) == (*UIDS, ())


@pytest.mark.parametrize("patient", [None, ""])
def test_a_patient_that_nobody_can_search_for(patient: str | None) -> None:
    assert StoredItem.of(learned(patient)) == (*UIDS, ("(0010,0020) is absent or empty",))


def test_broken_rules() -> None:
    (comment,) = StoredItem.of(learned("ID1", modality=b"ct")).comments
    assert comment.startswith("(0008,0060) not a code string")
