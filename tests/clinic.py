"""A clinic for clients that nobody here wrote: studies as scanners make them, and plain HTTP.

CT       3 instances of 64 x 48, 12 bits in 16, uncompressed
slide    one level of a whole slide of 4 JPEG tiles in 2 x 2, and its overview; with an ICC profile
colours  a palette whose tables are bulk data
letter   an encapsulated PDF
"""

import datetime
import http.client
import io
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    VLWholeSlideMicroscopyImageStorage,
)

ROOT = "1.2.826.0.1.3680043.8.498.77"
CT_STUDY, SLIDE_STUDY, OTHER_STUDY = (f"{ROOT}.{number}" for number in (1, 2, 3))
CT_SERIES = f"{CT_STUDY}.1"
SLIDE_SERIES = f"{SLIDE_STUDY}.1"
PALETTE_SERIES, LETTER_SERIES = f"{OTHER_STUDY}.1", f"{OTHER_STUDY}.2"
CT_INSTANCES = [f"{CT_SERIES}.{number}" for number in (1, 2, 3)]
SLIDE, OVERVIEW = f"{SLIDE_SERIES}.1", f"{SLIDE_SERIES}.2"
PALETTE, LETTER = f"{PALETTE_SERIES}.1", f"{LETTER_SERIES}.1"
TILE = 64
PDF = b"%PDF-1.4\n" + b"a letter " * 300 + b"%%EOF"
ICC_PROFILE = bytes(range(256)) * 12
TIMEOUT = 30.0


def dataset(sop_class, study, series, uid, syntax=ExplicitVRLittleEndian):
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = uid
    made.SOPClassUID, made.SOPInstanceUID = sop_class, uid
    made.StudyInstanceUID, made.SeriesInstanceUID = study, series
    made.PatientName, made.PatientID = "Doe^Jane", "P-1"
    made.PatientBirthDate, made.PatientSex = "19700101", "F"
    made.StudyDate, made.StudyTime = "20240115", "101500"
    made.AccessionNumber, made.StudyID = "A-1", "1"
    made.StudyDescription, made.ReferringPhysicianName = "Thorax", "Ref^Anna"
    made.SeriesNumber, made.SeriesDescription = "1", "first"
    made.SeriesDate, made.SeriesTime = "20240115", "101501"
    return made


def with_pixels(made, pixels, *, bits_stored, photometric="MONOCHROME2"):
    frames = pixels.shape[0] if pixels.ndim == 4 else 1
    rows, columns, samples = (*pixels.shape[-3:],) if photometric != "MONOCHROME2" else (*pixels.shape, 1)
    made.Rows, made.Columns, made.SamplesPerPixel = rows, columns, samples
    made.BitsAllocated = pixels.dtype.itemsize * 8
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits_stored, bits_stored - 1, 0
    made.PhotometricInterpretation = photometric
    if samples > 1:
        made.PlanarConfiguration = 0
    if frames > 1:
        made.NumberOfFrames = str(frames)
    made.PixelData = pixels.tobytes()
    return made


def ct_pixels(number):
    return np.random.default_rng(number).integers(0, 1 << 12, (48, 64), dtype=np.uint16)


def ct(number):
    made = dataset(CTImageStorage, CT_STUDY, CT_SERIES, CT_INSTANCES[number - 1])
    made.Modality, made.InstanceNumber = "CT", str(number)
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.FrameOfReferenceUID = f"{CT_STUDY}.9"
    made.ImagePositionPatient = [0.0, 0.0, float(number)]
    made.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    made.PixelSpacing, made.SliceThickness = [0.5, 0.5], "1"
    made.RescaleIntercept, made.RescaleSlope = "-1024", "1"
    made.WindowCenter, made.WindowWidth = "40", "400"
    made.PositionReferenceIndicator = ""
    return with_pixels(made, ct_pixels(number), bits_stored=12)


def tiles(seed, count):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(corners).resize((TILE, TILE)).save(stream, "JPEG", quality=90, subsampling=0)
        made.append(stream.getvalue() + b"\0" * (stream.tell() % 2))
    return made


