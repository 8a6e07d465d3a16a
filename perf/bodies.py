"""Bodies of store transactions, made of DICOM instances.

Strategy: pydicom writes one instance with placeholders of fixed width. Each further instance is the same
bytes with its own UIDs, number and a few bytes of its own pixels. A body is a generator of known length, so
it can be larger than the disk. All of it is deterministic.

An encoder's time depends on noise. The slices of `ct_slices` are a chest of ellipses: tissue has 12 HU of
noise with the spectrum of a filtered back projection, and there is nothing outside the scanner's circle.
JPEG-LS compresses them 3.7 : 1; it compresses five CTs of pydicom 2.9, 4.1, 5.0, 5.4 and 11.8 : 1.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo

ROOT_UID = "1.2.826.0.1.3680043.8.498.77"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
RLE = "1.2.840.10008.1.2.5"
BOUNDARY = "perf-5d41402abc4b2a76b9719d911017c592"
PART_HEAD = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
CLOSING = f"\r\n--{BOUNDARY}--\r\n".encode()
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'

FIRST = 10_000_000  # components of a UID have one width and no leading zero
CT_PIXELS = 512 * 512 * 2
CHUNK = 4 << 20
SIDE = 256  # of a tile of `jpeg_slide` and a frame of `long_loop`
DIFFERENT = 16  # frames of these, repeated
SLICES = 4  # pictures of `ct_slices`, repeated
NOISE, KERNEL = 12.0, 0.25  # HU; cycles a pixel at which the kernel falls off
_STUDY, _SERIES, _INSTANCE = (f"{ROOT_UID}.{kind}.99999999.99999999" for kind in (1, 2, 3))
_NUMBER = "00000000"
# Heads of Pixel Data and of an empty basic offset table; the end of the sequence (PS3.5 A.4).
ENCAPSULATED = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


class Keys(NamedTuple):
    """UIDs of one instance."""

    study: str
    series: str
    instance: str

    @property
    def path(self) -> str:
        return f"{self.series_path}/instances/{self.instance}"

    @property
    def series_path(self) -> str:
        return f"/studies/{self.study}/series/{self.series}"


class Body(NamedTuple):
    """A request body of known length. Each call of `chunks` makes its bytes again."""

    length: int
    chunks: Callable[[], Iterator[bytes]]
    keys: list[Keys]

    @property
    def study(self) -> str:
        return self.keys[0].study

    @property
    def path(self) -> str:
        """The path of the first instance."""
        return self.keys[0].path

    def write(self, path: Path) -> Path:
        """Writes and syncs, so that no write to the disk is pending while it is measured."""
        with path.open("wb") as stream:
            for chunk in self.chunks():
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        return path


def keys_of(study: int, number: int = 0, series: int = 0) -> Keys:
    return Keys(
        f"{ROOT_UID}.1.{FIRST + study}.{FIRST}",
        f"{ROOT_UID}.2.{FIRST + study}.{FIRST + series}",
        f"{ROOT_UID}.3.{FIRST + study}.{FIRST + number}",
    )


# --- native pixels ---


def ct_study(study: int, instances: int, pixels: int = CT_PIXELS) -> Body:
    """One series of CT slices; 512 x 512 gives 526 kB an instance."""
    keys = [keys_of(study, number) for number in range(instances)]
    return series_of(ct_dataset(pixels), keys, different(noise(pixels)))


def ct_slices(study: int, instances: int) -> Body:
    """One series of CT slices whose noise is that of a CT."""
    keys = [keys_of(study, number) for number in range(instances)]
    return series_of(ct_dataset(CT_PIXELS), keys, lambda number: ct_pictures()[number % SLICES].tobytes())


def patients(studies: int, pixels: int) -> Body:
    """One instance a study, each of another patient."""
    picture, keys = noise(pixels), [keys_of(study) for study in range(studies)]
    body = series_of(ct_dataset(pixels), keys, lambda number: picture)

    def chunks() -> Iterator[bytes]:
        for study, chunk in enumerate(body.chunks()):
            yield chunk.replace(b"P0012345", b"P%07d" % study)

    return body._replace(chunks=chunks)


def native_loop(study: int, frames: int) -> Body:
    """One instance with frames of 512 x 512 of 16 bits, uncompressed."""
    dataset, picture = ct_dataset(CT_PIXELS), different(noise(CT_PIXELS))
    pixels = frames * CT_PIXELS
    return _multi_frame(study, frames, dataset, "", pixels, lambda: map(picture, range(frames)))


def different(picture: bytes) -> Callable[[int], bytes]:
    """The picture with a number at its beginning."""
    return lambda number: number.to_bytes(8, "little") + picture[8:]


def series_of(dataset: Dataset, keys: list[Keys], picture: Callable[[int], bytes]) -> Body:
    """Each instance is one chunk."""
    head, pixels = head_of(dataset, EXPLICIT_VR_LITTLE_ENDIAN), len(picture(0))
    opening = _native(pixels)
    length = len(keys) * (len(PART_HEAD) + len(head) + len(opening) + pixels) + len(CLOSING)

    def chunks() -> Iterator[bytes]:
        for number, key in enumerate(keys):
            yield b"".join((PART_HEAD, numbered(head, key, number), opening, picture(number)))
        yield CLOSING

    return Body(length, chunks, keys)


def _native(length: int) -> bytes:
    return b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little")


# --- encapsulated pixels ---


def multi_frame(study: int, frames: int, frame_size: int) -> Body:
    """One instance with a fragment for each frame. The frames only look like JPEG."""
    item = bytearray(_item(noise(frame_size)))
    item[8:12], item[-2:] = b"\xff\xd8\xff\xe0", b"\xff\xd9"
    before, after = bytes(item[:20]), bytes(item[28:])
    batch = max(1, CHUNK // len(item))

    def items() -> Iterator[bytes]:
        for first in range(0, frames, batch):
            some = range(first, min(first + batch, frames))
            yield b"".join(part for n in some for part in (before, n.to_bytes(8, "big"), after))

    return _multi_frame(study, frames, ct_dataset(CT_PIXELS), JPEG_BASELINE, frames * len(item), items)


def jpeg_slide(study: int, tiles: int) -> Body:
    """One instance with tiles of 256 x 256 in colour, JPEG baseline."""
    info = FrameInfo(SIDE, SIDE, 3, photometric_interpretation="RGB")
    return _repeated(study, tiles, JPEG_BASELINE, info, "YBR_FULL_422")


def long_loop(study: int, frames: int) -> Body:
    """One instance with frames of 256 x 256 in grey, RLE."""
    return _repeated(study, frames, RLE, FrameInfo(SIDE, SIDE), "MONOCHROME2")


def joined(bodies: Sequence[Body]) -> Body:
    """One body of all their instances."""
    length = sum(body.length - len(CLOSING) for body in bodies) + len(CLOSING)

    def chunks() -> Iterator[bytes]:
        for body in bodies:
            for chunk in body.chunks():
                yield chunk.removesuffix(CLOSING)
        yield CLOSING

    return Body(length, chunks, [key for body in bodies for key in body.keys])


def _repeated(study: int, frames: int, syntax: str, info: FrameInfo, photometric: str) -> Body:
    samples = info.samples_per_pixel
    items = [_item(registry.encode(one, syntax, info)[0]) for one in soft_pictures(samples)]
    dataset = ct_dataset(CT_PIXELS)
    dataset.Rows, dataset.Columns = SIDE, SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    if samples > 1:
        dataset.PlanarConfiguration = 0
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, keyword)

    def all_items() -> Iterator[bytes]:
        for first in range(0, frames, DIFFERENT):
            yield b"".join(items[: min(DIFFERENT, frames - first)])

    length = sum(len(items[number % DIFFERENT]) for number in range(frames))
    return _multi_frame(study, frames, dataset, syntax, length, all_items)


def _item(frame: bytes) -> bytes:
    padded = frame + bytes(len(frame) % 2)
    return b"\xfe\xff\x00\xe0" + len(padded).to_bytes(4, "little") + padded


def _multi_frame(
    study: int, frames: int, dataset: Dataset, syntax: str, pixels: int, make: Callable[[], Iterable[bytes]]
) -> Body:
    """`pixels` is the length of all that `make` yields: items, or native frames without a syntax."""
    dataset.NumberOfFrames = frames
    head = numbered(head_of(dataset, syntax or EXPLICIT_VR_LITTLE_ENDIAN), keys_of(study), 0)
    opening, end = (ENCAPSULATED, END) if syntax else (_native(pixels), b"")
    start = b"".join((PART_HEAD, head, opening))

    def chunks() -> Iterator[bytes]:
        yield start
        yield from make()
        yield end + CLOSING

    return Body(len(start) + pixels + len(end) + len(CLOSING), chunks, [keys_of(study)])


# --- pictures ---


def noise(size: int) -> bytes:
    """A slope with noise in 16 bits, which compresses as badly as soft tissue."""
    random = np.random.default_rng(1)
    count = size // 2 + 1
    slope = 1000 + 200 * np.sin(np.arange(count) / 300)
    return (slope + random.normal(0, 20, count)).astype("<u2").tobytes()[:size]


def soft_pictures(samples: int) -> list[bytes]:
    """Shapes with some noise in 8 bits."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:SIDE, :SIDE]
    made = []
    for number in range(DIFFERENT):
        planes = [
            128 + 100 * np.sin((x + 9 * number) / (19 + plane)) * np.cos(y / (13 + 3 * plane))
            for plane in range(samples)
        ]
        noisy = np.stack(planes, axis=-1) + random.normal(0, 2, (SIDE, SIDE, samples))
        made.append(np.clip(noisy, 0, 255).astype(np.uint8).tobytes())
    return made


