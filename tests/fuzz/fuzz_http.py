"""Readers of the wire: heads, targets, queries, headers and bodies."""

import random

from fuzz_targets import target

from streamsrv.errors import (
    BadRequest,
    ContentTooLarge,
    Forbidden,
    HeadersTooLarge,
    MethodNotAllowed,
    MultipartError,
    NotAcceptable,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    RequestError,
    UnsupportedMediaType,
    URITooLong,
)
from streamsrv.pixels.viewing import rendering_parameters
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import query_of
from streamsrv.search.order import order_of
from streamsrv.search.parameters import SearchLimits, parameters_of
from streamsrv.settings import Settings
from streamsrv.web.head import (
    CHUNKED,
    Head,
    HeadRefused,
    body_length,
    check_block,
    check_lists,
    check_target,
    check_url,
)
from streamsrv.web.hosts import Hosts
from streamsrv.wire.accept import (
    choose_bulk,
    choose_frames,
    choose_image,
    choose_instances,
    choose_json,
    parse_accept,
)
from streamsrv.wire.answers import Answer, Literal, Request
from streamsrv.wire.codings import choose_coding
from streamsrv.wire.conditional import dated, evaluate
from streamsrv.wire.mediatypes import media_type_text, parse_media_type
from streamsrv.wire.multipart import (
    BodyEnd,
    MultipartLimits,
    MultipartParser,
    PartBegin,
    PartEnd,
    Payload,
    boundary_of,
    content_type_of,
)
from streamsrv.wire.resources import parse_query, target_in_table, target_of

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90")
BODY = b"0123456789" * 10
ETAG = '"0123"'
LIMITS = MultipartLimits(header_bytes=40, headers=4, parts=60, preamble=300)


def text(content):
    """As a header value or a request line reaches the server (RFC 9112 2.2)."""
    return content.decode("latin-1")


def is_speakable(value):
    return value.isprintable() and value.isascii()


@target(
    NotAcceptable,
    words=[
        *(
            b"application/dicom",
            b"multipart/related",
            b"; type=",
            b'"',
            b"; transfer-syntax=",
            b"*/*",
            b";q=0.5",
        ),
        *(
            b"image/jpeg",
            b"application/dicom+json",
            b"application/octet-stream",
            b",",
            b";q=",
            b"=",
            b"*",
            b"\\",
        ),
    ],
)
def accept(content):
    header, _, query = text(content).partition("\n")
    ranges = parse_accept(header, [query] if query else [])
    assert all(0 <= each.quality <= 1 for each in ranges)
    for syntax in SYNTAXES:
        for single in (True, False):
            refused = []
            for choose in (
                lambda single=single: choose_bulk(ranges, single=single),
                lambda single=single: choose_image(ranges, single=single),
                lambda: choose_json(ranges),
                lambda single=single, syntax=syntax: choose_frames(
                    ranges, syntax, "image/jpeg", single=single
                ),
                lambda single=single, syntax=syntax: choose_instances(ranges, [syntax], single=single),
            ):
                try:
                    choose()
                except NotAcceptable as error:
                    refused.append(error)
            assert all(error.acceptable for error in refused)


@target(words=[b"gzip", b"zstd", b"br", b"identity", b"*", b";q=0", b";q=1.0", b", "])
def accept_encoding(content):
    assert choose_coding(text(content)) in ("", "identity", "gzip", "zstd")


@target(
    words=[
        b"multipart/related",
        b"; boundary=",
        b'"',
        b"\\",
        b"; type=",
        b"application/dicom",
        b"; charset=utf-8",
    ]
)
def media_type(content):
    found = parse_media_type(text(content))
    if found is not None:
        again = parse_media_type(media_type_text(found.type, found.parameters))
        assert again == found, (found, again)


@target(
    BadRequest,
    UnsupportedMediaType,
    words=[b"multipart/related", b"; boundary=", b'"', b"\\", b"; type=", b"application/dicom", b"; start="],
)
def content_type(content):
    boundary = boundary_of(content_type_of(text(content)))
    assert 1 <= len(boundary) <= 200
    assert b"\r" not in boundary
    assert b"\n" not in boundary


