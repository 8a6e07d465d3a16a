"""Instances whose pixels can be decoded: slices of a CT, loops and a slide, made like perf.data's bodies.

What an encoder takes depends on the noise. The slices are a chest of ellipses in which tissue has 12 HU of
noise, with the spectrum that a filtered back projection leaves, and nothing outside the circle that a scanner
reconstructs. JPEG-LS makes 3.7 : 1 of them; of five CTs of 512 x 512 that come with pydicom it makes 2.9,
4.1, 5.0 and 5.4, and 11.8 of one that was smoothed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from perf import data

RLE = "1.2.840.10008.1.2.5"
LOOP_FRAMES = 20_000
LOOP_SIDE, SLIDE_SIDE = 256, 256
DIFFERENT = 16  # frames, repeated


def _attributes(dataset: Dataset, frames: int, side: int, samples: int, photometric: str) -> None:
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames, side, side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    if samples > 1:
        dataset.PlanarConfiguration = 0
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, keyword)


def soft_pictures(side: int, samples: int) -> list[bytes]:
    """Shapes with some noise in 8 bits."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:side, :side]
    made = []
    for number in range(DIFFERENT):
        planes = [
            128 + 100 * np.sin((x + 9 * number) / (19 + plane)) * np.cos(y / (13 + 3 * plane))
            for plane in range(samples)
        ]
        noisy = np.stack(planes, axis=-1) + random.normal(0, 2, (side, side, samples))
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
NOISE, KERNEL = 12.0, 0.25  # HU; cycles a pixel at which the kernel falls off
SLICES = 4  # different ones, repeated


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
        noise = np.fft.irfft2(np.fft.rfft2(white) * spectrum, s=(512, 512))
        seen = body + noise * (NOISE / noise.std())
        seen[np.hypot(x, y) > 1] = -1024
        made.append(np.clip(np.rint(seen) + 1024, 0, 4095).astype("<u2"))
    return made


def ct_slices(study: int, instances: int) -> data.Body:
    """One series of them, uncompressed."""
    head = data.head_of(data.ct_dataset(data.CT_PIXELS), data.EXPLICIT_VR_LITTLE_ENDIAN)
    pixels = b"\xe0\x7f\x10\x00OW\0\0" + data.CT_PIXELS.to_bytes(4, "little")
    length = instances * (len(data.PART_HEAD) + len(head) + len(pixels) + data.CT_PIXELS) + len(data.CLOSING)

    def chunks() -> Iterator[bytes | memoryview]:
        for number in range(instances):
            picture = ct_pictures()[number % SLICES].tobytes()
            yield b"".join((data.PART_HEAD, data.numbered(head, study, number), pixels, picture))
        yield data.CLOSING

    return data.Body(length, chunks, [data.keys_of(study, number) for number in range(instances)])


def native_loop(study: int, frames: int) -> data.Body:
    """512 x 512 of 16 bits, uncompressed."""
    dataset = data.ct_dataset(data.CT_PIXELS)
    dataset.NumberOfFrames = frames
    head = data.numbered(data.head_of(dataset, data.EXPLICIT_VR_LITTLE_ENDIAN), study, 0)
    picture = data.noise(data.CT_PIXELS)
    opening = b"\xe0\x7f\x10\x00OW\0\0" + (frames * data.CT_PIXELS).to_bytes(4, "little")
    length = len(data.PART_HEAD) + len(head) + len(opening) + frames * len(picture) + len(data.CLOSING)

    def chunks() -> Iterator[bytes | memoryview]:
        yield b"".join((data.PART_HEAD, head, opening))
        for number in range(frames):
            yield number.to_bytes(8, "little") + picture[8:]
        yield data.CLOSING

    return data.Body(length, chunks, [data.keys_of(study, 0)])


def jpeg_slide(study: int, tiles: int) -> data.Body:
    info = FrameInfo(SLIDE_SIDE, SLIDE_SIDE, 3, photometric_interpretation="RGB")
    pictures = soft_pictures(SLIDE_SIDE, 3)
    codestreams = [registry.encode(one, data.JPEG_BASELINE, info)[0] for one in pictures]
    dataset = data.ct_dataset(data.CT_PIXELS)
    _attributes(dataset, tiles, SLIDE_SIDE, 3, "YBR_FULL_422")
    return _encapsulated(study, dataset, data.JPEG_BASELINE, codestreams, tiles)


def long_loop(study: int, frames: int) -> data.Body:
    info = FrameInfo(LOOP_SIDE, LOOP_SIDE)
    codestreams = [registry.encode(one, RLE, info)[0] for one in soft_pictures(LOOP_SIDE, 1)]
    dataset = data.ct_dataset(data.CT_PIXELS)
    _attributes(dataset, frames, LOOP_SIDE, 1, "MONOCHROME2")
    return _encapsulated(study, dataset, RLE, codestreams, frames)


def _encapsulated(
    study: int, dataset: Dataset, syntax: str, codestreams: Sequence[bytes], frames: int
) -> data.Body:
    head = data.numbered(data.head_of(dataset, syntax), study, 0)
    items = [
        b"\xfe\xff\x00\xe0" + (len(one) + len(one) % 2).to_bytes(4, "little") + one + bytes(len(one) % 2)
        for one in codestreams
    ]
    opening = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    own = sum(len(items[number % DIFFERENT]) for number in range(frames))
    length = len(data.PART_HEAD) + len(head) + len(opening) + own + len(end) + len(data.CLOSING)

    def chunks() -> Iterator[bytes | memoryview]:
        yield b"".join((data.PART_HEAD, head, opening))
        for first in range(0, frames, DIFFERENT):
            yield b"".join(items[: min(DIFFERENT, frames - first)])
        yield end + data.CLOSING

    return data.Body(length, chunks, [data.keys_of(study, 0)])
