"""Header fields of answers and of their parts (RFC 9110 5.5, RFC 2045).

Rule: a field holds printable ASCII. Texts that may become one are checked when they arrive; a text that is
none raises ValueError here, and is never sent.
"""

from __future__ import annotations

from collections.abc import Sequence


def field_lines(fields: Sequence[tuple[str, str]]) -> str:
    """A line for each field, with its CRLF. Raises ValueError."""
    text = "".join([f"{name}: {value}\r\n" for name, value in fields])
    if text.count("\r") != len(fields) or text.count("\n") != len(fields):
        raise ValueError("a header field holds a line end")
    if not text.isascii() or not text.replace("\r\n", "").isprintable():
        raise ValueError("a header field holds a character that is not printable ASCII")
    return text
