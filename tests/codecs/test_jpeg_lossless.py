"""JPEG lossless as we write it, read by another's decoder: every kind of difference, codes of all lengths."""

import imagecodecs
import numpy as np
import pytest

from framecodecs import jpeg_lossless
from framecodecs.errors import EncodeError
from framecodecs.frameinfo import FrameInfo
from framecodecs.jpeg_header import read_jpeg_header
from framecodecs.options import EncodeOptions

OPTIONS = EncodeOptions()


def written(values, bits=16):
    """Written by us, read by libjpeg-turbo."""
    colour = values.ndim == 3
    allocated = 8 * values.itemsize
    info = FrameInfo(
        *values.shape[:2],
        samples_per_pixel=3 if colour else 1,
        bits_allocated=allocated,
        bits_stored=bits,
        high_bit=bits - 1,
        photometric_interpretation="RGB" if colour else "MONOCHROME2",
    )
    coded, _ = jpeg_lossless.encode(values.tobytes(), info, OPTIONS)
    kept = {"colorspace": "RGB", "outcolorspace": "RGB"} if colour else {}
    return coded, imagecodecs.jpeg8_decode(coded, **kept).reshape(values.shape)


@pytest.mark.parametrize(
    ("shape", "bits"),
    [
        ((1, 1), 8),
        ((1, 7), 8),
        ((9, 1), 8),
        ((5, 3, 3), 8),
        ((300, 331), 12),
        ((130, 130, 3), 8),
        ((70, 3), 2),
    ],
)
def test_another_decoder_reads_it(shape, bits):
    random = np.random.default_rng(sum(shape))
    values = random.integers(0, 1 << bits, shape).astype("u1" if bits <= 8 else "<u2")
    coded, back = written(values, bits)
    assert np.array_equal(back, values)
    header = read_jpeg_header(coded)
    assert (header.process, header.precision, header.predictor) == (0xC3, bits, 1)
    assert header.end == len(coded)


def test_differences_of_every_length():
    """Of 16 bits there is one, 32,768, and it has no bits behind its code (table H.2)."""
    steps = [0, 1, 0, 32_768, 0, *(1 << n for n in range(16)), 0, *((1 << n) - 1 for n in range(17)), 0]
    values = np.array([steps, steps[::-1]], "<u2")
    assert np.array_equal(written(values)[1], values)
    wide = jpeg_lossless.category_counts(jpeg_lossless.differences_of(values, 16))
    assert all(wide)


@pytest.mark.parametrize("bits", [12, 16])
def test_differences_that_only_the_rest_of_a_large_frame_has(bits):
    """Every fifth is counted; here these are zeros."""
    columns = 400
    values = np.zeros((columns, columns), np.int64)
    places = np.arange(2, columns * columns - 2, 5)
    jumps = np.array([(1 << n) - 1 for n in range(bits + 1)])
    values.reshape(-1)[places] = np.random.default_rng(bits).choice(jumps, places.size)
    values = values.astype("<u2")
    differences = jpeg_lossless.differences_of(values, bits)
    assert not differences[jpeg_lossless.SAMPLE :: jpeg_lossless.SAMPLE].any()
    assert np.count_nonzero(jpeg_lossless.category_counts(differences)) == bits + 1
    assert np.array_equal(written(values, bits)[1], values)


def test_more_differences_than_a_block():
    count = 2 * jpeg_lossless.BLOCK + 5
    values = np.random.default_rng(5).integers(0, 4096, (1, count))
    for wide in (values[:, :65_535], values.reshape(-1)[: count // 3 * 3].reshape(3, -1)):
        assert np.array_equal(written(wide.astype("<u2"), 12)[1], wide)


def test_codes_are_never_longer_than_sixteen_bits_nor_all_ones():
    """Counts that grow as Fibonacci's numbers do make the deepest tree."""
    counts = [1, 1]
    while len(counts) < jpeg_lossless.CATEGORIES:
        counts.append(counts[-1] + counts[-2])
    lengths, order = jpeg_lossless.code_lengths(counts)
    codes = jpeg_lossless.canonical_codes(lengths, order)
    assert len(lengths) == 16
    assert set(codes) == set(range(17))
    assert all(0 <= code < (1 << length) - 1 for code, length in codes.values())
    texts = [f"{code:0{length}b}" for code, length in codes.values()]
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)
    by_count = sorted(codes, key=lambda category: -counts[category])
    assert [codes[category][1] for category in by_count] == sorted(length for _, length in codes.values())


def test_long_codes_are_read_by_another_decoder():
    counts = [1, 1]
    while len(counts) < 16:
        counts.append(counts[-1] + counts[-2])
    jumps = np.repeat([(1 << n) >> 1 for n in range(16)], counts)
    np.random.default_rng(6).shuffle(jumps)
    values = np.cumsum(jumps).astype("<u2").reshape(1, -1)
    assert np.array_equal(written(values)[1], values)


def test_a_flat_frame_takes_a_bit_a_pixel():
    values = np.full((64, 64), 2048, "<u2")
    coded, back = written(values, 12)
    assert np.array_equal(back, values)
    assert len(coded) < 64 * 64 // 8 + 60


def test_two_samples_a_pixel_are_refused():
    info = FrameInfo(2, 2, 3, photometric_interpretation="RGB")
    object.__setattr__(info, "samples_per_pixel", 2)
    with pytest.raises(EncodeError):
        jpeg_lossless.encode(bytes(8), info, OPTIONS)
