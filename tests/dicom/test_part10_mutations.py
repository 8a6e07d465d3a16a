"""Any bytes give a SOPInstance, NotDicom or InstanceRefused, and nothing else: truncations and random changes
of real and made files.

Whatever is still read must also be encoded anew without another error, and its frames must lie in the file.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import (
    BIG,
    DEFLATED,
    IMPLICIT,
    RLE,
    element,
    encapsulated,
    identity,
    image,
    item,
    part10,
    pread_of,
    read,
    readable_paths,
    sequence,
)

from streamsrv.dicom.explicit import explicit_pieces
from streamsrv.dicom.frames import fragment_spans
from streamsrv.dicom.instance import FRAGMENTED
from streamsrv.dicom.part10 import ReadLimits
from streamsrv.errors import InstanceRefused, NotDicom

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

LIMITS = ReadLimits(max_inflated=10_000_000)


def made_files():
    def rich(syntax):
        return (
            element(0x00080005, "CS", b"ISO 2022 IR 6\\ISO 2022 IR 87 ", syntax)
            + sequence(
                0x00081140,
                [item(element(0x00081150, "UI", b"1.2\0", syntax), syntax != BIG)],
                syntax,
                syntax != BIG,
            )
            + image(frames=3, syntax=syntax)
            + element(0x00090010, "LO", b"GEMS_ACQU_01", syntax)
            + element(0x00091002, "SL", b"\0\0\0\1", syntax)
            + element(0x00100010, "PN", b"A^B=C\x1b$B=D", syntax)
            + element(0x00189073, "FD", bytes(16), syntax)
            + element(0x00280106, "US", b"\1\0", syntax)
        )

    pixels = {syntax: element(0x7FE00010, "OW", bytes(18), syntax) for syntax in (IMPLICIT, BIG)}
    explicit = rich("1.2.840.10008.1.2.1")
    return [
        part10(explicit + element(0x7FE00010, "OW", bytes(18))),
        part10(rich(IMPLICIT) + pixels[IMPLICIT], IMPLICIT),
        part10(explicit + element(0x7FE00010, "OB", bytes(18)), DEFLATED),
        encapsulated([b"one ", b"two "], 2, basic=b"\0\0\0\0\x0c\0\0\0"),
        encapsulated([b"one ", b"two ", b"three "], 2, syntax=RLE),
        part10(identity(BIG) + element(0x00420011, "OW", bytes(20), BIG) + pixels[BIG], BIG),
    ]


def real_files():
    return [content for content in (path.read_bytes() for path in readable_paths()) if len(content) < 12_000]


MADE = made_files()
REAL = real_files()


def survives(content):
    try:
        instance, _ = read(content, keep={"00100010", "00081140", "00080020"}, limits=LIMITS)
    except (NotDicom, InstanceRefused):
        return
    assert list(explicit_pieces(pread_of(content), len(content), LIMITS))
    if instance.deflated:
        return
    for offset, length in np.frombuffer(instance.frames.table, "<u8").reshape(-1, 2).tolist():
        spans = (
            fragment_spans(pread_of(content), offset, length) if length & FRAGMENTED else [(offset, length)]
        )
        assert all(at + size <= len(content) for at, size in spans)
    assert all(value.offset + value.length <= len(content) for value in instance.bulk)


@pytest.mark.parametrize("number", range(len(MADE)))
def test_every_truncation(number):
    for end in range(len(MADE[number])):
        survives(MADE[number][:end])


@pytest.mark.no_cover
@pytest.mark.parametrize("number", range(len(MADE)))
def test_every_byte_changed(number):
    content = bytearray(MADE[number])
    for place in range(128, len(content)):
        kept = content[place]
        for value in (0, 0xFF, kept ^ 1, kept ^ 0x80):
            content[place] = value
            survives(bytes(content))
        content[place] = kept


CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(("set", "cut", "copy", "insert")),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content, changes):
    content = bytearray(content)
    for where, kind, value in changes:
        at = 128 + int(where * max(1, len(content) - 128))
        if kind == "set":
            content[at : at + len(value)] = value
        elif kind == "cut":
            del content[at : at + value[0]]
        elif kind == "copy":
            content[at:at] = content[at : at + value[0]]
        else:
            content[at:at] = value
    return bytes(content)


@settings(derandomize=True, max_examples=350, deadline=None)
@given(st.integers(0, len(MADE) - 1), CHANGES)
def test_random_changes_of_made_files(number, changes):
    survives(mutated(MADE[number], changes))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(0, len(REAL) - 1), CHANGES)
def test_random_changes_of_real_files(number, changes):
    survives(mutated(REAL[number], changes))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_behind_the_prefix(tail):
    survives(bytes(128) + b"DICM" + tail)
