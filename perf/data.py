"""Bodies of store transactions, made of DICOM instances.

Strategy: pydicom writes one instance with placeholders of fixed width; every further one is the same bytes
with its own UIDs, numbers and a few bytes of its own pixels. A body is a generator, so that ten gigabytes can
be sent which no disk holds; its length is known beforehand. Deterministic.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID

ROOT_UID = "1.2.826.0.1.3680043.8.498.77"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
BOUNDARY = "perf-5d41402abc4b2a76b9719d911017c592"
PART_HEAD = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
CLOSING = f"\r\n--{BOUNDARY}--\r\n".encode()
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'

FIRST = 10_000_000  # components of a UID have one width and no leading zero
CT_PIXELS = 512 * 512 * 2
CHUNK = 4 << 20
_STUDY, _SERIES, _INSTANCE = (f"{ROOT_UID}.{kind}.99999999.99999999" for kind in (1, 2, 3))
_NUMBER = "00000000"


class Keys(NamedTuple):
    """UIDs of one instance."""

    study: str
    series: str
    instance: str

    @property
    def path(self) -> str:
        return f"/studies/{self.study}/series/{self.series}/instances/{self.instance}"


class Body(NamedTuple):
    """A request body of known length; `chunks` makes its bytes, as often as it is called."""

    length: int
    chunks: Callable[[], Iterator[bytes | memoryview]]
    keys: list[Keys]

    def write(self, path: Path) -> Path:
        """Synced, so that it is not on its way to the disk while that is measured."""
        with path.open("wb") as stream:
            for chunk in self.chunks():
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        return path


def keys_of(study: int, number: int) -> Keys:
    return Keys(
        f"{ROOT_UID}.1.{FIRST + study}.{FIRST}",
        f"{ROOT_UID}.2.{FIRST + study}.{FIRST}",
        f"{ROOT_UID}.3.{FIRST + study}.{FIRST + number}",
    )


def ct_study(study: int, instances: int, pixels: int = CT_PIXELS) -> Body:
    """One series of CT slices; 512 x 512 gives 526 kB an instance."""
    head = head_of(ct_dataset(pixels), EXPLICIT_VR_LITTLE_ENDIAN)
    picture = noise(pixels)
    length = instances * (len(PART_HEAD) + len(head) + 12 + pixels) + len(CLOSING)

    def chunks() -> Iterator[bytes | memoryview]:
        for number in range(instances):
            own = number.to_bytes(8, "little")
            pixel_head = b"\xe0\x7f\x10\x00OW\0\0" + pixels.to_bytes(4, "little")
            yield b"".join((PART_HEAD, numbered(head, study, number), pixel_head, own, picture[8:]))
        yield CLOSING

    return Body(length, chunks, [keys_of(study, number) for number in range(instances)])


def multi_frame(study: int, frames: int, frame_size: int, number: int = 0) -> Body:
    """One instance with encapsulated frames, one fragment each, under an empty basic offset table: a slide,
    or a loop of any length. The frames only look like JPEG."""
    dataset = ct_dataset(CT_PIXELS)
    dataset.NumberOfFrames = frames
    head = numbered(head_of(dataset, JPEG_BASELINE), study, number)
    item = bytearray(b"\xfe\xff\x00\xe0" + frame_size.to_bytes(4, "little") + noise(frame_size))
    item[8:12], item[-2:] = b"\xff\xd8\xff\xe0", b"\xff\xd9"
    opening = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    length = len(PART_HEAD) + len(head) + len(opening) + frames * len(item) + len(end) + len(CLOSING)

    def chunks() -> Iterator[bytes | memoryview]:
        yield b"".join((PART_HEAD, head, opening))
        batch = max(1, CHUNK // len(item))
        many = bytearray(bytes(item) * batch)
        for first in range(0, frames, batch):
            count = min(batch, frames - first)
            for position in range(count):
                start = position * len(item) + 20
                many[start : start + 8] = (first + position).to_bytes(8, "big")
            yield bytes(many[: count * len(item)])
        yield end + CLOSING

    return Body(length, chunks, [keys_of(study, number)])


def pyramid(study: int, tiles: int, tile_size: int) -> Body:
    """A whole slide: one series of an instance a level, each a quarter of the tiles of the one before."""
    levels: list[Body] = []
    left = tiles
    while left:
        count = max(1, left * 3 // 4)
        levels.append(multi_frame(study, count, tile_size, number=len(levels)))
        left -= count
    return joined(levels)


def joined(bodies: list[Body]) -> Body:
    """One body of all their instances."""
    length = sum(body.length - len(CLOSING) for body in bodies) + len(CLOSING)

    def chunks() -> Iterator[bytes | memoryview]:
        for body in bodies:
            for chunk in body.chunks():
                yield bytes(chunk).removesuffix(CLOSING)
        yield CLOSING

    return Body(length, chunks, [key for body in bodies for key in body.keys])


def noise(size: int) -> bytes:
    """A slope with noise on it in 16 bits, like soft tissue: it compresses as badly as such pictures do."""
    random = np.random.default_rng(1)
    count = size // 2 + 1
    slope = 1000 + 200 * np.sin(np.arange(count) / 300)
    return (slope + random.normal(0, 20, count)).astype("<u2").tobytes()[:size]


def numbered(head: bytes, study: int, number: int) -> bytes:
    keys = keys_of(study, number)
    for placeholder, uid in zip((_STUDY, _SERIES, _INSTANCE), keys, strict=True):
        head = head.replace(placeholder.encode(), uid.encode())
    return head.replace(
        b"\x20\x00\x13\x00IS\x08\x00" + _NUMBER.encode(), b"\x20\x00\x13\x00IS\x08\x00%08d" % number
    )


def head_of(dataset: Dataset, transfer_syntax: str) -> bytes:
    """The Part 10 file up to Pixel Data."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT_STORAGE)
    meta.MediaStorageSOPInstanceUID = UID(_INSTANCE)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(f"{ROOT_UID}.9")
    dataset.file_meta = meta
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _code(value: str, scheme: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def ct_dataset(pixels: int) -> Dataset:
    """Eighty attributes and some sequences, as scanners write them."""
    dataset = Dataset()
    for keyword, value in _CT_ATTRIBUTES.items():
        setattr(dataset, keyword, value)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = _STUDY, _SERIES, _INSTANCE
    dataset.InstanceNumber = _NUMBER
    dataset.Columns = min(512, max(1, pixels // 2))
    dataset.Rows = max(1, pixels // 2 // dataset.Columns)
    dataset.ProcedureCodeSequence = _code("24627-2", "LN", "Chest CT")
    dataset.AnatomicRegionSequence = _code("51185008", "SCT", "Chest")
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP7391", "SPS7391"
    request.RequestedProcedureCodeSequence = _code("24627-2", "LN", "Chest CT")
    dataset.RequestAttributesSequence = Sequence([request])
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = CT_STORAGE, f"{ROOT_UID}.4.1"
    image.PurposeOfReferenceCodeSequence = _code("121311", "DCM", "Localizer")
    dataset.ReferencedImageSequence = Sequence([image, image])
    return dataset


_CT_ATTRIBUTES = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
    "SOPClassUID": CT_STORAGE,
    "StudyDate": "20240131",
    "SeriesDate": "20240131",
    "AcquisitionDate": "20240131",
    "ContentDate": "20240131",
    "StudyTime": "101500.123",
    "SeriesTime": "101730.456",
    "AcquisitionTime": "101745.5",
    "ContentTime": "101745.75",
    "AccessionNumber": "A20240131001",
    "Modality": "CT",
    "Manufacturer": "Scanner Works",
    "InstitutionName": "General Hospital",
    "InstitutionAddress": "1 Hospital Road, Anytown",
    "ReferringPhysicianName": "Referrer^Rita",
    "StationName": "CT01",
    "StudyDescription": "CT chest with contrast",
    "SeriesDescription": "Thorax 1.0 B70f",
    "InstitutionalDepartmentName": "Radiology",
    "PerformingPhysicianName": "Performer^Paul",
    "OperatorsName": "Operator^Olga",
    "ManufacturerModelName": "Works 64",
    "PatientName": "Doe^Jane^Q",
    "PatientID": "P0012345",
    "PatientBirthDate": "19600229",
    "PatientSex": "F",
    "PatientAge": "063Y",
    "PatientSize": "1.68",
    "PatientWeight": "71.5",
    "ContrastBolusAgent": "Iodine",
    "BodyPartExamined": "CHEST",
    "ScanOptions": "HELICAL",
    "SliceThickness": "1.0",
    "KVP": "120",
    "DataCollectionDiameter": "500",
    "DeviceSerialNumber": "123456",
    "SoftwareVersions": "VA48A",
    "ProtocolName": "ThoraxRoutine",
    "ReconstructionDiameter": "343",
    "DistanceSourceToDetector": "1040",
    "DistanceSourceToPatient": "570",
    "GantryDetectorTilt": "0",
    "TableHeight": "155",
    "RotationDirection": "CW",
    "ExposureTime": "500",
    "XRayTubeCurrent": "220",
    "Exposure": "110",
    "FilterType": "0",
    "GeneratorPower": "26",
    "FocalSpots": "1.2",
    "DateOfLastCalibration": "20240131",
    "TimeOfLastCalibration": "063100",
    "ConvolutionKernel": "B70f",
    "PatientPosition": "FFS",
    "StudyID": "7391",
    "SeriesNumber": "4",
    "AcquisitionNumber": "4",
    "ImagePositionPatient": ["-171.5", "-171.5", "-1250.5"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    "FrameOfReferenceUID": f"{ROOT_UID}.5.1",
    "PositionReferenceIndicator": "",
    "SliceLocation": "-1250.5",
    "ImageComments": "Study done after a phone call",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": ["0.669921875", "0.669921875"],
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "SmallestImagePixelValue": 0,
    "LargestImagePixelValue": 4095,
    "WindowCenter": ["40", "-600"],
    "WindowWidth": ["400", "1200"],
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
    "WindowCenterWidthExplanation": ["WINDOW1", "WINDOW2"],
    "RequestingPhysician": "Requester^Ron",
    "RequestedProcedureDescription": "CT chest",
    "PerformedProcedureStepStartDate": "20240131",
    "PerformedProcedureStepStartTime": "101500",
    "PerformedProcedureStepID": "PPS7391",
}
