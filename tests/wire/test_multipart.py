"""streamsrv/wire/multipart.py"""

from __future__ import annotations

import email.generator
import email.message
import email.parser
import email.policy
import io
import itertools
import random
import re
import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamsrv.errors import ContentTooLarge, MultipartError, RequestError, UnsupportedMediaType
from streamsrv.wire.mediatypes import parse_media_type
from streamsrv.wire.multipart import (
    MAX_BOUNDARY,
    MAX_PADDING,
    PAYLOAD_END,
    WINDOW,
    BodyEnd,
    MultipartLimits,
    MultipartParser,
    PartBegin,
    PartEnd,
    Payload,
    boundary_from,
    boundary_of,
    closing,
    content_type_of,
    multipart_type,
    part_head,
)

B = b"boundary"
Part = tuple[dict[str, str], bytes]

# What can be found between two parts' delimiters and must come out as it went in.
NEAR_MISSES = [
    b"\r\n--boundar",
    b"\r\n--boundar\r\n",
    b"\r\n--boundaryX\r\n",
    b"\r\n--boundary-\r\n",
    b"\r\n--boundary \t-",
    b"\r\n--boundary x\r\n",
    b"\r\n--boundary" + b" " * (MAX_PADDING + 1) + b"\r\n",
    b"\r\n--boundary\n",
    b"\r\n--boundary\r\r",
    b"\r\n--boundary\rX",
    b"\n--boundary\r\n",
    b"\r--boundary\r\n",
    b"X--boundary\r\n",
    b"\r\n-boundary\r\n",
    b"\r\n--Boundary\r\n",
    b"\r\n\r\r\n\r\n-",
    b"\r\n--boundary  \r\r\n--boundary \r",
    b"\r" * 5,
    b"\r\n" * 5,
]


def chunked(body: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cuts), len(body)]
    return (body[a:b] for a, b in itertools.pairwise(edges))


def read(
    chunks: Iterable[bytes],
    boundary: bytes = B,
    limits: MultipartLimits | None = None,
    most: int | None = None,
) -> list[object]:
    """Everything that the parser says, adjacent payloads joined, an error as the last element. With `most`
    about that many events come from one call."""
    said: list[object] = []
    parser = MultipartParser(boundary, limits)
    try:
        for chunk in chunks:
            for event in parser.feed(chunk) if most is None else stopping(parser, chunk, most):
                if isinstance(event, Payload):
                    assert len(event.view) > 0
                    if said and isinstance(said[-1], bytes):
                        said[-1] += bytes(event.view)
                    else:
                        said.append(bytes(event.view))
                else:
                    said.append(event)
        parser.close()
    except RequestError as error:
        said.append((type(error), str(error)))
    return said


def stopping(parser: MultipartParser, chunk: bytes, most: int) -> Iterator[object]:
    yield from parser.feed(chunk, most=most)
    while parser.more:
        yield from parser.feed(b"", most=most)


def parts_of(said: list[object]) -> list[Part]:
    parts: list[Part] = []
    for event in said:
        if isinstance(event, PartBegin):
            parts.append((event.headers, b""))
        elif isinstance(event, bytes):
            parts[-1] = (parts[-1][0], event)
    return parts


def splits(body: bytes) -> Iterator[list[bytes]]:
    """Whole; byte by byte; in two at every place; in random pieces."""
    yield [body]
    yield [body[i : i + 1] for i in range(len(body))]
    yield from ([body[:i], body[i:]] for i in range(len(body)))
    dice = random.Random(2046)
    for _ in range(30):
        yield list(chunked(body, (dice.randrange(len(body) + 1) for _ in range(dice.randrange(8)))))


def write(parts: Iterable[Part], boundary: bytes = B) -> bytes:
    written = (part_head(boundary, headers) + payload + PAYLOAD_END for headers, payload in parts)
    return b"".join(written) + closing(boundary)


def read_every_way(body: bytes, limits: MultipartLimits | None = None) -> list[object]:
    """Whatever the splits, the same is said. What precedes an error may be lost with its chunk."""
    whole = read([body], limits=limits)
    slowly = read([body[i : i + 1] for i in range(len(body))], limits=limits)
    failed = isinstance(slowly[-1], tuple)
    for chunks in splits(body):
        said = read(chunks, limits=limits)
        if failed:
            assert said[-1] == slowly[-1]
            assert whole[-1] == slowly[-1]
        else:
            assert said == slowly
    return slowly