def multipart_events(content, cuts, most):
    """What a parser says of a body that comes in pieces; payloads joined. The error, if there is one."""
    parser, events = MultipartParser(b"b", LIMITS), []

    def take(found):
        for event in found:
            if isinstance(event, Payload):
                if events and isinstance(events[-1], bytes):
                    events[-1] += bytes(event.view)
                elif len(event.view):
                    events.append(bytes(event.view))
            else:
                events.append((type(event), getattr(event, "headers", None)))

    try:
        for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
            take(parser.feed(content[start:end], most=most))
            while parser.more:
                take(parser.feed(b"", most=most))
        parser.close()
    except (MultipartError, ContentTooLarge) as error:
        return [event for event in events if not isinstance(event, bytes)], type(error)
    return events, None


@target(
    words=[
        *(b"--b", b"--b--", b"\r\n", b"\r\n--b\r\n", b"\r\n\r\n", b"Content-Type: application/dicom", b":"),
        *(b"Content-Location: ", b"--b \t", b"\r", b"\n", b"-"),
    ]
)
def multipart(content):
    """However a body is cut, and however few events are taken at once, it says the same."""
    whole, failure = multipart_events(content, [], 1 << 30)
    choice = random.Random(content)
    cuts = sorted(choice.randrange(len(content) + 1) for _ in range(choice.randrange(6)))
    for most in (1 << 30, 1, 3):
        events, other = multipart_events(content, cuts, most)
        assert other == failure, (cuts, most, failure, other)
        if failure is None:
            assert events == whole, (cuts, most, whole, events)
    if failure is None:
        kinds = [event[0] for event in whole if not isinstance(event, bytes)]
        assert kinds.count(PartBegin) == kinds.count(PartEnd)
        assert kinds[-1] is BodyEnd


@target(
    PreconditionFailed,
    RangeNotSatisfiable,
    words=[
        *(
            b"Range: bytes=",
            b"0-",
            b"-5",
            b"0-9,20-29",
            b"If-Range: ",
            b'"0123"',
            b"W/",
            b"If-Match: *",
            b",",
        ),
        *(b"If-None-Match: ", b"If-Modified-Since: ", b"If-Unmodified-Since: ", b"\n"),
        *(b"Sun, 06 Nov 1994 08:49:37 GMT", b"Thu, 01 Jan 1970 00:00:00 GMT", b"99999999999999999999"),
    ],
)
def conditions(content):
    lines = (line.partition(":") for line in text(content).split("\n"))
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    for method in ("GET", "HEAD"):
        request = Request(method, "/", (), headers, "http://h/v2", 2)
        answer = Answer(200, [("Content-Type", "text/plain")], [Literal(BODY)], len(BODY))
        found = dated(request, evaluate(request, answer, ETAG), 784111777.0, 1e9)
        body = b"".join(bytes(piece.payload) for piece in found.plan)
        assert found.status in (200, 206, 304)
        if method == "GET":
            assert len(body) == found.length
            assert body in BODY
        assert all(is_speakable(name + value) for name, value in found.headers)


@target(
    BadRequest,
    MethodNotAllowed,
    NotFound,
    URITooLong,
    words=[
        *(
            b"/v2",
            b"/studies/",
            b"1.2.3",
            b"/series/",
            b"/instances/",
            b"/frames/",
            b"1,2",
            b"/rendered",
            b"%2F",
        ),
        *(
            b"/thumbnail",
            b"/metadata",
            b"/bulkdata/",
            b"7FE00010",
            b"/pixeldata",
            b"%",
            b"%00",
            b"%C3%A9",
            b"/v1",
        ),
    ],
)
def path(content):
    line = text(content).replace("?", "")
    try:
        found = target_in_table(line)
    except RequestError as error:
        failure = type(error)
        try:
            target_of(line)
        except failure:
            raise error from None
        raise AssertionError("the pattern takes a path that the table refuses") from None
    assert target_of(line) == found
    for method in ("GET", "POST", "DELETE"):
        found.check_method(method)


@target(BadRequest, URITooLong, words=[b"&", b"=", b"%20", b"+", b"%", b"%ff", b"accept=", b"%C3%A9"])
def query(content):
    parse_query(text(content))


