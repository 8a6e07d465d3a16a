"""The studies that web viewers open: slices in each transfer syntax, a segmentation, a report, contours, a
PDF, a slide, colours, and an image that HTJ2K cannot shrink."""

import io

import clinic as world
import highdicom
import numpy as np
import pydicom
from PIL import Image, ImageCms
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import RTStructureSetStorage

SIDE, BLOCK = 64, 16
STUDY = f"{world.ROOT}.80"
CT, SEG, SR = (f"{STUDY}.{number}" for number in (1, 2, 3))
DOCUMENT, VOLUME, LARGE = (f"{world.ROOT}.{number}" for number in (81, 83, 84))
LARGE_SIDE = 256
SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.5",
)
COLOUR_SYNTAXES = world.ExplicitVRLittleEndian, world.JPEGBaseline8Bit
PART10 = 'multipart/related; type="application/dicom"'
RED = (250, 20, 30)


def hounsfield(number):
    """16 blocks of different values, in the window of 40 +- 200."""
    rows, columns = np.mgrid[:SIDE, :SIDE] // BLOCK
    return (columns * 4 + rows) * 20 + number * 3 - 140


def windowed(number):
    """The grey values that a viewer paints in the middle of the blocks."""
    return np.clip((hounsfield(number)[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK] + 160) / 400, 0, 1) * 255


def slice_of(number, study=STUDY):
    made = world.ct(1)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = study, f"{study}.1", study[-2:]
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
    made.InstanceNumber = str(number)
    made.ImagePositionPatient = [0.0, 0.0, float(number)]
    return world.with_pixels(made, (hounsfield(number) + 1024).astype(np.uint16), bits_stored=12)


def noise():
    """Hounsfield units that HTJ2K cannot shrink to 32 kB."""
    return np.random.default_rng(1).integers(-1024, 1024, (LARGE_SIDE, LARGE_SIDE))


def large():
    made = slice_of(1, LARGE)
    return world.with_pixels(made, (noise() + 1024).astype(np.uint16), bits_stored=12)


def segmentation(sources):
    mask = np.zeros((len(sources), SIDE, SIDE), np.uint8)
    mask[:, BLOCK : 3 * BLOCK, BLOCK : 2 * BLOCK] = 1
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="lung",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Lung,
        algorithm_type="MANUAL",
    )
    made = highdicom.seg.Segmentation(
        *(sources, mask, "BINARY", [segment], SEG, 2, f"{SEG}.1", 1, "maker", "model", "1", "1"),
    )
    made.SeriesDescription = "organs"
    return made


def report(sources):
    person = highdicom.sr.PersonObserverIdentifyingAttributes("Ref^Anna")
    region = highdicom.sr.ImageRegion(
        highdicom.sr.GraphicTypeValues.POLYLINE,
        np.array([[10.0, 10.0], [40.0, 10.0]]),
        highdicom.sr.SourceImageForRegion(sources[0].SOPClassUID, sources[0].SOPInstanceUID),
    )
    group = highdicom.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        highdicom.sr.TrackingIdentifier(f"{SR}.9", "Cornerstone3DTools@^0.1.0:Length"),
        referenced_region=region,
        measurements=[highdicom.sr.Measurement(codes.SCT.Length, 15.0, codes.UCUM.Millimeter)],
        finding_type=codes.SCT.Organ,
    )
    content = highdicom.sr.MeasurementReport(
        highdicom.sr.ObservationContext(highdicom.sr.ObserverContext(codes.DCM.Person, person)),
        codes.LN.CTUnspecifiedBodyRegion,
        [group],
    )
    return highdicom.sr.Comprehensive3DSR(sources, content[0], SR, 3, f"{SR}.1", 1, "maker")


def reference(instance):
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    return made