BODIES = {
    "one part": b"--boundary\r\nContent-Type: a/b\r\n\r\nabc\r\n--boundary--\r\n",
    "first boundary after CRLF": b"\r\n--boundary\r\nContent-Type: a/b\r\n\r\nabc\r\n--boundary--",
    "preamble": b"to whoever reads --boundary\r\n--boundary\r\nContent-Type: a/b\r\n\r\nabc\r\n--boundary--",
    "epilogue": b"--boundary\r\nContent-Type: a/b\r\n\r\nabc\r\n--boundary--X\r\n--boundary\r\n\r\nX\r\n",
    "padding": b"--boundary \t\r\nContent-Type: a/b\r\n\r\nabc\r\n--boundary--  ",
    "folded header": b"--boundary\r\nContent-Type:\r\n  a/b \r\n\r\nabc\r\n--boundary--",
    "odd header spacing": b"--boundary\r\ncOnTeNt-TyPe \t:a/b\t\r\n\r\nabc\r\n--boundary--",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_one_part_however_framed(body: bytes) -> None:
    assert read_every_way(body) == [PartBegin({"content-type": "a/b"}), b"abc", PartEnd(), BodyEnd()]


EMPTY = [PartBegin({}), PartEnd()]
TYPED = [PartBegin({"a": "b"}), PartEnd()]
FEW = {
    "no part": (b"--boundary--", []),
    "no blank line": (b"--boundary\r\n--boundary--", EMPTY),
    "blank line belongs to the delimiter": (b"--boundary\r\n\r\n--boundary--", EMPTY),
    "empty payload": (b"--boundary\r\n\r\n\r\n--boundary--", EMPTY),
    "headers without blank line": (b"--boundary\r\na: b\r\n--boundary--", TYPED),
    "headers, delimiter at once": (b"--boundary\r\na: b\r\n\r\n--boundary--", TYPED),
    "headers, empty payload": (b"--boundary\r\na: b\r\n\r\n\r\n--boundary--", TYPED),
    "three in a row": (b"--boundary\r\n--boundary\r\n--boundary \r\n--boundary--", EMPTY * 3),
    "payload is a line end": (
        b"--boundary\r\n\r\n\r\n\r\n--boundary--",
        [PartBegin({}), b"\r\n", PartEnd()],
    ),
    "delimiter in the first payload line": (
        b"--boundary\r\n\r\n--boundary\r\nx: y\r\n\r\nz\r\n--boundary--",
        [*EMPTY, PartBegin({"x": "y"}), b"z", PartEnd()],
    ),
}


@pytest.mark.parametrize(("body", "events"), FEW.values(), ids=FEW)
def test_empty_parts(body: bytes, events: list[object]) -> None:
    assert read_every_way(body) == [*events, BodyEnd()]


@pytest.mark.no_cover
@pytest.mark.parametrize("miss", NEAR_MISSES)
def test_near_miss_is_payload(miss: bytes) -> None:
    for payload in (miss, b"a" + miss, miss + b"z", miss + miss):
        parts: list[Part] = [({"content-type": "a/b"}, payload), ({}, payload)]
        assert parts_of(read_every_way(write(parts))) == parts


def test_near_misses_in_the_preamble_are_skipped() -> None:
    for miss in NEAR_MISSES:
        assert parts_of(read_every_way(miss + b"\r\n" + write([({}, b"x")]))) == [({}, b"x")]


def test_headers_of_one_name_are_joined_and_bytes_survive() -> None:
    said = read([b"--boundary\r\nA: 1\r\na: 2\r\nB: \xc3\xa4\xff:\r\n\r\n\r\n--boundary--"])
    assert said[0] == PartBegin({"a": "1, 2", "b": "ä\ufffd:"})


@pytest.mark.parametrize(
    "block",
    [
        b"no colon",
        b": x",
        b" a: b",
        b"a b: c",
        b"a: \0",
        b"a: b\rc",
        b"a: b\nc: d",
        b"a: b\r\n--bound",
        b"\xe4: x",
    ],
)
def test_malformed_header_names_its_byte(block: bytes) -> None:
    said = read_every_way(b"pre\r\n--boundary\r\n" + block + b"\r\n\r\nabc\r\n--boundary--")
    assert said[-1] == (MultipartError, "a part has a malformed header (at byte 17 of the request body)")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "before the first boundary"),
        (b"--boundary", "before the first boundary"),
        (b"\n--boundary\n\nabc\n--boundary--\n", "before the first boundary"),
        (b"--other\r\n\r\nabc\r\n--other--\r\n", "before the first boundary"),
        (b"--boundary\r\n", "in the headers of a part"),
        (b"--boundary\r\na: b\r\n\r", "in the headers of a part"),
        (b"--boundary\r\n\r\n", "in a part"),
        (b"--boundary\r\n\r\nabc\r\n--boundary-", "in a part"),
        (b"--boundary\r\n\r\nabc\r\n--boundary", "in a part"),
    ],
)
def test_truncated_body_says_where_it_ends(body: bytes, where: str) -> None:
    message = f"the multipart body ends {where} (at byte {len(body)} of the request body)"
    assert read_every_way(body)[-1] == (MultipartError, message)


