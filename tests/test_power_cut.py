"""The power fails at any moment: what was acknowledged is there, whole, and nothing deleted returns.

`SOAK=20 python -m pytest tests/test_power_cut.py` goes through twenty times as many cuts, in both modes, with
a new seed. It needs root, /dev/fuse and loop devices.
"""

import os
import random

import pytest
from power_cut import PowerCutRecording, verify

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SEED", "20240102")) if SOAK == 1 else random.SystemRandom().randrange(1 << 32)
CUTS = 8 * SOAK
MODES = [True] if SOAK == 1 else [True, False]


@pytest.fixture(scope="module", params=MODES, ids=lambda replacing: "replace" if replacing else "refuse")
def recording(request, tmp_path_factory):
    print("seed", SEED)
    place = tmp_path_factory.mktemp("power")
    return PowerCutRecording(place, random.Random(SEED), replacing=request.param, seconds=1.5 + SOAK / 10)


def test_the_power_is_cut(recording, tmp_path):
    choice = random.Random(SEED)
    assert recording.acknowledged > 10
    judged = 0
    for number, (cut, moment, image) in enumerate(recording.disks(chosen(recording, choice), choice)):
        try:
            verify(
                recording,
                moment,
                image,
                tmp_path / "disk",
                reindexed=number % 3 == 1,
                served=number % 6 == 5,
            )
        except BaseException as error:
            error.add_note(f"cut at entry {cut} of {len(recording.entries)}, seed {SEED}")
            raise
        judged += recording.acknowledged_by(moment)
    assert judged > CUTS
    print(f"{CUTS} cuts, {recording.acknowledged} requests acknowledged, 0 lost")


def chosen(recording, choice):
    """Half of the cuts just before a flush, when most is unwritten; the others anywhere."""
    first = len(recording.entries) // 10
    flushes = [number for number in recording.flushes if number > first]
    before_flushes = choice.sample(flushes, CUTS // 2)
    anywhere = choice.sample(range(first, len(recording.entries)), CUTS - CUTS // 2)
    return [*before_flushes, *anywhere]
