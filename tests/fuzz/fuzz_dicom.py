"""Readers of datasets: Part 10 files, DICOM JSON, native XML, character sets and values."""

import struct
from xml.parsers import expat

import numpy as np
import orjson
from fuzz_targets import target

from streamsrv.dicom.arriving import arriving_value
from streamsrv.dicom.charsets import character_sets_of, decoder_for
from streamsrv.dicom.elements import LONG_VRS, SHORT_VRS
from streamsrv.dicom.explicit import Copy, Swap, explicit_pieces, part10_head
from streamsrv.dicom.frames import fragment_spans
from streamsrv.dicom.instance import FRAGMENTED
from streamsrv.dicom.json.encoding import Bulk, DatasetEncoder, Later
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.dicom.nativexml import json_text, native_xml
from streamsrv.dicom.part10 import ReadLimits, encoding_of, read_file_meta, read_instance
from streamsrv.dicom.values import converters_for, lenient
from streamsrv.dicom.window import ReadWindow
from streamsrv.errors import InstanceRefused, NotDicom
from streamsrv.reports.cda import read_cda
from streamsrv.reports.content import read_report
from streamsrv.reports.pages import html_page, plain_page, xml_page

LIMITS = ReadLimits(max_inflated=1_000_000)
KEPT = frozenset(("00100010", "00081140", "00080020"))
BULK = b"bulkdata"
SLOT = b"\0"
DICOM_WORDS = [
    *(
        b"\x02\0\x10\0UI",
        b"\x08\0\x05\0CS",
        b"\x08\0\x16\0UI",
        b"\x10\0\x10\0PN",
        b"\xe0\x7f\x10\0OB\0\0",
        b"SQ\0\0",
    ),
    *(
        b"\xfe\xff\0\xe0",
        b"\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"UN\0\0",
    ),
    *(
        b"\x28\0\x08\0IS",
        b"\x28\0\x10\0US\x02\0",
        b"\x28\0\x00\x01US\x02\0",
        b"1.2.840.10008.1.2.1",
        b"OW\0\0",
        b"\\",
    ),
    *(
        b"\x1b$B",
        b"ISO 2022 IR 87",
        b"\n",
        b"\r\n",
        b"\x09\0\x10\0LO",
        b"\xe0\x7f\x01\0OV\0\0",
        b"DS",
        b"IS",
        b"AT",
    ),
]


def pread_of(content):
    return lambda offset, length: content[offset : offset + length]


def read(content):
    """(instance, its DICOM JSON) of a file."""
    pieces = []
    instance = read_instance(pread_of(content), len(content), keep=KEPT, emit=pieces.append, limits=LIMITS)
    return instance, b"".join(pieces)


@target(NotDicom, InstanceRefused, words=DICOM_WORDS)
def part10(content):
    """The input stands behind preamble and prefix. An instance that is accepted must be answerable."""
    file = bytes(128) + b"DICM" + content
    instance, metadata = read(file)
    uids = instance.study_uid, instance.series_uid, instance.instance_uid, instance.sop_class_uid
    for text in (*uids, instance.transfer_syntax):
        assert text.isascii(), text
        assert text.isprintable(), text
        assert len(text) <= 64, text
    metadata = metadata.replace(SLOT, b"http://host")
    assert orjson.loads(metadata)
    document = b"".join(native_xml([metadata]))
    expat.ParserCreate(namespace_separator=" ").Parse(document, True)
    assert sum(map(piece_length, explicit_pieces(pread_of(file), len(file), LIMITS))) > 132
    if not instance.deflated:
        spans_lie_within(file, instance)


def piece_length(piece):
    return piece.length if isinstance(piece, (Copy, Swap)) else len(piece)


def spans_lie_within(file, instance):
    for offset, length in np.frombuffer(instance.frames.table, "<u8").reshape(-1, 2).tolist():
        spans = [(offset, length)]
        if length & FRAGMENTED:
            spans = fragment_spans(pread_of(file), offset, length)
        assert all(at + size <= len(file) for at, size in spans)
    assert all(value.offset + value.length <= len(file) for value in instance.bulk)