def test_every_truncation_is_an_error_and_no_part_is_made_up() -> None:
    parts: list[Part] = [({"a": "b"}, b"first"), ({}, b""), ({}, b"\r\n--boundary\n")]
    body = write(parts)
    for end in range(len(body) - 2):  # the last CRLF is epilogue
        said = read([body[:end]])
        assert isinstance(said[-1], tuple)
        assert said[-1][0] is MultipartError
        whole = sum(isinstance(event, PartEnd) for event in said)
        assert parts_of(said)[:whole] == parts[:whole]


# Limits


def test_limit_of_header_bytes_is_exact() -> None:
    limits = MultipartLimits(header_bytes=20)
    for end in (b"\r\n\r\nabc", b""):
        fits = b"--boundary\r\na: " + b"x" * 17 + end + b"\r\n--boundary--"
        assert read_every_way(fits, limits)[0] == PartBegin({"a": "x" * 17})
        over = b"--boundary\r\na: " + b"x" * 18 + end + b"\r\n--boundary--"
        message = "the headers of the part at byte 12 of the body exceed 20 bytes"
        assert read_every_way(over, limits) == [(ContentTooLarge, message)]


def test_endless_header_block_ends_early() -> None:
    fed = 0

    def endless() -> Iterator[bytes]:
        nonlocal fed
        yield b"--boundary\r\n"
        while True:
            fed += 600
            yield b"a: b\r\n" * 100

    (said,) = read(endless())
    assert said == (ContentTooLarge, "the headers of the part at byte 12 of the body exceed 16384 bytes")
    assert fed < 17_000


def test_limit_of_headers() -> None:
    limits = MultipartLimits(headers=2)
    assert read([b"--boundary\r\na: 1\r\nb: 2\r\n\r\n\r\n--boundary--"], limits=limits)[-1] == BodyEnd()
    message = "the part at byte 12 of the body has more than 2 headers"
    said = read_every_way(b"--boundary\r\na: 1\r\nb: 2\r\na: 3\r\n\r\n\r\n--boundary--", limits)
    assert said == [(ContentTooLarge, message)]


def test_limit_of_preamble() -> None:
    limits = MultipartLimits(preamble=10)
    assert read_every_way(b"x" * 10 + b"\r\n--boundary--", limits) == [BodyEnd()]
    said = read_every_way(b"x" * 11 + b"\r\n--boundary--", limits)
    message = "the first 10 bytes of the body do not hold its Content-Type's boundary"
    assert said == [(ContentTooLarge, message)]


def test_limit_of_parts() -> None:
    limits = MultipartLimits(parts=2)
    assert read_every_way(write([({}, b"x")] * 2), limits)[-1] == BodyEnd()
    assert read_every_way(write([({}, b"x")] * 3), limits)[-1] == (
        ContentTooLarge,
        "the body has more than 2 parts",
    )


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "part", [b"\r\n--boundary", b"\r\n--boundary\r\n\r\n", b"\r\n--boundary\r\na: b\r\n\r\n"]
)
def test_a_million_empty_parts_end_quickly(part: bytes) -> None:
    body = part * 1_000_000
    begun = time.process_time()
    said = read(body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))
    assert said[-1] == (ContentTooLarge, "the body has more than 100000 parts")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("step", [1, 50, 1 << 20])
