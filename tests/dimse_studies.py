"""Studies that C-GET and C-MOVE send: stored and compressed CT, an MR, a document, a longer series."""

import clinic
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

STUDY, OTHER, MANY = "1.2.191", "1.2.192", "1.2.193"
NUMBER = 30


def made(study, number, syntax=ExplicitVRLittleEndian, sop_class=CTImageStorage, size=(16, 16)):
    dataset = clinic.dataset(sop_class, study, f"{study}.1", f"{study}.1.{number}", ExplicitVRLittleEndian)
    dataset.PatientID = f"P {study}"
    item = Dataset()
    item.CodeValue = "T-1"
    dataset.AnatomicRegionSequence = [item]
    pixels = np.random.default_rng(number).integers(0, 4096, size, np.uint16)
    clinic.with_pixels(dataset, pixels, bits_stored=12)
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    return clinic.file_of(dataset)


def letter():
    dataset = clinic.dataset(EncapsulatedPDFStorage, STUDY, f"{STUDY}.2", f"{STUDY}.2.1")
    dataset.PatientID, dataset.EncapsulatedDocument = f"P {STUDY}", b"%PDF-1.4 "
    return clinic.file_of(dataset)


def files():
    """By SOP Instance UID."""
    return {
        f"{STUDY}.1.1": made(STUDY, 1),
        f"{STUDY}.1.2": made(STUDY, 2, RLELossless),
        f"{STUDY}.2.1": letter(),
        f"{OTHER}.1.1": made(OTHER, 1, sop_class=MRImageStorage),
        **{f"{MANY}.1.{number}": made(MANY, number) for number in range(1, NUMBER + 1)},
    }