@target(NotDicom, InstanceRefused, words=DICOM_WORDS)
def file_meta(content):
    window = ReadWindow(pread_of(content), len(content))
    meta = read_file_meta(window, len(content), LIMITS)
    assert 132 <= meta.end <= len(content)
    encoding_of(meta, window)


@target(words=DICOM_WORDS)
def arriving(content):
    """A file that arrives in pieces: no error at all, whatever it holds."""
    file = bytes(128) + b"DICM" + content
    for received in range(132, len(file), max(1, len(content) // 7)):
        found = arriving_value(pread_of(file[:received]), received, LIMITS)
        if found is not None:
            assert found.holds(received)
            found.take(file[received:], received)
            reading = found.reading(pread_of(file))
            assert len(reading(0, 8)) <= 8


JSON_WORDS = [
    *(
        b'"vr":',
        b'"Value":',
        b'"InlineBinary":',
        b'"BulkDataURI":',
        b'"Alphabetic":',
        b"{}",
        b"[]",
        b"null",
        b"{",
        b"[",
    ),
    *(
        b'"00080016":',
        b'"00080018":',
        b'"0020000D":',
        b'"0020000E":',
        b'"7FE00010":',
        b'"00080005":',
        b'"SQ"',
        b'"PN"',
    ),
    *(
        b"1e999",
        b"-0",
        b"true",
        b'"\\ud800"',
        b'"\\u0000"',
        b"123456789012345678901",
        b'"UN"',
        b'"DS"',
        b'"1.2"',
        b"5,",
    ),
    *(
        b'"00020010":',
        b'"00083002":',
        b'"00091001":',
        b'"00100010":',
        b"NaN",
        b'"AT"',
        b'"OW"',
        b'"AAAA"',
        b",",
        b":",
    ),
]


def encoded(pieces):
    """The Part 10 file of a dataset of DICOM JSON, as a store transaction makes it."""
    encoder = DatasetEncoder(lambda tag, uri: Bulk([Copy(0, len(BULK))], frames=uri == "frames"))
    reader = JsonReader(pieces)
    several = reader.elements() if reader.peek() == "[" else iter([None])
    for _ in several:
        one = reader
        if reader.value() is not LARGE:
            one = JsonReader([reader.last.encode()])
        made = list(encoder.pieces(one))
        dataset = b"".join(
            piece.content if isinstance(piece, Later) else BULK if isinstance(piece, Copy) else piece
            for piece in made
        )
        uids = [encoder.facts.get(tag, "1.2") for tag in ("00080016", "00080018")]
        yield part10_head(*uids, "1.2.840.10008.1.2.1") + dataset
    reader.end()


@target(NotDicom, InstanceRefused, words=JSON_WORDS)
def json_store(content):
    for file in encoded([content]):
        read(file)


@target(NotDicom, words=JSON_WORDS)
def json_to_xml(content):
    """Well-formed, whatever the values are. Only metadata that the server wrote comes here: valid JSON."""
    try:
        dataset = orjson.loads(content)
    except orjson.JSONDecodeError:
        return
    file = next(encoded_or_none(orjson.dumps([dataset])), None)
    if file is not None:
        _, metadata = read(file)
        document = b"".join(native_xml([metadata.replace(SLOT, b"x")]))
        assert orjson.loads(b"".join(json_text([document])))


def encoded_or_none(content):
    try:
        yield from encoded([content])
    except (NotDicom, InstanceRefused):
        return


@target(
    NotDicom,
    InstanceRefused,
    words=[
        *(
            b"<NativeDicomModel>",
            b"<DicomAttribute tag='00100010' vr='PN'>",
            b"</DicomAttribute>",
            b"<Value number='1'>",
        ),
        *(
            b"</Value>",
            b"<Item number='1'>",
            b"</Item>",
            b"<BulkData uri='x'/>",
            b"<InlineBinary>",
            b"<PersonName number='1'>",
        ),
        *(
            b"<Alphabetic>",
            b"<FamilyName>",
            b"&amp;",
            b"&#0;",
            b"&#55296;",
            b"<!DOCTYPE a>",
            b"<![CDATA[",
            b"]]>",
            b"<?xml?>",
        ),
        *(
            b" encoding='UTF-16'",
            b" privateCreator='A'",
            b" keyword='B'",
            b" number='99999'",
            b"\xff\xfe",
            b"<?pi?>",
            b"<!---->",
        ),
    ],
)
def xml_store(content):
    half = len(content) // 2
    for file in encoded(json_text([content[:half], content[half:]])):
        read(file)


@target(
    words=[
        *(
            b"ISO_IR 100",
            b"ISO 2022 IR 87",
            b"ISO_IR 192",
            b"GB18030",
            b"GBK",
            b"ISO 2022 IR 58",
            b"\\",
            b"\n",
            b"^",
            b"=",
        ),
        *(
            b"\x1b$B",
            b"\x1b(B",
            b"\x1b$)C",
            b"\x1b(J",
            b"\x1b$)A",
            b"\x1b$(D",
            b"\x1b)I",
            b"\x1b-F",
            b"\xe5\xb1\xb1",
            b"ISO 2022 IR 149",
            b"\x1b",
        ),
    ]
)
def character_sets(content):
    """First line: the terms of Specific Character Set; the rest is a value of it."""
    terms, _, value = content.partition(b"\n")
    sets, _ = character_sets_of(tuple(terms.decode("latin-1").split("\\")))
    for delimiters in (b"", b"\\", b"\\^="):
        try:
            found = decoder_for(sets, delimiters)(value)
        except UnicodeDecodeError:
            found = None
        shown = decoder_for(sets, delimiters, lenient=True)(value)
        assert found is None or shown == found
        shown.encode()


VRS = (*SHORT_VRS.values(), *(vr for vr in LONG_VRS.values() if vr != "SQ"))
CHARACTER_SETS = (
    ("",),
    ("ISO_IR 192",),
    ("", "ISO 2022 IR 87"),
    ("GB18030",),
    ("ISO 2022 IR 13", "ISO 2022 IR 58"),
)


@target(
    words=[
        b"\\",
        b"^",
        b"=",
        b"1e400",
        b"nan",
        b"-0",
        b"+",
        b" ",
        b"\0",
        b"1.5",
        b"99999999999999999999",
        b"\xff",
    ]
)
def values(content):
    """Two bytes choose VR and character set; the rest is the value, as it is read and as it is shown."""
    if len(content) < 2:
        return
    vr, sets = VRS[content[0] % len(VRS)], CHARACTER_SETS[content[1] % len(CHARACTER_SETS)]
    value = content[2:]
    for little in (True, False):
        try:
            found = converters_for(sets, little)[vr](value)
        except (ValueError, struct.error):
            found, reason = lenient(vr, value, sets, little)
            assert reason
        orjson.dumps(found)


def pages_of(read, content):
    """Each page of a report is UTF-8 text, and that in XML is well-formed."""
    half = len(content) // 2
    pages = [
        b"".join(write(read([content[:half], content[half:]]), lambda link: f"http://h/{link.instance}"))
        for write in (html_page, plain_page, xml_page)
    ]
    for page in pages:
        page.decode()
    expat.ParserCreate().Parse(pages[-1], True)


@target(
    NotDicom,
    InstanceRefused,
    words=[
        *(b'"0040A730":', b'"0040A040":', b'"0040A043":', b'"0040A300":', b'"0040DB73":', b'"0040A375":'),
        *(
            b'"Value":[',
            b'{"vr":"SQ"',
            b'"CONTAINER"',
            b'"SCOORD"',
            b'"IMAGE"',
            b"null",
            b"1e308",
            b"<",
            b"]]>",
        ),
    ],
)
def report_page(content):
    try:
        content.decode()
    except UnicodeDecodeError:
        return  # the metadata of this store are UTF-8
    if content.lstrip().startswith(b"{"):
        pages_of(read_report, content)


@target(
    words=[
        *(b"<section>", b"</section>", b"<title>", b"<text>", b"<paragraph>", b"<tr>", b"<td>", b"<item>"),
        *(
            b'<?xml version="1.0" encoding="gb18030"?>',
            b"<!DOCTYPE a>",
            b"<br/>",
            b"&#0;",
            b"\xff\xfe",
            b"&lt;",
        ),
    ],
)
def cda_page(content):
    pages_of(lambda pieces: read_cda(pieces, {}), content)
