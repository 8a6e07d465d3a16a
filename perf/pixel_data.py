"""Instances whose pixels can be decoded: loops and a slide, made like perf.data's bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
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
