"""What the next bytes of a file belong to, against the reading of the whole file."""

import random

import pytest
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    element,
    encapsulated,
    fragments,
    image,
    part10,
    pread_of,
    read,
    readable_paths,
    sequence,
)

from streamsrv.dicom.arriving import MOST_ELEMENTS, ArrivingFragments, ArrivingValue, arriving_value
from streamsrv.dicom.frames import scan_items
from streamsrv.dicom.part10 import ReadLimits, read_instance
from streamsrv.errors import InstanceError

PIXELS = bytes(range(256)) * 40
LIMITS = ReadLimits()


def arriving(content, received):
    return arriving_value(pread_of(content[:received]), received, LIMITS)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_native_pixels_end_where_their_length_says(syntax):
    head = part10(image(syntax=syntax), syntax)
    content = head + element(0x7FE00010, "OW", PIXELS, syntax)
    begin = len(content) - len(PIXELS)
    for received in (begin + 1, begin + 100, len(content) - 1):
        found = arriving(content + b"more", received)
        assert type(found) is ArrivingValue
        assert found.holds(len(content))
        assert not found.holds(len(content) + 1)
        pread = pread_of(content)
        assert found.reading(pread) is pread
    assert arriving(content, len(head)) is None
    assert arriving(content, len(content)) is None


@pytest.mark.no_cover
def test_what_is_no_long_value():
    deflated = part10(image() + element(0x7FE00010, "OW", random.Random(3).randbytes(9000)), DEFLATED)
    big = part10(image(syntax=BIG) + element(0x7FE00010, "OB", fragments([PIXELS]), BIG, 0xFFFFFFFF), BIG)
    # pixels of an icon, in an item: what ends with it is not told
    icon = part10(image() + sequence(0x00880200, [element(0x7FE00010, "OW", PIXELS)]))
    empty = (element(0x00091000 + number % 256, "UN") for number in range(MOST_ELEMENTS + 10_000))
    many = part10(image() + b"".join(empty) + element(0x7FE00010, "OW", PIXELS))
    for content in (b"", b"no DICOM" * 100, deflated, big, icon, many):
        assert arriving(content, max(0, len(content) - 50)) is None


def test_any_long_value_of_the_dataset_counts():
    document = part10(image() + element(0x00420011, "OB", PIXELS) + element(0x00420012, "LO", b"x"))
    found = arriving(document, 3000)
    assert type(found) is ArrivingValue
    assert found.holds(document.index(PIXELS) + len(PIXELS))
    assert not found.holds(len(document))


def slide(number=200, seed=1):
    source = random.Random(seed)
    return encapsulated(
        [source.randbytes(2 * source.randrange(0, 4000)) for _ in range(number)], frames=number
    )


@pytest.mark.parametrize("steps", [[1], [3, 5], [8], [1, 70_000], [4096, 1, 2]])
def test_item_headers_are_picked_up_while_they_pass(steps):
    content = slide(60) + bytes(8)
    received = 20_000
    found = arriving(content, received)
    assert isinstance(found, ArrivingFragments)
    at, turn, ends = received, 0, content.rindex(b"\xfe\xff\xdd\xe0")
    while at < len(content):
        step = steps[turn % len(steps)]
        found.take(memoryview(content)[at : at + step], at)
        at, turn = at + step, turn + 1
        assert found.holds(at) == (at < ends + 8)
    reads = []

    def pread(offset, length):
        reads.append(offset)
        return content[offset : offset + length]

    instance, _ = read(content)
    emitted = []
    again = read_instance(
        found.reading(pread), len(content), keep=frozenset(), emit=emitted.append, limits=LIMITS
    )
    assert again == instance
    # of what came later nothing is read but the delimiter, and what may stand behind it
    assert all(offset < received or offset >= ends for offset in reads)
    assert len(reads) < 20


@pytest.mark.no_cover
def test_every_file_reads_the_same_with_what_was_seen_of_it():
    fragmented = values = 0
    for path in readable_paths():
        content = path.read_bytes()
        source = random.Random(path.name)
        for received in sorted(source.sample(range(len(content)), min(8, len(content)))):
            found = arriving(content, received)
            if found is None:
                continue
            at = received
            while at < len(content):
                step = source.choice((1, 7, 500, 60_000))
                found.take(content[at : at + step], at)
                at += step
            pread = found.reading(pread_of(content))
            results = []
            for way in (pread, pread_of(content)):
                pieces = []
                try:
                    instance = read_instance(
                        way, len(content), keep=frozenset(), emit=pieces.append, limits=LIMITS
                    )
                except InstanceError as error:
                    instance = str(error)
                results.append((instance, pieces))
            assert results[0] == results[1], path
            fragmented += isinstance(found, ArrivingFragments)
            values += type(found) is ArrivingValue
    assert fragmented > 20
    assert values > 100


def test_nonsense_among_fragments_ends_them():
    content = slide(30)
    received = 5_000
    source = random.Random(11)
    for _ in range(300):
        broken = bytearray(content)
        for _ in range(source.randrange(1, 4)):
            broken[source.randrange(len(broken))] = source.randrange(256)
        found = arriving(bytes(broken), received)
        if found is not None:
            found.take(bytes(broken[received:]), received)
            start = content.index(b"\xfe\xff\x00\xe0")
            outcomes = []
            for pread in (found.reading(pread_of(bytes(broken))), pread_of(bytes(broken))):
                try:
                    items = scan_items(pread, start, len(broken), LIMITS.max_fragments)
                    outcomes.append((items.offsets, items.lengths, items.end))
                except InstanceError as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]


def test_no_more_headers_are_kept_than_an_instance_may_have():
    content = slide(50)
    limits = ReadLimits(max_fragments=10)
    assert arriving_value(pread_of(content), len(content) - 20, limits) is None