def test_events_of_a_dense_chunk_come_a_few_at_a_time(step: int) -> None:
    body = write([({}, b""), ({"a": "b"}, b"payload"), ({}, NEAR_MISSES[0])] * 50)
    parser, most = MultipartParser(B), 0
    said: list[object] = []
    for at in range(0, len(body), step):
        chunk = body[at : at + step]
        while True:
            events = parser.feed(chunk, most=5)
            most = max(most, len(events))
            for event in events:
                if isinstance(event, Payload) and isinstance(said[-1], bytes):
                    said[-1] += bytes(event.view)
                else:
                    said.append(bytes(event.view) if isinstance(event, Payload) else event)
            chunk = b""
            if not parser.more:
                break
    parser.close()
    assert most <= 7  # one step may add three
    assert said == read([body])


# Buffers


def test_views_are_slices_of_the_chunk() -> None:
    parser = MultipartParser(B)
    chunk = b"--boundary\r\n\r\n" + bytes(100_000)
    (_, payload) = parser.feed(chunk)
    assert isinstance(payload, Payload)
    assert isinstance(payload.view, memoryview)
    assert payload.view.obj is chunk
    assert payload.view.nbytes == 100_000


def test_reused_buffer_with_a_size() -> None:
    parts: list[Part] = [({"a": "b"}, NEAR_MISSES[0] * 9), ({}, b"second\r\n--bound")]
    body, buffer, parser = write(parts), bytearray(32), MultipartParser(B)
    said: list[object] = []
    for at in range(0, len(body), 7):
        piece = body[at : at + 7]
        buffer[:7] = piece.ljust(7, b"!")
        for event in parser.feed(buffer, len(piece)):
            said.append(bytes(event.view) if isinstance(event, Payload) else event)
    parser.close()
    assert b"".join(event for event in said if isinstance(event, bytes)) == parts[0][1] + parts[1][1]


def test_memoryview_is_read_like_bytes() -> None:
    body = write([({"a": "b"}, b"abc")])
    parser = MultipartParser(B)
    events = [*parser.feed(memoryview(bytearray(body))[:20]), *parser.feed(memoryview(body)[20:])]
    assert [type(event) for event in events] == [PartBegin, Payload, PartEnd, BodyEnd]


def test_empty_chunks_change_nothing() -> None:
    body = write([({"a": "b"}, b"abc")])
    apart = [piece for i in range(len(body)) for piece in (b"", body[i : i + 1], b"")]
    assert read(apart) == read([body])


def test_only_a_tail_that_could_begin_a_delimiter_is_kept_back() -> None:
    for tail, kept in [
        (b"\r", 1),
        (b"\r\n--bound", 9),
        (b"\r\n--boundary", 12),
        (b"\r\n--boundary  \r", 15),
        (b"abc\n", 0),
    ]:
        parser = MultipartParser(B)
        payload = parser.feed(b"--boundary\r\n\r\nabc" + tail)[-1]
        assert isinstance(payload, Payload)
        assert len(payload.view) == 3 + len(tail) - kept