def code(value, scheme, meaning):
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def slide(uid, kind, matrix, frames):
    """`matrix` is columns, rows of the whole picture; `frames` are its JPEG tiles, row by row."""
    made = dataset(VLWholeSlideMicroscopyImageStorage, SLIDE_STUDY, SLIDE_SERIES, uid, JPEGBaseline8Bit)
    made.Modality, made.InstanceNumber = "SM", uid[-1]
    made.StudyDate, made.PatientID, made.PatientName = "20240201", "P-2", "Müller^Jörg"
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = f"{SLIDE_STUDY}.9", "SLIDE_CORNER"
    made.AcquisitionDateTime = made.ContentDate = "20240201"
    made.ContentTime = "101500"
    made.ContainerIdentifier = "slide"
    made.IssuerOfTheContainerIdentifierSequence = []
    made.ContainerTypeCodeSequence = [code("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "s", f"{SLIDE_STUDY}.8"
    specimen.IssuerOfTheSpecimenIdentifierSequence = specimen.SpecimenPreparationSequence = []
    made.SpecimenDescriptionSequence = [specimen]
    made.Manufacturer, made.ManufacturerModelName = "Maker", "Scanner"
    made.DeviceSerialNumber, made.SoftwareVersions = "1", "1"
    made.VolumetricProperties, made.DimensionOrganizationType = "VOLUME", "TILED_FULL"
    made.ImagedVolumeWidth, made.ImagedVolumeHeight, made.ImagedVolumeDepth = 1.28, 1.28, 0.001
    made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows = matrix
    made.TotalPixelMatrixFocalPlanes = made.NumberOfOpticalPaths = 1
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
    made.TotalPixelMatrixOriginSequence = [origin]
    made.ImageOrientationSlide = [0.0, -1.0, 0.0, -1.0, 0.0, 0.0]
    path = Dataset()
    path.OpticalPathIdentifier = "0"
    path.IlluminationTypeCodeSequence = [code("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [code("414298005", "SCT", "Full Spectrum")]
    path.ICCProfile = ICC_PROFILE
    made.OpticalPathSequence = [path]
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.28 / matrix[0], 1.28 / matrix[0]], "0.001"
    frame_type = Dataset()
    frame_type.FrameType = made.ImageType
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [frame_type]
    made.SharedFunctionalGroupsSequence = [shared]
    made.SpecimenLabelInImage, made.BurnedInAnnotation, made.FocusMethod = "NO", "NO", "AUTO"
    made.ExtendedDepthOfField, made.LossyImageCompression = "NO", "01"
    made.LossyImageCompressionRatio, made.LossyImageCompressionMethod = "10", "ISO_10918_1"
    made.Rows = made.Columns = TILE
    made.SamplesPerPixel, made.PlanarConfiguration, made.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.NumberOfFrames = str(len(frames))
    made.PixelData = encapsulate(frames)
    made["PixelData"].VR = "OB"
    return made


def palette():
    made = dataset(SecondaryCaptureImageStorage, OTHER_STUDY, PALETTE_SERIES, PALETTE)
    made.Modality, made.InstanceNumber, made.ConversionType = "OT", "1", "WSD"
    with_pixels(made, np.arange(64, dtype=np.uint8).reshape(8, 8), bits_stored=8)
    made.PhotometricInterpretation = "PALETTE COLOR"
    for number, colour in enumerate(("Red", "Green", "Blue"), 1):
        made.add_new(0x00281100 + number, "US", [1024, 0, 16])
        table = np.arange(1024, dtype=np.uint16) * number
        setattr(made, f"{colour}PaletteColorLookupTableData", table.tobytes())
    return made


def letter():
    made = dataset(EncapsulatedPDFStorage, OTHER_STUDY, LETTER_SERIES, LETTER)
    made.Modality, made.InstanceNumber, made.SeriesNumber = "DOC", "1", "2"
    made.BurnedInAnnotation, made.DocumentTitle, made.MIMETypeOfEncapsulatedDocument = (
        "NO",
        "",
        "application/pdf",
    )
    made.EncapsulatedDocument = PDF + b"\0" * (len(PDF) % 2)
    made.EncapsulatedDocumentLength = len(PDF)
    return made


def file_of(made):
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def everything():
    """All datasets of the clinic."""
    slides = (
        slide(SLIDE, "VOLUME", (2 * TILE, 2 * TILE), tiles(1, 4)),
        slide(OVERVIEW, "OVERVIEW", (TILE, TILE), tiles(2, 1)),
    )
    return [*map(ct, (1, 2, 3)), *slides, palette(), letter()]


def now():
    return datetime.datetime.now(datetime.UTC)


# -- plain HTTP


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def media_type(self):
        return self.headers.get("content-type", "").partition(";")[0]

    def json(self):
        return json.loads(self.body)

    def parts(self):
        """(head, payload) of each part of a multipart body, cut as viewers do: by searching the boundary."""
        boundary = self.headers["content-type"].rpartition("boundary=")[2].strip('"').encode()
        first, *pieces = (b"\r\n" + self.body).split(b"\r\n--" + boundary)
        assert (first, pieces.pop()) == (b"", b"--\r\n")
        return [tuple(piece.lstrip(b"\r\n").split(b"\r\n\r\n", 1)) for piece in pieces]


def ask(url, method="GET", body=None, **headers):
    """One request on a connection of its own; `_` in a header's name is `-`. The path goes out as it is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        named = [(name.lower(), value) for name, value in answer.getheaders()]
        joined = {name: ", ".join(value for each, value in named if each == name) for name, _ in named}
        return Reply(answer.status, joined, answer.read())
    finally:
        connection.close()


def store(url, files, **headers):
    boundary = b"between-the-parts-of-the-clinic"
    parts = [b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % (boundary, each) for each in files]
    body = b"".join([*parts, b"--%b--\r\n" % boundary])
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary.decode()}'
    reply = ask(url, "POST", body, Content_Type=content_type, **headers)
    assert reply.status == 200, reply.body
    return reply
