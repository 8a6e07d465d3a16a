"""The verb `streamsrv samples DIR`: it writes three SOP instances to try a server with.

Each sample is a row of a table (names, UIDs, colour, shape). The three belong to one study; the triangle and
the square are in one series. They are secondary captures of 979 x 985 pixels of three bytes. That is an odd
number of bytes, so Pixel Data ends with a padding byte that belongs to no frame (PS3.5 8.1.1).

The files have the same bytes every time: nothing depends on the date, the host or a random number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

from streamsrv.dicom.explicit import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

ROWS = 979
COLUMNS = 985
BACKGROUND = (195, 195, 195)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STUDY_UID = "1.2.826.0.1.3680043.8.498.13230779778012324449356534479549187420"

Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.int64]


def triangle(y: Grid, x: Grid) -> Mask:
    below_tip = y - 237
    return (below_tip >= 0) & (y <= 717) & (np.abs(x - 478) * 480 <= below_tip * 310)


def square(y: Grid, x: Grid) -> Mask:
    return (np.abs(y - 488) <= 248) & (np.abs(x - 492) <= 256)


def circle(y: Grid, x: Grid) -> Mask:
    return (y - 510) ** 2 + (x - 491) ** 2 <= 286**2


@dataclass(frozen=True, slots=True)
class Sample:
    """The attributes of one file that differ from the other two."""

    file_name: str
    series_uid: str
    instance_uid: str
    series_number: int
    instance_number: int
    title: str
    colour: tuple[int, int, int]
    shape: Callable[[Grid, Grid], Mask]


_FIRST_SERIES = "1.2.826.0.1.3680043.8.498.45787841905473114233124723359129632652"
_SECOND_SERIES = "1.2.826.0.1.3680043.8.498.77033797676425927098669402985243398207"
_TRIANGLE = "1.2.826.0.1.3680043.8.498.47359123102728459884412887463296905395"
_SQUARE = "1.2.826.0.1.3680043.8.498.12714725698140337137334606354172323212"
_CIRCLE = "1.2.826.0.1.3680043.8.498.13273713909719068980354078852867170114"

SAMPLES = (
    Sample("red-triangle.dcm", _FIRST_SERIES, _TRIANGLE, 1, 1, "Red Triangle", (237, 28, 36), triangle),
    Sample("green-square.dcm", _FIRST_SERIES, _SQUARE, 1, 2, "Green Square", (34, 177, 76), square),
    Sample("blue-circle.dcm", _SECOND_SERIES, _CIRCLE, 2, 1, "Blue Circle", (63, 72, 204), circle),
)

# Type 2 attributes without a known value: present and empty.
_UNKNOWN = (
    *("ContentDate", "AcquisitionDateTime", "ContentTime", "AccessionNumber", "PatientBirthDate"),
    *("PatientPosition", "PatientOrientation", "Laterality"),
)

_SHARED = {
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
    "SOPClassUID": SECONDARY_CAPTURE,
    "StudyDate": "20200922",
    "StudyTime": "120000",
    "Modality": "OT",
    "ConversionType": "SYN",
    "ReferringPhysicianName": "Doctor Doc",
    "PatientName": "Anony Mous",
    "PatientID": "ID1",
    "PatientSex": "F",
    "PatientAge": "024Y",
    "StudyInstanceUID": STUDY_UID,
    "StudyID": "1",
    "SamplesPerPixel": 3,
    "PhotometricInterpretation": "RGB",
    "PlanarConfiguration": 0,
    "Rows": ROWS,
    "Columns": COLUMNS,
    "PixelSpacing": ["1.0", "1.0"],
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "PixelRepresentation": 0,
    "SmallestImagePixelValue": 0,
    "LargestImagePixelValue": 255,
}


def pixels(sample: Sample) -> bytes:
    """Returns the frame: ROWS x COLUMNS x 3 bytes, without padding."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    picture = np.empty((ROWS, COLUMNS, 3), dtype=np.uint8)
    picture[:] = BACKGROUND
    picture[sample.shape(y, x)] = sample.colour
    return picture.tobytes()


def dataset(sample: Sample) -> Dataset:
    """Returns the SOP instance with its file meta information."""
    instance = Dataset()
    for keyword in _UNKNOWN:
        setattr(instance, keyword, "")
    for keyword, value in _SHARED.items():
        setattr(instance, keyword, value)
    instance.SOPInstanceUID = sample.instance_uid
    instance.SeriesInstanceUID = sample.series_uid
    instance.SeriesNumber = sample.series_number
    instance.InstanceNumber = sample.instance_number
    instance.ImageComments = f"Fake DICOM - {sample.title}"
    frame = pixels(sample)
    instance.add_new("PixelData", "OB", frame + b"\0" * (len(frame) % 2))
    instance.file_meta = _file_meta(sample)
    return instance


def _file_meta(sample: Sample) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(SECONDARY_CAPTURE)
    meta.MediaStorageSOPInstanceUID = UID(sample.instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def write_samples(folder: Path) -> list[Path]:
    """Writes the three files to the folder, which it creates, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for sample in SAMPLES:
        path = folder / sample.file_name
        dcmwrite(path, dataset(sample), enforce_file_format=True)
        paths.append(path)
    return paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the folder for the three files; it is created"
    )


def run(args: argparse.Namespace) -> int:
    for path in write_samples(args.folder):
        print(path)
    return 0


VERBS = {"samples": (add_arguments, run)}
