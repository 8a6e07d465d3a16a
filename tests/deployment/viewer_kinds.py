"""One study for each of 14 kinds of images, with the values that a viewer decodes and the colours that it
paints.

A picture is 4 x 4 blocks of one value each, so that codecs with loss and interpolation leave their middles.
"""

import io
from typing import NamedTuple

import clinic as world
import numpy as np
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import uid as classes
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

SIDE, BLOCK = 64, 16
PLACES = np.s_[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
FRAMES = 3


class Kind(NamedTuple):
    """`values` of each frame as they are decoded: after the rescale of the modality, or colours. `grey` of
    each frame as they are painted, 0 to 255, or None for colours. `near` is the error of the codec."""

    file: bytes
    study: str
    values: list[np.ndarray]
    grey: list[np.ndarray] | None
    near: float = 0


def steps(frame, step, first=0):
    """16 values, in another order for each frame."""
    rows, columns = np.mgrid[:SIDE, :SIDE] // BLOCK
    return (columns * 4 + rows + 5 * frame) % 16 * step + first


def coloured(frame):
    """16 colours, none of them strong."""
    one = steps(frame, 10, 40)
    return np.stack([one, 255 - one, steps(frame + 1, 8, 60)], axis=-1).astype(np.uint8)


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue() + b"\0" * (stream.tell() % 2)


def windowed(values, centre, width):
    return np.clip((values - (centre - width / 2)) / width, 0, 1) * 255


def base(number, modality, sop_class, syntax=classes.ExplicitVRLittleEndian):
    study = f"{world.ROOT}.90.{number}"
    made = world.dataset(sop_class, study, f"{study}.1", f"{study}.1.1", syntax)
    made.Modality, made.InstanceNumber, made.PatientID = modality, "1", f"P-90-{number}"
    made.StudyDescription = f"a study of {modality}"
    made.ImageType = ["ORIGINAL", "PRIMARY"]
    return made


def placed(made):
    """In space, as slices are."""
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = f"{made.StudyInstanceUID}.9", ""
    made.ImagePositionPatient, made.ImageOrientationPatient = [0.0, 0.0, 0.0], [1.0, 0, 0, 0, 1.0, 0]
    made.PixelSpacing, made.SliceThickness = [0.5, 0.5], "1"
    return made


def stored(made, pixels, bits, photometric="MONOCHROME2"):
    """Pixels of one or more frames, uncompressed; `pixels` ends with the samples if there are colours."""
    colours = photometric in ("RGB", "YBR_FULL", "YBR_RCT")
    frames = pixels if pixels.ndim == 3 + colours else pixels[np.newaxis]
    made.Rows, made.Columns, made.SamplesPerPixel = SIDE, SIDE, 3 if colours else 1
    made.BitsAllocated, made.BitsStored, made.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    made.PixelRepresentation, made.PhotometricInterpretation = int(pixels.dtype.kind == "i"), photometric
    if colours:
        made.PlanarConfiguration = 0
    if len(frames) > 1:
        made.NumberOfFrames = str(len(frames))
    made.PixelData = frames.tobytes()
    return made


def encapsulated(made, frames):
    made.PixelData = world.encapsulate(frames)
    made["PixelData"].VR = "OB"
    return made


def grey(made, pixels, bits, *, photometric="MONOCHROME2", slope=1.0, intercept=0.0, window=None):
    """A kind without colours. The window is in values after the rescale."""
    stored(made, pixels, bits, photometric)
    if (slope, intercept) != (1.0, 0.0):
        made.RescaleSlope, made.RescaleIntercept = str(slope), str(intercept)
    frames = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    values = [each * slope + intercept for each in frames]
    centre, width = window
    made.WindowCenter, made.WindowWidth = str(centre), str(width)
    shown = [windowed(each, centre, width) for each in values]
    if photometric == "MONOCHROME1":
        shown = [255 - each for each in shown]
    return Kind(world.file_of(made), made.StudyInstanceUID, values, shown)


def colours(made, near=0):
    count = int(made.get("NumberOfFrames", 1))
    values = [coloured(frame).astype(int) for frame in range(count)]
    return Kind(world.file_of(made), made.StudyInstanceUID, values, None, near)


def cine(step, dtype, first=0):
    return np.stack([steps(frame, step, first) for frame in range(FRAMES)]).astype(dtype)


# The kinds


def signed_mr():
    made = placed(base(1, "MR", classes.MRImageStorage))
    return grey(made, steps(0, 60, -300).astype(np.int16), 12, window=(150, 1000))


def functional_groups(number, window):
    """The sequences of an enhanced multi-frame image."""
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], "1"
    orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    voi, rescale = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = map(str, window)
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "2", "-100", "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.FrameVOILUTSequence, shared.PixelValueTransformationSequence = [voi], [rescale]
    frames = []
    for frame in range(FRAMES):
        item, content, position = Dataset(), Dataset(), Dataset()
        content.DimensionIndexValues, content.StackID, content.InStackPositionNumber = [1], "1", frame + 1
        position.ImagePositionPatient = [0.0, 0.0, float(frame)]
        item.FrameContentSequence, item.PlanePositionSequence = [content], [position]
        frames.append(item)
    return Sequence([shared]), Sequence(frames)


