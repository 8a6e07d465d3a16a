"""Any shape, depth, sign and colour that a row says it can hold comes back as it went in (hypothesis)."""

import numpy as np
import pytest
from frame_makers import (
    DEFLATED_FRAME,
    HTJ2K,
    J2K,
    JPEG_LS,
    JXL,
    LITTLE,
    LOSSLESS,
    NEAR,
    RLE,
    RPCL,
    value_range,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.registry import decode, encode, transcodable, transcode

LOSSLESS_SYNTAXES = [LITTLE, DEFLATED_FRAME, RLE, LOSSLESS, JPEG_LS, J2K, HTJ2K, RPCL, JXL]
BOUNDED = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@st.composite
def frames(draw):
    """A frame and its attributes: values at the ends of the range as often as between."""
    bits = draw(st.integers(1, 16))
    allocated = draw(st.sampled_from([1, 8, 16] if bits == 1 else [8, 16] if bits <= 8 else [16]))
    grey = ["MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"]
    photometric = draw(st.sampled_from(grey if allocated == 1 else [*grey, "RGB", "YBR_FULL"]))
    info = FrameInfo(
        rows=draw(st.integers(1, 40)),
        columns=draw(st.integers(1, 40)),
        samples_per_pixel=1 if photometric in grey else 3,
        bits_allocated=allocated,
        bits_stored=1 if allocated == 1 else bits,
        high_bit=0 if allocated == 1 else bits - 1,
        pixel_representation=draw(st.integers(0, 1)) if allocated > 1 else 0,
        photometric_interpretation=photometric,
    )
    return draw(contents(info)), info


@st.composite
def contents(draw, info):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = value_range(info)
    kind = draw(st.sampled_from(["noise", "ends", "flat", "ramp"]))
    count = info.rows * info.columns * info.samples_per_pixel
    values = {
        "noise": lambda: random.integers(low, high, count),
        "ends": lambda: random.choice([low, high - 1], count),
        "flat": lambda: np.full(count, high - 1),
        "ramp": lambda: np.linspace(low, high - 1, count).astype(int),
    }[kind]()
    if info.bits_allocated == 1:
        return np.packbits(values.astype(bool), bitorder="little").tobytes()
    return values.astype(info.sample_type).tobytes()


@pytest.mark.no_cover
@pytest.mark.parametrize("uid", LOSSLESS_SYNTAXES)
@BOUNDED
@given(made=frames())
def test_lossless_round_trip(uid, made):
    frame, info = made
    assume(transcodable(LITTLE, uid, info))
    coded, now = encode(frame, uid, info)
    assert decode(coded, uid, now) == (frame, info)


@pytest.mark.parametrize("uid", LOSSLESS_SYNTAXES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_lowest_value_in_one_row_or_column(uid, shape, bits):
    """A new version of OpenJPH reserves one bit too few there."""
    info = FrameInfo(*shape, 1, bits, bits, bits - 1, 0, photometric_interpretation="MONOCHROME2")
    frame = bytes(info.rows * info.columns * bits // 8)
    coded, now = encode(frame, uid, info)
    assert decode(coded, uid, now) == (frame, info)


@BOUNDED
@given(made=frames(), uids=st.permutations(LOSSLESS_SYNTAXES))
def test_any_chain_of_lossless_syntaxes(made, uids):
    """Through every codec that can hold the frame, one after another."""
    start, now = made
    frame, uid, first = start, LITTLE, now
    for target in uids:
        if transcodable(uid, target, now):
            frame, now = transcode(frame, uid, target, now)
            uid = target
    assert decode(frame, uid, now) == (start, first)


@BOUNDED
@given(made=frames(), near=st.integers(1, 9))
def test_near_lossless_round_trip(made, near):
    frame, info = made
    assume(transcodable(LITTLE, NEAR, info))
    coded, now = encode(frame, NEAR, info, options=EncodeOptions(near=near))
    back, after = decode(coded, NEAR, now)
    error = np.frombuffer(back, info.sample_type).astype(int) - np.frombuffer(frame, info.sample_type)
    assert after == info
    assert np.abs(error).max() <= near
