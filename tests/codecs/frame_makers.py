"""Frames for the tests of this room: made by number, so that a failure can be made again."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from framecodecs.frameinfo import FrameInfo

LITTLE = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"
RLE = "1.2.840.10008.1.2.5"
BASELINE = "1.2.840.10008.1.2.4.50"
EXTENDED = "1.2.840.10008.1.2.4.51"
LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
NEAR = "1.2.840.10008.1.2.4.81"
J2K = "1.2.840.10008.1.2.4.90"
J2K_LOSSY = "1.2.840.10008.1.2.4.91"
HTJ2K = "1.2.840.10008.1.2.4.201"
RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K_LOSSY = "1.2.840.10008.1.2.4.203"
JXL = "1.2.840.10008.1.2.4.110"
JXL_JPEG = "1.2.840.10008.1.2.4.111"
JXL_LOSSY = "1.2.840.10008.1.2.4.112"

GREY_8 = FrameInfo(64, 80)
GREY_12 = FrameInfo(64, 80, 1, 16, 12, 11)
SIGNED_16 = FrameInfo(64, 80, 1, 16, 16, 15, 1)
RGB_8 = FrameInfo(64, 80, 3, photometric_interpretation="RGB")


def value_range(info: FrameInfo) -> tuple[int, int]:
    """The least value and the one above the greatest."""
    if info.pixel_representation:
        return -(1 << (info.bits_stored - 1)), 1 << (info.bits_stored - 1)
    return 0, 1 << info.bits_stored


def noise(info: FrameInfo, seed: int = 1) -> bytes:
    """Every value is equally likely: no codec makes it smaller."""
    random = np.random.default_rng(seed)
    count = info.rows * info.columns * info.samples_per_pixel
    if info.bits_allocated == 1:
        return np.packbits(random.integers(0, 2, count).astype(bool), bitorder="little").tobytes()
    low, high = value_range(info)
    return random.integers(low, high, count).astype(info.sample_type).tobytes()


def picture_like(info: FrameInfo, seed: int = 1) -> bytes:
    """Soft shapes and a little noise over the whole range, as pictures have them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : info.rows, 0 : info.columns]
    planes = []
    for _ in range(info.samples_per_pixel):
        a, b, c = random.uniform(0.5, 3, 3)
        soft = np.sin(a * x / info.columns * 6) * np.cos(b * y / info.rows * 6) + np.sin(c * (x + y) / 50)
        planes.append(soft / 4 + 0.5 + random.normal(0, 0.004, soft.shape))
    low, high = value_range(info)
    values = np.stack(planes, axis=-1) * (high - low) + low
    return np.clip(values, low, high - 1).astype(info.sample_type).tobytes()


def as_array(frame: bytes, info: FrameInfo) -> np.ndarray:
    """The containers of an interleaved native frame as numbers."""
    if info.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")
        return bits[: info.rows * info.columns].reshape(info.shape)
    return np.frombuffer(frame, info.sample_type).reshape(info.shape)


def info_of(dataset: pydicom.Dataset) -> FrameInfo:
    """The attributes as a dataset says them."""
    return FrameInfo(
        rows=dataset.Rows,
        columns=dataset.Columns,
        samples_per_pixel=dataset.SamplesPerPixel,
        bits_allocated=dataset.BitsAllocated,
        bits_stored=dataset.get("BitsStored", dataset.BitsAllocated),
        high_bit=dataset.get("HighBit", dataset.BitsAllocated - 1),
        pixel_representation=dataset.get("PixelRepresentation", 0),
        planar_configuration=dataset.get("PlanarConfiguration") or 0,
        photometric_interpretation=dataset.PhotometricInterpretation,
        floating="PixelData" not in dataset,
    )


def pixel_element(dataset: pydicom.Dataset) -> pydicom.DataElement | None:
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            return dataset[keyword]
    return None


def number_of_frames(dataset: pydicom.Dataset) -> int:
    """Also of the file whose value is 1A, which pydicom warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(str(dataset.get("NumberOfFrames") or 1).rstrip("A"))


def frames_of(dataset: pydicom.Dataset, info: FrameInfo, encapsulated: bool) -> list[bytes]:
    """The frames as they lie in the file."""
    data = pixel_element(dataset).value
    count = number_of_frames(dataset)
    if encapsulated:
        return list(generate_frames(data, number_of_frames=count))
    length = info.frame_length
    return [data[index * length : (index + 1) * length] for index in range(count)]


def dicom_files() -> list[Path]:
    """Every file that pydicom and pydicom-data install, by name."""
    roots = [Path(pydicom.__file__).parent / "data" / "test_files"]
    try:
        import data_store
    except ImportError:
        pass
    else:
        roots.append(Path(next(iter(data_store.__path__))) / "data")
    return sorted(
        (path for root in roots for path in root.rglob("*") if path.is_file()), key=lambda p: p.name
    )


def file_named(name: str) -> Path:
    return next(path for path in dicom_files() if path.name == name)