def enhanced_mr():
    made = base(2, "MR", classes.EnhancedMRImageStorage)
    made.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    made.FrameOfReferenceUID, window = f"{made.StudyInstanceUID}.9", (500, 1500)
    groups = functional_groups(FRAMES, window)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = groups
    pixels = cine(40, np.uint16)
    stored(made, pixels, 12)
    values = [each * 2.0 - 100 for each in pixels]
    shown = [windowed(each, *window) for each in values]
    return Kind(world.file_of(made), made.StudyInstanceUID, values, shown)


def ultrasound():
    """A loop in colours, JPEG."""
    made = base(3, "US", classes.UltrasoundMultiFrameImageStorage, classes.JPEGBaseline8Bit)
    pixels = np.stack([coloured(frame) for frame in range(FRAMES)])
    stored(made, pixels, 8, "RGB")
    made.PhotometricInterpretation, made.FrameTime = "YBR_FULL_422", "40"
    return colours(encapsulated(made, [jpeg(each) for each in pixels]), near=4)


def angiography():
    made = base(4, "XA", classes.XRayAngiographicImageStorage)
    made.FrameTime = "66"
    return grey(made, cine(15, np.uint8, 10), 8, window=(128, 256))


def inverted_radiograph():
    made = base(5, "DX", classes.DigitalXRayImageStorageForPresentation)
    made.ImagerPixelSpacing = [0.2, 0.2]
    return grey(
        made, steps(0, 900, 100).astype(np.uint16), 14, photometric="MONOCHROME1", window=(7000, 14000)
    )


def mammogram():
    made = base(6, "MG", classes.DigitalMammographyXRayImageStorageForPresentation)
    made.ImageLaterality, made.ViewPosition = "L", "CC"
    made.ImagerPixelSpacing = [0.1, 0.1]
    return grey(made, steps(1, 250).astype(np.uint16), 12, window=(2000, 4000))


def computed_radiograph():
    made = base(7, "CR", classes.ComputedRadiographyImageStorage)
    return grey(made, steps(2, 60).astype(np.uint16), 10, window=(500, 1000))


def positrons():
    """A slope that is no integer. Without weight and dose the viewer does not change the values."""
    made = placed(base(8, "PT", classes.PositronEmissionTomographyImageStorage))
    made.Units, made.DecayCorrection, made.CorrectedImage = "BQML", "START", ["ATTN", "DECY"]
    made.SeriesType = ["STATIC", "IMAGE"]
    return grey(made, steps(0, 200).astype(np.uint16), 16, slope=0.5, window=(750, 1500))


def scintigram():
    made = base(9, "NM", classes.NuclearMedicineImageStorage)
    made.NumberOfDetectors, made.DetectorVector = 1, [1] * FRAMES
    made.FrameIncrementPointer = 0x00540020
    return grey(made, cine(100, np.uint16), 16, window=(800, 1600))


def palette():
    made = base(10, "US", classes.UltrasoundImageStorage)
    stored(made, steps(0, 1).astype(np.uint8), 8)
    made.PhotometricInterpretation = "PALETTE COLOR"
    tables = coloured(0)[PLACES].reshape(16, 3)
    order = steps(0, 1)[PLACES].ravel()
    for number, name in enumerate(("Red", "Green", "Blue")):
        made.add_new(0x00281101 + number, "US", [16, 0, 16])
        table = np.zeros(16, np.uint16)
        table[order] = tables[:, number].astype(np.uint16) * 257
        setattr(made, f"{name}PaletteColorLookupTableData", table.tobytes())
    return colours(made)