@pytest.mark.parametrize("filler", [b"\0", b"yrad", b"\0\0d", b"\r\n--boundar"])
def test_delimiters_anywhere_in_large_chunks(filler: bytes) -> None:
    """Around the ends of the windows in which they are searched, and one right behind the other."""
    delimiter, reach = b"\r\n--boundary\r\n\r\n", 24
    payload = filler * (3 * WINDOW // len(filler))
    for place in (*range(WINDOW - reach, WINDOW + reach), *range(2 * WINDOW - reach, 2 * WINDOW + reach)):
        for second in (payload[:3], payload):
            body = b"--boundary\r\n\r\n" + payload[:place] + delimiter + second + b"\r\n--boundary--"
            stale = bytearray(body + delimiter)
            parts = [
                event.view
                for event in MultipartParser(B).feed(stale, len(body))
                if isinstance(event, Payload)
            ]
            assert parts == [payload[:place], second]


@pytest.mark.parametrize("step", [1, 13, 100])
def test_a_chunk_may_be_anywhere_in_its_buffer(step):
    """What lies around it does not count."""
    body = b"--boundary\r\nA: b\r\n\r\nfirst\r\n--boundary\r\n\r\nsecond\r\n--boundary--"
    parser, events = MultipartParser(B), []
    for at in range(0, len(body), step):
        piece = body[at : at + step]
        buffer = bytearray(b"\r\n--boundary\r\n" + piece + b"\r\n--boundary--")
        for event in parser.feed(buffer, len(piece), start=14):
            events.append(bytes(event.view) if isinstance(event, Payload) else type(event))
    parser.close()
    texts = b"".join(event if isinstance(event, bytes) else b"|" for event in events)
    assert texts == b"|first||second||"


@pytest.mark.parametrize("filler", [b"\0", b"d", b"yrad", b"\0d", b"\r\n--boundary-", b"\r\n", b"-", b"y"])
def test_a_large_payload_takes_time_in_proportion(filler: bytes) -> None:
    """A search that begins again for each byte would take a thousand times as long."""
    chunk = filler * ((1 << 20) // len(filler))
    best = 0.0
    for _ in range(5):
        parser = MultipartParser(B)
        parser.feed(b"--boundary\r\n\r\n")
        begun = time.thread_time()
        for _ in range(20):
            parser.feed(chunk)
        best = max(best, 20 * len(chunk) / (time.thread_time() - begun))
    # Bytes a second of this thread: 10 GB, 0.6 on near misses alone.
    assert best > 20e6


# Properties

FRAGMENTS = st.sampled_from(
    [
        *NEAR_MISSES,
        B,
        b"--",
        b"\r\n",
        b"\r",
        b"\n",
        b"a: b\r\n",
        b"\r\n--boundary",
        b"\r\n--boundary\r\n",
        b"x",
        b" ",
    ]
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(FRAGMENTS, max_size=14).map(b"".join), st.lists(st.integers(0, 120), max_size=5))
@example(b"\r\n--boundary\r\n--boundary  \r\r\n--boundary--", [19])
def test_any_bytes_are_read_alike_however_split(body: bytes, cuts: list[int]) -> None:
    limits = MultipartLimits(header_bytes=24, headers=2, parts=3, preamble=30)
    slowly = read([body[i : i + 1] for i in range(len(body))], limits=limits)
    split = read(chunked(body, (min(cut, len(body)) for cut in cuts)), limits=limits)
    assert split[-1:] == slowly[-1:]
    if not (slowly and isinstance(slowly[-1], tuple)):
        assert split == slowly == read([body], limits=limits)


# Cuts fall between these, among them one within a delimiter line and one before a long chunk.
PIECES = FRAGMENTS | st.sampled_from([b"\r\n--boundary\r", b"\n\r\n", b"\r\n\r\n", b"x" * 120, closing(B)])


@settings(max_examples=600, derandomize=True, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=12).map(b"".join), max_size=6), st.integers(1, 4))
@example([b"--boundary\r\n\r\nx\r\n--boundary\r", b"\n\r\n" + b"x" * 300 + closing(B)], 1)
def test_no_byte_is_lost_however_split_and_wherever_it_stops(chunks: list[bytes], most: int) -> None:
    """`most` may stop a call within the bytes that the call before kept back, before a long chunk."""
    limits = MultipartLimits(header_bytes=24, headers=2, parts=100, preamble=30)
    whole, stopped = read(chunks, limits=limits), read(chunks, limits=limits, most=most)
    assert stopped[-1:] == whole[-1:]
    if not (whole and isinstance(whole[-1], tuple)):  # an error hides the events of its own call
        assert stopped == whole


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.binary(max_size=200), st.binary(min_size=1, max_size=3).filter(lambda b: not set(b) & set(b"\r\n\0"))
)
def test_any_bytes_give_events_or_a_documented_error(body: bytes, boundary: bytes) -> None:
    read([body, b"\r\n--" + boundary + b"\r\n", body], boundary)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.just({"content-type": "a/b"}), st.lists(FRAGMENTS, max_size=6).map(b"".join)), max_size=5
    )
)
def test_what_is_written_is_read_back(parts: list[Part]) -> None:
    line = re.compile(rb"(?:\A|\r\n)--boundary(?:--|[ \t]{0,64}\r\n)")
    parts = [(headers, payload) for headers, payload in parts if not line.search(b"\r\n" + payload + b"\r\n")]
    body = write(parts)
    said = read([body])
    assert said[-1] == BodyEnd()
    assert parts_of(said) == parts


# Oracle: the standard library's email package


def test_email_parser_reads_what_we_write() -> None:
    boundary = boundary_from(b"secret", "etag", "application/dicom")
    dice = random.Random(1)
    payloads = [dice.randbytes(999), b"", b"\r\n--boundar\r\n", b"\n\r\n", b"--" + boundary[:-1]]
    head = b"Content-Type: " + multipart_type(boundary, "application/dicom").encode() + b"\r\n\r\n"
    body = write([({"Content-Type": "application/dicom"}, payload) for payload in payloads], boundary)
    # bytes -> surrogate escapes and back is what the email package does to binary parts
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert not message.defects
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    found = [part for part in message.iter_parts() if isinstance(part, email.message.EmailMessage)]
    assert [part.get_content_type() for part in found] == ["application/dicom"] * len(payloads)
    for part, payload in zip(found, payloads, strict=True):
        raw = part.get_payload(decode=True)
        assert raw == payload or normalized(raw) == normalized(payload)


