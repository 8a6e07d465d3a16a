"""Whole datasets for a peer that takes Implicit VR Little Endian alone."""

import io
import os

import clinic
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from streamsrv.ingest import Ingest
from streamsrv.pixels.pool import PixelPool
from streamsrv.retrieve import Retrieve
from streamsrv.store import Store, StoreOptions


def nested():
    """Sequences of defined length, two levels deep, and an unknown element."""
    made, inner = clinic.dataset(clinic.CTImageStorage, "1.2.1", "1.2.1.1", "1.2.1.1.1"), Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-1", "region"
    outer = Dataset()
    outer.AnatomicRegionModifierSequence = [inner, inner]
    outer.CodeValue = "T-2"
    made.AnatomicRegionSequence = [outer, inner]
    made.add_new(0x00091001, "UN", b"\1\2\3\4")
    made.add_new(0x7FE00010, "OW", bytes(range(32)))
    return made


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_implicit_vr(tmp_path, syntax):
    made = nested()
    made.file_meta.TransferSyntaxUID = syntax
    file = DicomBytesIO()
    little = syntax != ExplicitVRBigEndian
    implicit = syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(file, made, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    store, pool = Store.open(tmp_path, StoreOptions(min_free=0)), PixelPool(1)
    ingest = Ingest(store, content_type="application/dicom")
    ingest.begin()
    ingest.feed(file.getvalue())
    assert not ingest.finish().failed
    (change,) = store.changes()
    whole = Retrieve(store, pool).dataset(change.key, lambda sop_class: [ImplicitVRLittleEndian])
    content = b"".join(whole.chunks)
    if whole.stored is not None:
        descriptor, offset, length = whole.stored
        content = os.pread(descriptor, length, offset)
    assert (whole.stored is not None) == implicit
    whole.close()
    assert whole.syntax == ImplicitVRLittleEndian
    found = pydicom.dcmread(io.BytesIO(content), force=True)
    stored = pydicom.dcmread(DicomBytesIO(file.getvalue()))
    for each in ("AnatomicRegionSequence", "PatientName", "StudyDate"):
        assert found[each] == stored[each]
    assert found[0x00091001].value == b"\1\2\3\4"
    words = range(32) if little else (at ^ 1 for at in range(32))  # pydicom writes words as they are
    assert found.PixelData == bytes(words)
    pool.close()
    store.close()