# Centre, half axes (of half the picture), Hounsfield units: fat, muscle, lungs, heart, spine and its canal
_ORGANS = (
    (0.0, 0.0, 0.84, 0.62, -90),
    (0.0, 0.0, 0.78, 0.56, 50),
    (-0.38, -0.04, 0.28, 0.4, -860),
    (0.38, -0.04, 0.28, 0.4, -860),
    (0.08, -0.1, 0.2, 0.24, 130),
    (0.0, 0.36, 0.1, 0.09, 320),
    (0.0, 0.24, 0.06, 0.06, 25),
)


@cache
def ct_pictures() -> list[NDArray[np.uint16]]:
    """512 x 512 of 12 bits, Hounsfield units + 1,024."""
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.full((512, 512), -1000.0)
    for across, down, wide, high, units in _ORGANS:
        body[((x - across) / wide) ** 2 + ((y - down) / high) ** 2 < 1] = units
    frequency = np.hypot(np.fft.fftfreq(512)[:, np.newaxis], np.fft.rfftfreq(512))
    spectrum = frequency * np.exp(-((frequency / KERNEL) ** 2))
    made = []
    for number in range(SLICES):
        white = np.random.default_rng(number).normal(size=(512, 512))
        noisy = np.fft.irfft2(np.fft.rfft2(white) * spectrum, s=(512, 512))
        seen = body + noisy * (NOISE / noisy.std())
        seen[np.hypot(x, y) > 1] = -1024
        made.append(np.clip(np.rint(seen) + 1024, 0, 4095).astype("<u2"))
    return made


# --- datasets ---


def numbered(head: bytes, keys: Keys, number: int) -> bytes:
    for placeholder, uid in zip((_STUDY, _SERIES, _INSTANCE), keys, strict=True):
        head = head.replace(placeholder.encode(), uid.encode())
    instance_number = b"\x20\x00\x13\x00IS\x08\x00"
    return head.replace(instance_number + _NUMBER.encode(), instance_number + b"%08d" % number)


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


def ct_dataset(pixels: int) -> Dataset:
    """Eighty attributes and some sequences, as scanners write them (ct.json: PS3.18 annex F)."""
    dataset = Dataset.from_json(_ct_json())
    dataset.Columns = min(512, max(1, pixels // 2))
    dataset.Rows = max(1, pixels // 2 // dataset.Columns)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = _STUDY, _SERIES, _INSTANCE
    dataset.InstanceNumber = _NUMBER
    return dataset


@cache
def _ct_json() -> str:
    return Path(__file__).with_name("ct.json").read_text()
