"""Every file with pixels that pydicom and pydicom-data install, against pydicom's own decoders.

Lossless and native: equal. Lossy: the libraries' inverse transforms may round differently, by the stated
number of grey levels. Where a second decoder is installed (gdcm, pyjpegls, OpenJPEG) it is asked too.
"""

import warnings
from functools import cache

import numpy as np
import pydicom
import pytest
from frame_makers import (
    BIG,
    EXTENDED,
    LITTLE,
    as_array,
    dicom_files,
    frames_of,
    info_of,
    number_of_frames,
    pixel_element,
)
from pydicom.pixels import get_decoder

from framecodecs import registry
from framecodecs.errors import CodestreamError
from framecodecs.samples import to_array

# Grey levels by which decoders of one lossy codestream may differ.
TOLERANCE = {"jpeg baseline": 1, "jpeg 2000 lossy": 1}
# Files that are broken on purpose, with the expected error. pydicom does not read them either.
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "tiles",
    "MR_truncated.dcm": "8130 bytes",
}
# 12-bit JPEG has no free decoder in pydicom. Values of these pixels agree with two other decoders.
EXTENDED_PIXELS = {(420, 140): 244, (230, 120): 95}


@cache
def read(path):
    """The dataset if the file is one and has pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, force=True)
            usable = pixel_element(dataset) is not None and "Rows" in dataset
        except Exception:  # not DICOM: some of the installed files are not
            return None
        return dataset if usable else None


def syntax_of(dataset) -> str:
    return dataset.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2"


FILES = [path for path in dicom_files() if read(path) is not None]
GOOD = [path for path in FILES if path.name not in REFUSED]


def some_frames(count: int) -> list[int]:
    """The first ones and the last one."""
    return sorted({*range(min(count, 4)), count - 1})


def decoded_frames(dataset):
    uid, info = syntax_of(dataset), info_of(dataset)
    words = pixel_element(dataset).VR == "OW"
    frames = frames_of(dataset, info, registry.syntax_of(uid).encapsulated)
    if uid == BIG and words and info.frame_length % 2:
        # Odd frames share a word: only the caller has the whole element and can swap it.
        frames, words = [np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()], False
    return [registry.decode(frames[index], uid, info, words=words) for index in some_frames(len(frames))]


def reference_frames(dataset, plugin):
    """pydicom's frames, in stored values; colour as RGB where decoders disagree on when to convert."""
    uid = syntax_of(dataset)
    family = registry.syntax_of(uid).family_name
    raw = family != "jpeg baseline" and dataset.PhotometricInterpretation != "YBR_FULL_422"
    count = number_of_frames(dataset)
    decoder = get_decoder(uid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = [
            decoder.as_array(dataset, raw=raw, index=index, decoding_plugin=plugin)[0]
            for index in some_frames(count)
        ]
    return np.stack(frames)


def plugins_of(uid: str) -> list[str]:
    """Each installed decoder by itself, or pydicom's only way for native pixels."""
    if not registry.syntax_of(uid).encapsulated:
        return [""]
    return [plugin for plugin in get_decoder(uid)._available if plugin != "pylibjpeg" or "1.2.4.5" not in uid]


def test_there_are_files_of_every_kind():
    seen = {registry.syntax_of(syntax_of(read(path))).family_name for path in FILES}
    assert len(FILES) > 120
    assert seen >= {
        "little endian",
        "big endian",
        "rle",
        "jpeg baseline",
        "jpeg lossless",
        "jpeg-ls",
        "jpeg 2000",
    }


def shown_frames(frames, as_rgb):
    for frame, info in frames:
        values = to_array(frame, info) if info.bits_allocated > 1 else as_array(frame, info)
        if as_rgb and info.photometric_interpretation == "YBR_FULL":
            values = pydicom.pixels.convert_color_space(values, "YBR_FULL", "RGB")
        yield values


def compare(dataset, mine, plugin):
    uid = syntax_of(dataset)
    reference = reference_frames(dataset, plugin)
    assert mine.shape == reference.shape
    worst = np.abs(mine.astype(np.float64) - reference.astype(np.float64)).max()
    assert worst <= TOLERANCE.get(registry.syntax_of(uid).family_name, 0), plugin


@pytest.mark.no_cover
@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_equal_to_pydicom(path):
    dataset = read(path)
    uid = syntax_of(dataset)
    as_rgb = dataset.PhotometricInterpretation == "YBR_FULL_422"
    mine = np.stack(list(shown_frames(decoded_frames(dataset), as_rgb)))
    refusals = []
    for plugin in plugins_of(uid):
        try:
            compare(dataset, mine, plugin)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            refusals.append(f"{plugin}: {error}")
    if len(refusals) == len(plugins_of(uid)):
        assert uid == EXTENDED or path.name == "badVR.dcm", refusals


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_jpeg_of_12_bits(name):
    dataset = read(next(path for path in FILES if path.name == name))
    ((frame, info),) = decoded_frames(dataset)
    values = as_array(frame, info)
    assert {at: int(values[at]) for at in EXTENDED_PIXELS} == EXTENDED_PIXELS


@pytest.mark.parametrize(("name", "word"), REFUSED.items())
def test_broken_files_are_refused_in_words(name, word):
    dataset = read(next(path for path in FILES if path.name == name))
    with pytest.raises(CodestreamError, match=word):
        decoded_frames(dataset)


PAIRS = [
    ("JPEG2000.dcm", "JPEG2000_UNC.dcm", None),
    ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
    ("RG3_J2KR.dcm", "RG3_UNCR.dcm", 0),
    ("693_J2KR.dcm", "693_UNCR.dcm", 0),
    ("US1_J2KR.dcm", "US1_UNCR.dcm", 0),
    ("US1_J2KI.dcm", "US1_UNCI.dcm", 0),
    ("MR2_J2KI.dcm", "MR2_UNCI.dcm", 0),
    ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm", 0),
    ("emri_small_RLE.dcm", "emri_small.dcm", 0),
    ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm", 0),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
    ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm", 0),
    ("SC_rgb_rle_32bit.dcm", "SC_rgb_32bit.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", 0),
    ("rtdose_rle.dcm", "rtdose.dcm", 0),
    ("rtdose_expb.dcm", "rtdose.dcm", 0),
    ("liver_expb.dcm", "liver.dcm", 0),
    ("OBXXXX1A_expb.dcm", "OBXXXX1A.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_ebcr_dcmd.dcm", 2),
]


@pytest.mark.parametrize(("coded", "native", "worst"), [pair for pair in PAIRS if pair[2] is not None])
def test_files_that_other_programs_decoded(coded, native, worst):
    """The same picture twice: coded, and decoded by another program."""
    by_name = {path.name: path for path in FILES}
    coded_frames, native_frames = decoded_frames(read(by_name[coded])), decoded_frames(read(by_name[native]))
    for (frame, info), (other, other_info) in zip(coded_frames, native_frames, strict=True):
        difference = as_array(frame, info).astype(np.int64) - as_array(other, other_info).astype(np.int64)
        assert np.abs(difference).max() <= worst


def test_big_endian_words_of_an_odd_frame_belong_to_the_caller():
    with pytest.raises(CodestreamError, match="16-bit words"):
        registry.decode(
            b"\0" * 27, BIG, info_of(read(next(p for p in FILES if "odd_big" in p.name))), words=True
        )


def test_native_little_endian_comes_back_as_it_is():
    dataset = read(next(path for path in FILES if path.name == "MR_small.dcm"))
    info = info_of(dataset)
    assert registry.decode(dataset.PixelData, LITTLE, info) == (dataset.PixelData, info)
