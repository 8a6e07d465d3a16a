"""Windows, tables and palettes, against pydicom.pixels as the oracle."""

import struct
import warnings

import numpy as np
import pytest
from frame_makers import as_array, file_named, info_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing

from framecodecs.errors import RenderingError
from framecodecs.rendering import rendering
from framecodecs.rendering.rendering import (
    MAX_ENTRIES,
    Lut,
    Rendering,
    Window,
    modality_values,
    palette_of,
    voi_values,
)
from framecodecs.samples import to_array

ORACLE = settings(max_examples=150, derandomize=True, deadline=None, database=None)
FUNCTIONS = ["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def dataset_of(bits: int, signed: int, **values) -> Dataset:
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = bits, signed
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


@ORACLE
@given(
    function=st.sampled_from(FUNCTIONS),
    center=st.floats(-5000, 5000),
    width=st.floats(1, 8000),
    signed=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_windows_equal_the_oracle(function, center, width, signed, seed):
    low, high = (-2048, 2047) if signed else (0, 4095)
    values = np.random.default_rng(seed).integers(low, high + 1, 500).astype("<i2")
    dataset = dataset_of(12, signed, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    mine = Window(center, width, function).applied(values, low, high)
    with np.errstate(over="ignore"):
        expected = apply_windowing(values, dataset)
    assert np.allclose(mine, expected, rtol=1e-12, atol=1e-9)


@ORACLE
@given(slope=st.floats(-50, 50), intercept=st.floats(-5000, 5000), seed=st.integers(0, 1000))
def test_rescaling_equals_the_oracle(slope, intercept, seed):
    values = np.random.default_rng(seed).integers(-2048, 2048, 500).astype("<i2")
    dataset = dataset_of(12, 1, RescaleSlope=slope, RescaleIntercept=intercept)
    rendering_ = Rendering(float(dataset.RescaleSlope), float(dataset.RescaleIntercept))
    assert np.array_equal(modality_values(values, rendering_), apply_modality_lut(values, dataset))


@ORACLE
@given(
    first=st.integers(-100, 100),
    count=st.integers(1, 300),
    bits=st.integers(10, 16),
    seed=st.integers(0, 1000),
)
def test_tables_equal_the_oracle(first, count, bits, seed):
    random = np.random.default_rng(seed)
    entries = random.integers(0, 1 << bits, count)
    values = random.integers(-200, 500, 400).astype("<i2")
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [count, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries] if count > 1 else [int(entries[0])])
    dataset = dataset_of(16, 1, VOILUTSequence=[item])
    if count == 1:
        item["LUTData"]._value = [int(entries[0])]
    assert np.array_equal(Lut.of(first, entries, bits).applied(values), apply_voi(values, dataset))


def test_a_modality_table_of_a_real_file():
    dataset = dcmread(file_named("mlut_18.dcm"))
    values = to_array(dataset.PixelData, info_of(dataset))
    item = dataset.ModalityLUTSequence[0]
    count, first, bits = item.LUTDescriptor
    lut = Lut.of(
        first, np.frombuffer(item.LUTData, "<u2") if isinstance(item.LUTData, bytes) else item.LUTData, bits
    )
    assert len(lut.words) == count
    expected = apply_modality_lut(values, dataset)
    assert np.array_equal(modality_values(values, Rendering(modality_lut=lut)), expected)


def test_a_voi_table_of_a_real_file():
    dataset = dcmread(file_named("vlut_04.dcm"))
    values = to_array(dataset.PixelData, info_of(dataset))
    item = dataset.VOILUTSequence[0]
    _, first, bits = item.LUTDescriptor
    entries = np.frombuffer(item.LUTData, "<u2") if isinstance(item.LUTData, bytes) else item.LUTData
    lut = Lut.of(first, entries, bits)
    expected = apply_voi(values, dataset)
    assert np.array_equal(lut.applied(values), expected)
    top = (1 << bits) - 1
    shown = voi_values(values, Rendering(voi_lut=lut), 0, 255)
    assert np.allclose(shown, expected * (255 / top))


PALETTES = ["OBXXXX1A.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm", "OT-PAL-8-face.dcm"]


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_of_real_files(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(file_named(name), force=True)
        info = info_of(dataset)
        values = as_array(dataset.PixelData[: info.frame_length], info)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        expected = apply_color_lut(values, dataset)
    segmented = "SegmentedRedPaletteColorLookupTableData" in dataset
    prefix = "Segmented" if segmented else ""
    palette = palette_of(
        dataset.RedPaletteColorLookupTableDescriptor,
        [getattr(dataset, f"{prefix}{c}PaletteColorLookupTableData") for c in ("Red", "Green", "Blue")],
        segmented=segmented,
    )
    if expected.dtype == np.uint16 and expected.max() > 255:
        expected = expected >> 8
    assert np.array_equal(palette.applied(values), expected)


def plain(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}H", *words)


def test_segments_expand():
    """Discrete, linear from the last entry, and a repetition of the first segment."""
    table = plain(0, 2, 10, 20, 1, 4, 60, 2, 1, 0, 0)
    palette = palette_of([8, 0, 16], [table] * 3, segmented=True)
    assert palette.red.words.tolist() == [10, 20, 30, 40, 50, 60, 10, 20]


def test_segments_of_bytes_expand():
    table = bytes([0, 2, 10, 20, 1, 2, 40, 2, 1, 0, 0, 0, 0])
    palette = palette_of([6, 0, 8], [table] * 3, segmented=True)
    assert palette.red.words.tolist() == [10, 20, 30, 40, 10, 20]


@pytest.mark.parametrize(
    "table",
    [
        plain(1, 4, 60),  # nothing to begin a line from
        plain(2, 1, 0, 0),  # nothing to repeat yet
        plain(7, 1, 0, 0),  # no such segment
        plain(0, 1, 5, 2, 60000, 3, 0),  # segments that repeat themselves
        b"",
    ],
)
def test_broken_segments_are_refused_or_bounded(table):
    try:
        palette = palette_of([4, 0, 16], [table] * 3, segmented=True)
    except RenderingError:
        return
    assert len(palette.red.words) <= 4


def test_a_table_that_repeats_itself_ends():
    table = plain(0, 1, 5, 2, 60000, 0, 0)
    with pytest.raises(RenderingError, match="segment"):
        palette_of([0, 0, 16], [table] * 3, segmented=True)
    long = plain(*([0, 100, *range(100)] * 700))
    assert len(palette_of([0, 0, 16], [long] * 3, segmented=True).red.words) <= MAX_ENTRIES


def test_palettes_in_bytes_where_the_descriptor_says_words():
    palette = palette_of([4, 0, 16], [bytes([1, 2, 3, 4])] * 3)
    assert palette.applied(np.array([0, 3, 9])).tolist() == [[1] * 3, [4] * 3, [4] * 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(0, 0),
        lambda: Window(0, -1),
        lambda: Window(float("nan"), 1),
        lambda: Window(0, float("inf")),
        lambda: Window(0, 1, "CUBIC"),
        lambda: Lut(0, b"", 8),
        lambda: Lut(0, b"abc", 8),
        lambda: Lut(0, b"ab", 17),
        lambda: palette_of([1, 2], [b"", b"", b""]),
        lambda: palette_of([1, 0, 8], [b"ab"]),
        lambda: voi_values(np.zeros(1), Rendering(), 0, 255),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(RenderingError):
        make()


def test_a_window_narrower_than_one_is_a_threshold():
    shown = Window(10.0, 0.5).applied(np.array([8, 9, 10, 11]), 0, 255)
    assert shown.tolist() == [0, 0, 255, 255]
    assert rendering.to_bytes(shown).tolist() == [0, 0, 255, 255]