def normalized(raw: object) -> bytes:
    """The email parser works on lines and rewrites lone CR and LF."""
    assert isinstance(raw, bytes)
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def test_we_read_what_email_generates() -> None:
    message = email.message.EmailMessage(policy=email.policy.SMTP)
    message["Content-Type"] = 'multipart/related; type="application/dicom"'
    texts = ["first\r\nline\r\n", "--near miss\r\n", "\xe4\r\n"]
    for text in texts:
        part = email.message.EmailMessage(policy=email.policy.SMTP)
        part.set_content(text, cte="8bit")
        message.attach(part)
    written = io.BytesIO()
    email.generator.BytesGenerator(written, policy=email.policy.SMTP).flatten(message)
    head, _, body = written.getvalue().partition(b"\r\n\r\n")
    content_type = content_type_of(re.sub(rb"\r\n\s+", b" ", head).decode().partition(":")[2])
    said = read([body], boundary_of(content_type))
    assert said[-1] == BodyEnd()
    assert [payload for _, payload in parts_of(said)] == [text.encode() for text in texts]
    assert {headers["content-type"] for headers, _ in parts_of(said)} == {'text/plain; charset="utf-8"'}


# Content-Type of the body


@pytest.mark.parametrize(
    "value",
    [
        'multipart/related; type="application/dicom"; boundary=ABCD1234',
        "multipart/related; type=application/dicom; boundary=ABCD1234",
        "multipart/related; boundary=ABCD1234",
        'multipart/related; boundary="ABCD1234"',
        'multipart/related; boundary="ABCD1234 "',
        r'multipart/related; boundary="ABC\D1234"',
        "MULTIPART/Related;BOUNDARY=ABCD1234;",
        "multipart/related ; boundary = ABCD1234 ; ",
        'multipart/related; type="application/dicom"; boundary=user; boundary=ABCD1234',
    ],
)
def test_each_content_type_form_of_the_tutorial(value: str) -> None:
    assert boundary_of(content_type_of(value)) == b"ABCD1234"


def test_boundary_is_taken_as_the_bytes_that_were_sent() -> None:
    assert (
        boundary_of(content_type_of("multipart/related; boundary=----=_Part'()+,-./:?\xe4"))
        == b"----=_Part'()+,-./:?\xe4"
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "nonsense",
        "multipart/form-data; boundary=x",
        "multipart/mixed; boundary=x",
        "application/dicom",
        "multipart/related",
        'multipart/related; type="application/dicom"',
        "multipart/related; boundary=",
        'multipart/related; boundary="  "',
        "multipart/related; boundary=a\x01b",
        "multipart/related; boundary=a\u20ac",
        "multipart/related; boundary=" + "x" * (MAX_BOUNDARY + 1),
    ],
)
def test_no_boundary_or_another_type_is_415(value: str | None) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        boundary_of(content_type_of(value))
    assert 'multipart/related; type="application/dicom"' in caught.value.supported


# Writing


def test_heads_are_written_in_the_case_and_order_given() -> None:
    head = part_head(
        b"b", {"Content-Type": "image/jls; transfer-syntax=1.2", "Content-Location": "http://h/x"}
    )
    assert (
        head == b"--b\r\nContent-Type: image/jls; transfer-syntax=1.2\r\nContent-Location: http://h/x\r\n\r\n"
    )
    assert closing(b"b") == b"--b--\r\n"
    with pytest.raises(ValueError, match="not printable ASCII"):
        part_head(b"b", {"Content-Location": "x\r\ny: z"})


def test_boundary_follows_the_representation_and_the_secret() -> None:
    one = boundary_from(b"secret", "etag", "application/dicom")
    assert re.fullmatch(rb"[0-9a-f]{40}", one)
    assert one == boundary_from(b"secret", "etag", "application/dicom")
    assert (
        len(
            {
                one,
                boundary_from(b"other", "etag", "application/dicom"),
                boundary_from(b"secret", "etaga", "pplication/dicom"),
            }
        )
        == 3
    )
    assert parse_media_type(multipart_type(one, "image/jls")) == (
        "multipart/related",
        {"type": "image/jls", "boundary": one.decode()},
    )
