"""Reading an instance with the help of those before gives what reading it alone gives."""

import struct

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    JPEG,
    SEQUENCE_END,
    element,
    identity,
    item,
    padded,
    part10,
    pread_of,
    readable_paths,
    sequence,
)
from test_part10_mutations import CHANGES, MADE, REAL, mutated

from streamsrv.dicom import repeats as module
from streamsrv.dicom.json.writer import MetadataWriter
from streamsrv.dicom.part10 import ReadLimits, read_instance
from streamsrv.dicom.repeats import Repeats
from streamsrv.errors import InstanceRefused, NotDicom

KEEP = frozenset(("00080005", "00080020", "00100010", "00081140", "00200013", "00400275"))
LIMITS = ReadLimits(max_inflated=10_000_000)


def outcome(content, repeats=None, limits=LIMITS):
    emitted = []
    try:
        instance = read_instance(
            pread_of(content), len(content), keep=KEEP, emit=emitted.append, limits=limits, repeats=repeats
        )
    except (NotDicom, InstanceRefused) as error:
        return type(error), str(error)
    return instance, b"".join(emitted), orjson.dumps(instance.attributes)


def compared(contents, limits=LIMITS):
    """Read one after the other with one Repeats, each is what it is alone."""
    repeats = Repeats()
    for content in contents:
        assert outcome(content, repeats, limits) == outcome(content, None, limits)
    return repeats


@pytest.fixture
def read(monkeypatch):
    """The tags of what was really read."""
    tags = []

    def write(self, events, original=MetadataWriter.write):
        original(self, (tags.append(event[0]) or event for event in events))

    monkeypatch.setattr(MetadataWriter, "write", write)
    return tags


def us(tag, value, syntax=EXPLICIT):
    return element(tag, "US", struct.pack("<H", value), syntax)


def slice_of(number, syntax=EXPLICIT, charset=b"ISO_IR 100", name=b"M\xfcller^A "):
    """An instance of a series: UID, number and one sequence differ."""
    uid = padded(f"1.2.4.{number}")
    image = sequence(0x00081140, [item(element(0x00081155, "UI", uid, syntax))], syntax, undefined=True)
    return part10(
        element(0x00080005, "CS", charset, syntax)
        + element(0x00080016, "UI", b"1.2.3\0", syntax)
        + element(0x00080018, "UI", uid, syntax)
        + element(0x00080020, "DA", b"20240131", syntax)
        + image
        + element(0x00100010, "PN", name, syntax)
        + element(0x00189073, "FD", bytes(8), syntax)
        + element(0x0020000D, "UI", b"1.2.5\0", syntax)
        + element(0x0020000E, "UI", b"1.2.6\0", syntax)
        + element(0x00200013, "IS", padded(str(number), b" "), syntax)
        + us(0x00280010, 2, syntax)
        + us(0x00280011, 2, syntax)
        + us(0x00280100, 8, syntax)
        + sequence(0x00400275, [item(element(0x00400009, "SH", b"A1", syntax))], syntax)
        + element(0x7FE00010, "OW", bytes(4), syntax),
        syntax,
    )


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
def test_of_a_series_only_what_differs_is_read(syntax, read):
    repeats = Repeats()
    for number in range(8, 14):
        read.clear()
        result = outcome(slice_of(number, syntax), repeats)
    sequence_read = [0x00081140, ITEM, 0x00081155, ITEM_END, SEQUENCE_END]
    assert read == [0x00080005, 0x00080018, *sequence_read, 0x00200013, 0x7FE00010]
    assert result == outcome(slice_of(13, syntax))


def test_one_instance_alone_teaches_nothing(monkeypatch):
    monkeypatch.setattr(module, "_Lesson", None)
    assert outcome(slice_of(1), Repeats()) == outcome(slice_of(1))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("tag", [0x00080016, 0x00100010, 0x00400275])
