"""Altered codestreams end in pixels or in one of our errors; a decoder that crashes or hangs costs one
answer.

600 mutants a codec take some seconds, and SOAK=20 makes 12,000. FRAMECODECS_SEED is another seed (it is
printed). Decoding happens in a pool's workers, as it does in a server.
"""

import io
import os
import random
from collections import Counter
from concurrent.futures import Future

import pytest
from frame_makers import (
    BASELINE,
    DEFLATED_FRAME,
    EXTENDED,
    GREY_8,
    GREY_12,
    HTJ2K,
    HTJ2K_LOSSY,
    J2K,
    J2K_LOSSY,
    JPEG_LS,
    JXL,
    JXL_JPEG,
    JXL_LOSSY,
    LITTLE,
    LOSSLESS,
    NEAR,
    RGB_8,
    RLE,
    RPCL,
    SIGNED_16,
    as_array,
    picture_like,
)
from PIL import Image

from framecodecs.errors import FrameCodecError
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import messages
from framecodecs.pool.pool import FramePool, PoolLimits
from framecodecs.registry import SYNTAXES, decode, encode, transcodable, transcode

MUTANTS = 600 * int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("FRAMECODECS_SEED", "20240607"))
PROGRESSION = "1.2.840.10008.1.2.4.55"
UIDS = [
    DEFLATED_FRAME,
    RLE,
    BASELINE,
    EXTENDED,
    PROGRESSION,
    LOSSLESS,
    JPEG_LS,
    NEAR,
    J2K,
    J2K_LOSSY,
    HTJ2K,
    RPCL,
    HTJ2K_LOSSY,
    JXL,
    JXL_JPEG,
    JXL_LOSSY,
]
AT_ONCE = 16
HEAD = 160  # bytes in which every header of our small frames lies


@pytest.fixture(scope="module")
def pool():
    with FramePool(2, PoolLimits(waiting=AT_ONCE, deadline=5, memory=2**29)) as running:
        yield running


def flip_bits(frame: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)


def flip_in_header(frame: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 3)):
        frame[chance.randrange(min(HEAD, len(frame)))] ^= 1 << chance.randrange(8)


def overwrite_in_header(frame: bytearray, chance: random.Random) -> None:
    at = chance.randrange(min(HEAD, len(frame)))
    frame[at : at + chance.randint(1, 4)] = chance.choice(
        [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f", b"\x01"]
    )


def overwrite(frame: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(frame))
    frame[at : at + 16] = chance.randbytes(chance.randint(1, 16))


def cut_out(frame: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(frame))
    del frame[at : at + chance.randint(1, 64)]


def cut_off_keeping_the_end(frame: bytearray, chance: random.Random) -> None:
    """Half a picture with the end of a whole one: no header shows it."""
    del frame[chance.randrange(len(frame) // 4, len(frame) - 2) : -2]


def cut_off(frame: bytearray, chance: random.Random) -> None:
    del frame[chance.randrange(len(frame)) :]


def repeat(frame: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(frame))
    frame[at:at] = frame[at : at + chance.randint(1, 64)]


MUTATIONS = [
    flip_bits,
    flip_in_header,
    flip_in_header,
    overwrite_in_header,
    overwrite,
    cut_out,
    cut_off_keeping_the_end,
    cut_off,
    repeat,
]


def progressive(info: FrameInfo) -> bytes:
    made = io.BytesIO()
    pixels = as_array(picture_like(info), info).astype("u1")
    Image.fromarray(pixels).save(made, "JPEG", progressive=True)
    return made.getvalue()


def originals(uid: str) -> list[tuple[bytes, FrameInfo]]:
    """A codestream of each kind of pixels that the syntax holds."""
    if uid == JXL_JPEG:
        jpeg, info = encode(picture_like(RGB_8), BASELINE, RGB_8)
        return [transcode(jpeg, BASELINE, JXL_JPEG, info)]
    if uid == PROGRESSION:
        return [(progressive(info), info) for info in (GREY_8, RGB_8)]
    infos = [info for info in (GREY_8, GREY_12, SIGNED_16, RGB_8) if transcodable(LITTLE, uid, info)]
    return [encode(picture_like(info), uid, info) for info in infos]


def mutants(uid: str, count: int) -> list[tuple[bytes, FrameInfo]]:
    chance = random.Random(f"{SEED} {uid}")
    made = []
    sources = originals(uid)
    for _ in range(count):
        frame, info = chance.choice(sources)
        changed = bytearray(frame)
        for _ in range(chance.choice([1, 1, 1, 2])):
            if len(changed) > 4:
                chance.choice(MUTATIONS)(changed, chance)
        made.append((bytes(changed), info))
    return made


def outcome(future: Future) -> str:
    error = future.exception(60)
    if error is None:
        return "pixels"
    assert isinstance(error, FrameCodecError), error
    assert type(error) is not FrameCodecError, f"a library's own exception came through: {error}"
    return type(error).__name__


@pytest.mark.no_cover
@pytest.mark.parametrize("uid", UIDS, ids=[SYNTAXES[uid].name for uid in UIDS])
def test_mutants_end_in_pixels_or_errors(pool, uid):
    outcomes: Counter[str] = Counter()
    waiting: list[Future] = []
    for frame, info in mutants(uid, MUTANTS):
        waiting.append(pool.submit(messages.decode_frames, [frame], uid, info))
        if len(waiting) == AT_ONCE:
            outcomes[outcome(waiting.pop(0))] += 1
    outcomes.update(outcome(future) for future in waiting)
    print(f"\n{SYNTAXES[uid].name}, seed {SEED}: {dict(outcomes)}")
    assert sum(outcomes.values()) == MUTANTS
    assert outcomes["CodestreamError"] > 0
    frame, info = originals(uid)[0]
    assert pool.submit(messages.decode_frames, [frame], uid, info).result(30) == [decode(frame, uid, info)]


@pytest.mark.parametrize("uid", UIDS, ids=[SYNTAXES[uid].name for uid in UIDS])
def test_pixels_of_mutants_have_the_right_length(pool, uid):
    """A decoded damaged codestream fills exactly one frame."""
    for frame, info in mutants(uid, 30):
        future = pool.submit(messages.decode_frames, [frame], uid, info)
        if outcome(future) == "pixels":
            ((pixels, now),) = future.result()
            assert len(pixels) == now.frame_length
            assert now.shape == info.shape