def contours(sources):
    """A square of 15 mm in each slice."""
    made = world.dataset(RTStructureSetStorage, STUDY, f"{STUDY}.4", f"{STUDY}.4.1")
    made.Modality, made.SeriesNumber, made.PatientID = "RTSTRUCT", "4", sources[0].PatientID
    made.StructureSetLabel, made.StructureSetDate, made.StructureSetTime = "plan", "20240115", "101500"
    space = Dataset()
    space.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    study, series, region, drawn = Dataset(), Dataset(), Dataset(), Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", STUDY
    series.SeriesInstanceUID, series.ContourImageSequence = CT, [reference(each) for each in sources]
    study.RTReferencedSeriesSequence, space.RTReferencedStudySequence = [series], [study]
    made.ReferencedFrameOfReferenceSequence = [space]
    region.ROINumber, region.ROIName, region.ROIGenerationAlgorithm = 1, "lung", "MANUAL"
    region.ReferencedFrameOfReferenceUID = space.FrameOfReferenceUID
    drawn.ROIDisplayColor, drawn.ReferencedROINumber, drawn.ContourSequence = [255, 0, 0], 1, []
    for each in sources:
        contour, z = Dataset(), float(each.ImagePositionPatient[2])
        contour.ContourImageSequence, contour.ContourGeometricType = [reference(each)], "CLOSED_PLANAR"
        contour.NumberOfContourPoints = 4
        contour.ContourData = [5, 5, z, 20, 5, z, 20, 20, z, 5, 20, z]
        drawn.ContourSequence.append(contour)
    made.StructureSetROISequence, made.ROIContourSequence = [region], [drawn]
    made.RTROIObservationsSequence = []
    return made


def quarters():
    """Four colours."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    half = SIDE // 2
    for number, each in enumerate(((200, 30, 40), (20, 180, 60), (10, 60, 220), (240, 240, 20))):
        row, column = divmod(number, 2)
        pixels[row * half :, column * half :] = each
    return pixels


def colours(number, syntax):
    """The picture of `quarters`, uncompressed or as JPEG, in a study of its own."""
    study = f"{world.ROOT}.85.{number}"
    made = world.dataset(world.SecondaryCaptureImageStorage, study, f"{study}.1", f"{study}.1.1", syntax)
    made.Modality, made.InstanceNumber, made.ConversionType, made.PatientID = "OT", "1", "WSD", "P-85"
    world.with_pixels(made, quarters(), bits_stored=8, photometric="RGB")
    if syntax == world.JPEGBaseline8Bit:
        stream = io.BytesIO()
        Image.fromarray(quarters()).save(stream, "JPEG", quality=95, subsampling=0)
        made.PhotometricInterpretation = "YBR_FULL"
        made.PixelData = world.encapsulate([stream.getvalue() + b"\0" * (stream.tell() % 2)])
        made["PixelData"].VR = "OB"
    return made


def document():
    stream = io.BytesIO()
    Image.new("RGB", (400, 400), RED).save(stream, "PDF")
    made = world.letter()
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = DOCUMENT, f"{DOCUMENT}.1", "P-81"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{DOCUMENT}.1.1"
    made.EncapsulatedDocument = stream.getvalue() + b"\0" * (stream.tell() % 2)
    made.EncapsulatedDocumentLength = stream.tell()
    return made


def slides():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for made in world.everything()[3:5]:
        made.OpticalPathSequence[0].ICCProfile = profile
        yield made


def middle_of_slide():
    """The colours around the middle, where four tiles meet. The slide is upside down on its glass."""
    tiles = [
        np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).astype(int) for each in world.tiles(1, 4)
    ]
    return np.array([tiles[3][9, 9], tiles[2][9, 54], tiles[1][54, 9], tiles[0][54, 54]])


def in_syntax(url, number, syntax):
    """The file of a slice in another transfer syntax."""
    wanted = f"{PART10}; transfer-syntax={syntax}"
    path = f"/studies/{STUDY}/series/{CT}/instances/{CT}.{number}"
    return world.ask(url + path, Accept=wanted).parts()[0][1]


def fill(server):
    """Slice N of the series is in the transfer syntax N of SYNTAXES."""
    made = [slice_of(number) for number in range(1, len(SYNTAXES) + 1)]
    world.store(f"{server.url}/studies", map(world.file_of, made))
    coded = [in_syntax(server.url, number, syntax) for number, syntax in enumerate(SYNTAXES, 1)]
    assert world.ask(f"{server.url}/studies/{STUDY}", "DELETE").status == 204
    sources = [pydicom.dcmread(io.BytesIO(world.file_of(each))) for each in made]
    more = [segmentation(sources), report(sources), contours(sources), document(), *slides()]
    more += [colours(number, syntax) for number, syntax in enumerate(COLOUR_SYNTAXES)]
    more += [slice_of(number, VOLUME) for number in (1, 2, 3, 4)]
    more.append(large())
    world.store(f"{server.url}/studies", [*coded, *map(world.file_of, more)])