def photograph():
    """JPEG 2000 with its own transformation of colours."""
    made = base(11, "OP", classes.OphthalmicPhotography8BitImageStorage, classes.JPEG2000Lossless)
    stored(made, coloured(0), 8, "YBR_RCT")
    return colours(encapsulated(made, [encode_array(coloured(0), photometric_interpretation=1)]))


def endoscopy():
    """Colours without compression, plane by plane."""
    made = base(12, "ES", classes.VLEndoscopicImageStorage)
    stored(made, coloured(0), 8, "RGB")
    made.PlanarConfiguration, made.PixelData = 1, coloured(0).transpose(2, 0, 1).tobytes()
    return colours(made)


def dose():
    """Doses in cGy. Cornerstone3D rounds scaled doses to integers."""
    made = placed(base(13, "RTDOSE", classes.RTDoseStorage))
    made.DoseUnits, made.DoseType, made.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    made.DoseGridScaling, made.GridFrameOffsetVector = "2", [0.0, 1.0, 2.0]
    made.FrameIncrementPointer = 0x3004000C
    pixels, window = cine(1000, np.uint16), (16000, 32000)
    stored(made, pixels, 16)
    made.WindowCenter, made.WindowWidth = map(str, window)
    values = [each * 2.0 for each in pixels]
    return Kind(
        world.file_of(made), made.StudyInstanceUID, values, [windowed(each, *window) for each in values]
    )


def secondary_capture():
    made = base(14, "OT", classes.MultiFrameTrueColorSecondaryCaptureImageStorage)
    made.ConversionType, made.FrameTime = "WSD", "40"
    return colours(stored(made, np.stack([coloured(frame) for frame in range(FRAMES)]), 8, "RGB"))


KINDS = (
    signed_mr,
    enhanced_mr,
    ultrasound,
    angiography,
    inverted_radiograph,
    mammogram,
    computed_radiograph,
    positrons,
    scintigram,
    palette,
    photograph,
    endoscopy,
    dose,
    secondary_capture,
)

# A video. Chromium records its own canvas as H.264 in MP4.

CORNERS = ((200, 30, 40), (20, 180, 60), (10, 60, 220), (240, 240, 20))
WIDTH, HEIGHT, PICTURES = 320, 240, 15
RECORDED = f"""(async () => {{
  const canvas = Object.assign(document.createElement("canvas"), {{width: {WIDTH}, height: {HEIGHT}}});
  const pen = canvas.getContext("2d"), pieces = [];
  const recorder = new MediaRecorder(canvas.captureStream(25), {{mimeType: "video/mp4;codecs=avc1.640028"}});
  recorder.ondataavailable = event => pieces.push(event.data);
  const ended = new Promise((resolve, reject) => {{
    recorder.onstop = resolve;
    recorder.onerror = event => reject(event.error);
  }});
  recorder.start();
  for (let picture = 0; picture < {PICTURES}; picture += 1) {{
    {[list(each) for each in CORNERS]}.forEach((colour, corner) => {{
      pen.fillStyle = `rgb(${{colour}})`;
      pen.fillRect(corner % 2 * {WIDTH // 2}, (corner >> 1) * {HEIGHT // 2}, {WIDTH // 2}, {HEIGHT // 2});
    }});
    await new Promise(resolve => setTimeout(resolve, 40));
  }}
  recorder.stop();
  await ended;
  const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
  return btoa(String.fromCharCode(...bytes));
}})()"""


def video(stream):
    """Study and file of a photographed video."""
    made = base(20, "XC", classes.VideoPhotographicImageStorage, classes.MPEG4HP41)
    made.Rows, made.Columns, made.SamplesPerPixel, made.PlanarConfiguration = HEIGHT, WIDTH, 3, 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PhotometricInterpretation, made.NumberOfFrames = "YBR_PARTIAL_420", str(PICTURES)
    made.CineRate, made.FrameTime, made.FrameIncrementPointer = "25", "40", 0x00181063
    return made.StudyInstanceUID, world.file_of(encapsulated(made, [stream + b"\0" * (len(stream) % 2)]))