def test_an_element_that_is_there_twice_teaches_nothing(syntax, tag):
    def twice(number):
        again = {
            0x00080016: element(tag, "UI", b"1.2.9\0", syntax),
            0x00400275: sequence(tag, [], syntax),
            0x00100010: element(tag, "PN", b"Z^Z ", syntax),
        }[tag]
        behind = element(0x7FE00010, "OW", bytes(4), syntax)
        return slice_of(number, syntax).replace(behind, behind + again)

    compared([slice_of(8, syntax), twice(9), *(slice_of(number, syntax) for number in range(10, 14))])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG])
def test_a_character_set_that_changes(syntax):
    if syntax == BIG:
        files = [part10(element(0x00080005, "CS", term, BIG) + identity(BIG), BIG) for term in (b"A ", b"B ")]
    else:
        files = [slice_of(n, syntax, term) for n, term in enumerate((b"ISO_IR 100", b"ISO_IR 144", b""))]
        files += [slice_of(9, syntax, b"ISO_IR 192"), slice_of(9, syntax, b"ISO_IR 192", "Müller".encode())]
    compared([file for file in files for _ in range(3)] + files)


def test_a_character_set_that_comes_and_goes():
    name = element(0x00100010, "PN", b"M\xfcller^A ")
    rest = element(0x00080020, "DA", b"20240131") + identity()[16:]
    head = element(0x00080016, "UI", b"1.2.3\0")
    with_set = part10(element(0x00080005, "CS", b"ISO_IR 144") + head + rest + name)
    late = part10(head + rest + element(0x00080005, "CS", b"ISO_IR 144") + name)
    without = part10(head + rest + name)
    for first in (with_set, late, without):
        for second in (with_set, late, without):
            compared([first, first, first, second, second, first])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_decides_the_vr_of_others(syntax):
    """Pixel Representation, LUT Descriptor and private creators, before and behind what depends on them."""

    def made(signed, creator, entries):
        lut = us(0x00283002, entries, syntax)[:8] + struct.pack("<HHH", entries, 0, 16)
        lut = lut[:4] + (struct.pack("<I", 6) if syntax == IMPLICIT else b"US\6\0") + lut[8:]
        return part10(
            identity(syntax)[: -len(element(0x0020000E, "UI", b"1.2.6\0", syntax))]
            + element(0x0020000E, "UI", b"1.2.6\0", syntax)
            + element(0x00190010, "LO", creator, syntax)
            + element(0x00191002, "UN", b"\xff\0\0\0", syntax)
            + element(0x00189810, "UN", b"\xff\xff", syntax)
            + us(0x00280103, signed, syntax)
            + element(0x00280106, "UN", b"\xff\xff", syntax)
            + lut
            + element(0x00283006, "UN", b"\1\0", syntax)
            + sequence(0x00409096, [item(element(0x00409216, "UN", b"\xff\xff", syntax))], syntax),
            syntax,
        )

    files = [made(0, b"GEMS_ACQU_01", 1), made(1, b"GEMS_ACQU_01", 1), made(1, b"SOMEONE ELSE", 2)]
    for first in files:
        for second in files:
            compared([first] * 3 + [second] * 2 + [first])


def test_elements_that_come_go_and_change_places():
    date, name = element(0x00080020, "DA", b"20240131"), element(0x00100010, "PN", b"A^B ")
    number, text = element(0x00200013, "IS", b"1 "), element(0x00204000, "LT", b"x" * 500)
    files = [
        part10(identity() + part)
        for part in (date + name + number, number + name + date, name, b"", date + text + number, text + text)
    ]
    for first in files:
        for second in files:
            compared([first] * 3 + [second, first, second])


def test_values_that_cost_a_warning_cost_it_each_time():
    bad = part10(identity() + element(0x00200013, "IS", b"many") + element(0x00081140, "CS", b"low case"))
    assert len(outcome(bad, compared([bad] * 4))[0].warnings) == 3


