"""Instances with every kind of pixels, and what is in them, by numpy and pydicom."""

import io
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import SecondaryCaptureImageStorage
from retrieve_world import SERIES, STUDY, part10

LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
DEFLATED_FRAME, RLE = "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.5"
BASELINE, EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LS, NEAR = (f"1.2.840.10008.1.2.4.{last}" for last in (70, 80, 81))
J2K, J2K_LOSSY = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
HTJ2K, RPCL, HTJ2K_LOSSY = (f"1.2.840.10008.1.2.4.{last}" for last in (201, 202, 203))
JXL, JXL_JPEG, JXL_LOSSY = (f"1.2.840.10008.1.2.4.{last}" for last in (110, 111, 112))
MPEG4 = "1.2.840.10008.1.2.4.102"


@dataclass(frozen=True)
class Kind:
    """Pixels as the Image Pixel Module tells them."""

    photometric: str = "MONOCHROME2"
    allocated: int = 16
    stored: int = 12
    signed: int = 0
    planar: int = 0
    rows: int = 40
    columns: int = 34

    @property
    def samples(self):
        return 3 if self.photometric in ("RGB", "YBR_FULL", "YBR_FULL_422") else 1


KINDS = {
    "12 in 16": Kind(),
    "signed 16": Kind(stored=16, signed=1),
    "8 bit": Kind(allocated=8, stored=8),
    "MONOCHROME1": Kind("MONOCHROME1", 16, 10),
    "RGB": Kind("RGB", 8, 8),
    "RGB by plane": Kind("RGB", 8, 8, planar=1),
    "YBR_FULL": Kind("YBR_FULL", 8, 8),
    "palette": Kind("PALETTE COLOR", 8, 8),
    "1 bit": Kind(allocated=1, stored=1, rows=32, columns=32),
    "1 bit, frames begin inside bytes": Kind(allocated=1, stored=1, rows=33, columns=35),
    "32 bit": Kind(allocated=32, stored=32),
}


def arrays_of(kind, frames=3, seed=1):
    """Soft shapes with some noise: (frames, rows, columns[, samples])."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: kind.rows, : kind.columns]
    low = -(1 << (kind.stored - 1)) if kind.signed else 0
    high = low + (1 << kind.stored) - 1
    made = []
    for number in range(frames):
        planes = [
            np.sin((x * (1 + plane) + 9 * number) / 17) * np.cos(y / (11 + plane))
            + random.normal(0, 0.01, x.shape)
            for plane in range(kind.samples)
        ]
        values = np.clip((np.stack(planes, -1) / 2.2 + 0.5) * (high - low) + low, low, high)
        made.append(np.round(values))
    if kind.photometric == "YBR_FULL":  # colours that there are
        made = [pydicom.pixels.convert_color_space(one.astype("u1"), "RGB", "YBR_FULL") for one in made]
    stacked = np.stack(made).astype(f"{'i' if kind.signed else 'u'}{max(kind.allocated // 8, 1)}")
    return stacked if kind.samples > 1 else stacked[..., 0]


def native_bytes(kind, arrays):
    if kind.allocated == 1:
        return np.packbits(arrays.astype(bool).ravel(), bitorder="little").tobytes()
    if kind.planar:
        arrays = np.moveaxis(arrays, -1, 1)
    return arrays.astype(arrays.dtype.newbyteorder("<")).tobytes()


def image(kind, arrays, instance="1.2.3.4.1", **attributes):
    """A dataset with native little endian pixels."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientID, dataset.PatientName, dataset.Modality = "ID1", "Doe^Jane", "OT"
    dataset.Rows, dataset.Columns = kind.rows, kind.columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = kind.samples, kind.photometric
    if kind.samples > 1:
        dataset.PlanarConfiguration = kind.planar
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = kind.allocated, kind.stored, kind.stored - 1
    dataset.PixelRepresentation = kind.signed
    if len(arrays) > 1:
        dataset.NumberOfFrames = len(arrays)
    if kind.photometric == "PALETTE COLOR":
        add_palette(dataset)
    pixels = native_bytes(kind, arrays)
    dataset.add_new("PixelData", "OW" if kind.allocated > 8 else "OB", pixels + bytes(len(pixels) % 2))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


PALETTE = [np.roll(np.arange(256), 85 * turn).astype("<u2") * 257 for turn in range(3)]


def add_palette(dataset):
    for colour, table in zip(("Red", "Green", "Blue"), PALETTE, strict=True):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())


def stored_as(dataset, syntax, frames=None):
    """Its Part 10 file; `frames` are codestreams for its pixel data."""
    if frames is not None:
        dataset.PixelData = encapsulate(list(frames))
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    if pydicom.uid.UID(syntax).is_transfer_syntax:
        return part10(dataset, pydicom.uid.UID(syntax))
    # pydicom does not know it: written under one whose UID takes as many bytes.
    padded = syntax + "\0" * (len(syntax) % 2)
    (other,) = (uid for uid in (J2K, f"{HTJ2K}\0") if len(uid) == len(padded))
    content = part10(dataset, pydicom.uid.UID(other.rstrip("\0")))
    return content.replace(other.encode(), padded.encode(), 1)


def opened(content):
    return pydicom.dcmread(io.BytesIO(content))


def shown_values(dataset):
    """Its pixels by pydicom, as stored: no colour is converted; the first axis counts frames."""
    found = pydicom.pixels.pixel_array(dataset, raw=True)
    return found if int(dataset.get("NumberOfFrames", 1)) > 1 else found[None]


def of_syntax(uid):
    return f'multipart/related; type="application/dicom"; transfer-syntax={uid}'


def frames_of_type(media_type, uid):
    return f'multipart/related; type="{media_type}"; transfer-syntax={uid}'


class ManualAnswer(Future):
    """An outcome of a process that begins when the test sets `begun`."""

    begun = False

    def running(self):
        return self.begun and not self.done()

    def cancel(self):
        return not self.running() and super().cancel()
