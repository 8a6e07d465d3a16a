"""JPEG lossless as we write it, read by another's decoder: every kind of difference, codes of all lengths."""

import imagecodecs
import numpy as np
import pytest

from framecodecs.coders import jpeg_lossless
from framecodecs.errors import EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpeg_header import read_jpeg_header

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
    """The rows that are counted are zeros."""
    values = np.zeros((400, 400), np.int64)
    jumps = np.array([(1 << n) - 1 for n in range(bits + 1)])
    values[:, 2:-2:2] = np.random.default_rng(bits).choice(jumps, (400, 198))
    values[jpeg_lossless.SAMPLE // 2 :: jpeg_lossless.SAMPLE] = 0
    values = values.astype("<u2")
    everything = jpeg_lossless.category_counts(jpeg_lossless.differences_of(values, bits))
    assert np.count_nonzero(everything) == bits + 1
    assert jpeg_lossless.likely_counts(values, bits)[1:] == [1] * bits + [0] * (16 - bits)
    assert np.array_equal(written(values, bits)[1], values)


@pytest.mark.parametrize("bits", [3, 12, 16])
@pytest.mark.parametrize("shape", [(3, 65_535), (1009, 401), (331, 257, 3)], ids=str)
def test_more_differences_than_a_block(shape, bits):
    """Noise of 16 bits: two of them fill a word, four of 3 bits do not."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, shape)
    assert values.size > jpeg_lossless.BLOCK
    values = values.astype("u1" if bits <= 8 else "<u2")
    assert np.array_equal(written(values, bits)[1], values)


def test_differences_of_some_rows_are_those_of_all():
    values = np.random.default_rng(2).integers(0, 1 << 16, (9, 7, 3)).astype("<u2")
    whole = jpeg_lossless.differences_of(values, 16)
    parts = [jpeg_lossless.differences_of(values, 16, start, start + 4) for start in (0, 4, 8)]
    assert np.array_equal(np.concatenate(parts), whole)
    expected = np.diff(values.astype(int), axis=1, prepend=0)
    expected[1:, 0] = np.diff(values[:, 0].astype(int), axis=0)
    expected[0, 0] -= 1 << 15
    assert np.array_equal(whole, (expected % (1 << 16)).reshape(-1))


@pytest.mark.parametrize("value", range(-33_000, 33_000, 997))
def test_the_bit_length_of_a_difference(value):
    length = min(value % (1 << 16), -value % (1 << 16)).bit_length()
    assert jpeg_lossless.CATEGORY[value % (1 << 16)] == length


@pytest.mark.parametrize("longest", [16, jpeg_lossless.longest_code(16)])
def test_codes_are_never_longer_than_they_may_be_nor_all_ones(longest):
    """Counts that grow as Fibonacci's numbers do make the deepest tree."""
    counts = [1, 1]
    while len(counts) < jpeg_lossless.CATEGORIES:
        counts.append(counts[-1] + counts[-2])
    lengths, order = jpeg_lossless.code_lengths(counts, longest)
    codes = jpeg_lossless.canonical_codes(lengths, order)
    assert len(lengths) == 16
    assert set(codes) == set(range(17))
    assert all(0 <= code < (1 << length) - 1 for code, length in codes.values())
    assert max(length for _, length in codes.values()) == longest
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