def test_every_pydicom_file_behind_every_other():
    contents = [path.read_bytes() for path in readable_paths()]
    short = [content for content in contents if len(content) < 300_000]
    assert len(short) > 50
    compared(content for content in short for _ in range(3))


def test_file_metas():
    """Whatever differs in one: it is only Media Storage SOP Instance UID that says nothing of the rest."""
    uid, version = element(0x00020003, "UI", b"1.2.3.4\0"), element(0x00020012, "UI", b"1.2.3\0")
    syntaxes = [element(0x00020010, "UI", padded(syntax)) for syntax in (EXPLICIT, JPEG, EXPLICIT + ".77")]
    other = element(0x00020003, "UI", b"9.9\0\2\0\1\0")
    metas = [uid + syntax + version for syntax in syntaxes] + [other + syntax for syntax in syntaxes]
    metas += [
        syntaxes[1] + uid,
        uid + uid + syntaxes[0],
        element(0x00020003, "UI", padded(JPEG)) + syntaxes[0],
    ]
    metas += [uid, syntaxes[1], b"", uid + syntaxes[1] + element(0x00030001, "LO", b"")]
    files = [part10(identity(), "", meta) for meta in metas]
    files += [part10(identity(), "", meta)[:-1] for meta in metas] + [part10(identity(), DEFLATED, uid)]
    for first in files:
        compared([first] * 2 + files)


def test_of_many_file_metas_the_latest_are_known(monkeypatch):
    looked = []
    original = module.read_file_meta
    monkeypatch.setattr(module, "read_file_meta", lambda *given: (looked.append(1), original(*given))[1])
    metas = [
        element(0x00020003, "UI", b"1.2.3\0") + element(0x00020016, "AE", b"A" * n) for n in range(2, 40, 2)
    ]
    files = [part10(identity(), EXPLICIT, meta) for meta in metas]
    repeats = compared(files)
    looked.clear()
    for content in files[-module.MOST_METAS :]:
        outcome(content, repeats)
    assert not looked


def test_headers_longer_than_what_is_learned():
    many = b"".join(element(0x00210000 + n, "LO", b"v" * 60) for n in range(0x1000, 0x1800))
    long = b"".join(element(tag, "LT", b"x" * 30_000) for tag in (0x00204000, 0x00324000, 0x00380500))
    nested = sequence(0x00400275, [item(element(0x00400009, "SH", b"A1"))] * 4000)
    files = [part10(identity() + part) for part in (many, long, nested, many + long + nested)]
    compared([file for file in files for _ in range(3)] + files)


def test_limits_hold_for_what_is_read_one_by_one():
    head = identity()
    few = part10(head + element(0x00400001, "AE", b"A "))
    many = part10(head + element(0x00210001, "LO", b"") * 3_000 + element(0x00400001, "AE", b"A "))
    nested = part10(head + sequence(0x00300001, [item(element(0x00400009, "SH", b"A1"))] * 400))
    limits = ReadLimits(max_elements=1_000)
    compared([few, few, few, many, few, few, few, nested, nested, many], limits)
    assert outcome(many, None, limits)[0] is InstanceRefused


@settings(derandomize=True, max_examples=400, deadline=None)
@given(st.integers(0, len(MADE) - 1), st.lists(CHANGES, min_size=2, max_size=4))
def test_random_changes_of_made_files(number, changes):
    base = MADE[number]
    compared([base, base, base, *(mutated(base, each) for each in changes), base])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(0, len(REAL) - 1), st.lists(CHANGES, min_size=2, max_size=4))
def test_random_changes_of_real_files(number, changes):
    base = REAL[number]
    compared([base, base, base, *(mutated(base, each) for each in changes), base])


def test_every_byte_changed_once():
    base = slice_of(10)
    repeats = Repeats()
    for place in range(128, len(base)):
        changed = bytearray(base)
        changed[place] ^= 1
        for content in (base, bytes(changed)):
            assert outcome(content, repeats) == outcome(content)