SEARCH_WORDS = [
    *(
        b"&",
        b"=",
        b"PatientName=",
        b"StudyDate=",
        b"20240101-20240102",
        b"-",
        b"*",
        b"?",
        b"StudyTime=",
        b"\\",
    ),
    *(b"StudyInstanceUID=1.2", b",", b"includefield=", b"all", b"limit=", b"offset=", b"fuzzymatching=true"),
    *(
        b"orderby=-",
        b"after=",
        b"00100010",
        b"RequestAttributesSequence.",
        b"ModalitiesInStudy=CT",
        b"^",
        b"=",
    ),
    *(b"AcquisitionDateTime=", b"+0100", b"NumberOfFrames=", b"Rows=", b"09", b"%E5%B1%B1", b"00091001="),
]


@target(BadRequest, URITooLong, words=SEARCH_WORDS)
def search(content):
    """The condition is made and asked about a dataset; its warnings go into a header."""
    pairs = parse_query(text(content))
    for level in Level:
        found = parameters_of(pairs, level, SearchLimits(200, 5000))
        assert all(is_speakable(each) for each in found.warnings)
        asked = query_of(level, None, None, found.matching, found.options)
        for condition in asked.conditions:
            condition.accepts(DATASET)
            condition.probes()
        order = order_of(found.orderby, level)
        if found.after:
            (order.position if order.walked else order.key_of)(found.after)


DATASET = {
    "00080020": {"vr": "DA", "Value": ["20240102"]},
    "00080030": {"vr": "TM", "Value": ["101112.5"]},
    "0008002A": {"vr": "DT", "Value": ["20240102101112.5+0100"]},
    "00080060": {"vr": "CS", "Value": ["CT"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]},
    "00200013": {"vr": "IS", "Value": [7]},
    "00280010": {"vr": "US", "Value": [512]},
    "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["A1"]}}]},
    "00091001": {"vr": "LO", "Value": ["private"]},
}


@target(
    BadRequest,
    URITooLong,
    words=[
        *(b"viewport=", b"1,2", b"1,2,,,3,4", b"window=", b"40,400,linear", b",sigmoid", b"quality=", b"100"),
        *(
            b"annotation=patient",
            b",technique",
            b"iccprofile=",
            b"no",
            b"srgb",
            b"1e9",
            b"-1",
            b"&",
            b"=",
            b"nan",
        ),
    ],
)
def rendered_query(content):
    rendering_parameters(parse_query(text(content)))


@target(
    BadRequest,
    Forbidden,
    HeadersTooLarge,
    URITooLong,
    words=[
        *(
            b"GET ",
            b"POST ",
            b" HTTP/1.1",
            b"http://",
            b"localhost",
            b":80",
            b"\nHost: ",
            b"\nContent-Length: 5",
        ),
        *(
            b"\nTransfer-Encoding: chunked",
            b"\nForwarded: for=1.2.3.4;proto=https;host=x",
            b"\nConnection: close",
        ),
        *(b"\nX-Forwarded-Host: ", b"\nX-Forwarded-Proto: https", b"\nExpect: 100-continue", b"[::1]", b'"'),
    ],
)
def head(content):
    line, *lines = text(content).split("\n")
    method, _, rest = line.partition(" ")
    target, _, version = rest.rpartition(" ")
    pairs = (each.partition(":") for each in lines)
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    found = Head(method, target, version, headers, "127.0.0.1")
    assert is_speakable(found.request_id)
    check_target(found)
    check_url(found, 500)
    check_lists(found)
    assert body_length(found) >= 0 or body_length(found) == CHUNKED
    assert found.keep_alive in (True, False)
    assert found.expects_continue in (True, False)
    for family in ("forwarded", "x-forwarded"):
        for proxies in ((), ("127.0.0.0/8",)):
            hosts = Hosts(Settings(trusted_proxies=proxies, forwarded_headers=family))
            origin = hosts.caller(found.headers, found.host, found.peer)
            assert is_speakable(origin.base + origin.client), origin


@target(
    HeadRefused,
    words=[
        b"GET ",
        b" HTTP/1.1\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"A: 1\r\n",
        b"A: 1\r\n" * 101,
        b"x" * 300,
        b"/" * 99,
        b" ",
    ],
)
def head_block(content):
    check_block(content, 100, 400)
