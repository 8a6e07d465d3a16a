"""Frames that other encoders make and this package only reads: progressive JPEG by dcmtk, RLE of one bit."""

import io
import struct
import subprocess
from dataclasses import replace

import imagecodecs
import numpy as np
import pydicom
import pytest
from frame_makers import GREY_8, GREY_12, LITTLE, RGB_8, RLE, as_array, info_of, picture_like
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames

from framecodecs.errors import CodestreamError, DecodeError
from framecodecs.frameinfo import FrameInfo
from framecodecs.registry import decode

SPECTRAL, PROGRESSION = "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"
BITS = FrameInfo(33, 35, 1, 1, 1, 0)


def native_file(info):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = info.rows, info.columns, info.samples_per_pixel
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = info.photometric_interpretation, 0
    if info.samples_per_pixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        info.bits_allocated,
        info.bits_stored,
        info.high_bit,
    )
    dataset.add_new("PixelData", "OW" if info.bits_allocated > 8 else "OB", picture_like(info))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = LITTLE
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize(("option", "uid"), [("+es", SPECTRAL), ("+ep", PROGRESSION)])
@pytest.mark.parametrize("info", [GREY_8, GREY_12, RGB_8], ids=["8 bits", "12 bits", "colour"])
def test_progressive_jpeg_is_what_dcmtk_decodes(tmp_path, option, uid, info):
    paths = [tmp_path / name for name in ("native", "coded", "decoded")]
    paths[0].write_bytes(native_file(info))
    subprocess.run(["dcmcjpeg", option, *paths[:2]], check=True)
    subprocess.run(["dcmdjpeg", "+cl", *paths[1:]], check=True)
    coded = pydicom.dcmread(paths[1])
    (frame,) = generate_frames(coded.PixelData, number_of_frames=1)
    assert coded.file_meta.TransferSyntaxUID == uid
    assert b"\xff\xc2" in frame
    back, now = decode(frame, uid, info_of(coded))
    reference = pydicom.dcmread(paths[2])
    shown = reference.pixel_array
    if info is RGB_8:
        shown = pydicom.pixels.convert_color_space(shown, reference.PhotometricInterpretation, "RGB")
    difference = as_array(back, now).astype(int) - shown
    assert np.abs(difference).max() <= (2 if info is RGB_8 else 0)  # colours are rounded twice
    with pytest.raises(CodestreamError):
        decode(frame[: len(frame) // 2], uid, info_of(coded))


def rle(content):
    segment = imagecodecs.packbits_encode(content)
    return struct.pack("<16I", 1, 64, *[0] * 14) + segment + bytes(len(segment) % 2)


@pytest.mark.parametrize("packed", [False, True], ids=["a byte for each pixel", "eight pixels in a byte"])
@pytest.mark.parametrize("rows", [32, 33])
def test_rle_of_one_bit(packed, rows):
    info = replace(BITS, rows=rows)
    pixels = np.random.default_rng(1).integers(0, 2, rows * info.columns, np.uint8)
    bits = np.packbits(pixels, bitorder="little").tobytes()
    frame = rle(bits if packed else pixels.tobytes())
    assert (
        imagecodecs.packbits_decode(frame[64:])[: len(bits)]
        == (bits if packed else pixels.tobytes())[: len(bits)]
    )
    assert decode(frame, RLE, info) == (bits, info)


def test_empty_masks_of_one_bit_are_short():
    info = FrameInfo(512, 512, 1, 1, 1, 0)
    assert decode(rle(bytes(512 * 512 // 8)), RLE, info) == (bytes(512 * 512 // 8), info)


def test_rle_of_one_bit_that_is_cut_is_refused():
    pixels = np.random.default_rng(1).integers(0, 2, BITS.rows * BITS.columns, np.uint8)
    with pytest.raises(DecodeError):
        decode(rle(pixels.tobytes())[:100], RLE, BITS)
