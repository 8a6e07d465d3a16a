"""The registry as a table for people: what is read, what is written, by which library, what to install."""

from __future__ import annotations

from framecodecs.libraries import BUILT_IN, LIBRARIES
from framecodecs.registry import SYNTAXES, FrameSyntax

HEADINGS = ("Transfer syntax", "UID", "Media type of a frame", "Lossy", "Decoded by", "Encoded by")


def _names(libraries: tuple[str, ...]) -> str:
    """Libraries in order of preference."""
    return ", ".join("built in" if name == BUILT_IN else name for name in libraries) or "passes through"


def cells(row: FrameSyntax) -> tuple[str, ...]:
    lossy = "yes" if row.lossy else "no"
    encoders = _names(row.encode_libraries) if row.encode_libraries else "-"
    return row.name, row.uid, row.media_type, lossy, _names(row.decode_libraries), encoders


def _line(texts: tuple[str, ...]) -> str:
    return f"| {' | '.join(texts)} |"


def syntaxes_markdown() -> str:
    """A row a transfer syntax; the first library that is installed does the work."""
    lines = [
        _line(HEADINGS),
        _line(("---",) * len(HEADINGS)),
        *(_line(cells(row)) for row in SYNTAXES.values()),
    ]
    return "\n".join(lines) + "\n"


def libraries_markdown() -> str:
    """A row a library."""
    rows = [
        (library.package, library.licence, f"`{library.hint}`")
        for library in LIBRARIES.values()
        if library.package != BUILT_IN
    ]
    lines = [_line(("Library", "Licence", "Install")), _line(("---",) * 3), *map(_line, rows)]
    return "\n".join(lines) + "\n"
