"""Header fields hold printable ASCII; anything else is refused where they are made."""

import pytest

from streamsrv.web.sending.response import head_bytes
from streamsrv.wire.answers import Answer, field_lines
from streamsrv.wire.multipart import part_head

BAD = [*map(chr, range(0x20)), "\x7f", "\x80", "\xe9", "\u2028", "\ud800", "\r\n", "\r\nSet-Cookie: a=b"]


def test_fields_are_lines():
    assert field_lines([("A", "1"), ("B", "two ~")]) == b"A: 1\r\nB: two ~\r\n"
    assert field_lines([]) == b""


@pytest.mark.parametrize("text", BAD, ids=repr)
def test_what_is_no_field_is_refused(text):
    for value in (f"1.2.3{text}", f"{text}1.2.3", text):
        with pytest.raises(ValueError, match="header field"):
            field_lines([("Content-Type", value), ("B", "2")])
        with pytest.raises(ValueError, match="header field"):
            field_lines([(f"X{text}", "1")])
        with pytest.raises(ValueError, match="header field"):
            part_head(b"edge", {"Content-Type": value})
        with pytest.raises(ValueError, match="header field"):
            head_bytes(Answer(200, [("Content-Type", value)]), [], "")
