"""Names of files that Linux, macOS and Windows accept, from values of attributes.

Rules
- A value never adds a folder, leaves one, or hides a file. Two values may give one name.
- Names that differ only in case are one name on macOS and Windows: compare them with `folded`.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Collection, Mapping

from streamsrv.config import SettingsError

# Bytes of UTF-8: file systems allow 255, and a path of four such names stays below 4,096.
LONGEST = 120
_REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)


def safe_name(text: str) -> str:
    """One name without a separator, never empty. Equal texts give equal names; different texts may too,
    such as `A/B` and `A_B`."""
    readable = text.encode("utf-8", "replace").decode("utf-8")
    name = _REFUSED.sub("_", unicodedata.normalize("NFC", readable)).strip(" ").rstrip(". ")
    if len(name.encode()) > LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[: LONGEST - 9].decode('utf-8', 'ignore').rstrip('. ')}-{digest}"
    if not name:
        return "_"
    return f"_{name}" if _DEVICES.match(name) or name.startswith(".") else name


def folded(path: str) -> str:
    """Equal for paths that are one file on some system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


class FilePattern:
    """Paths such as `{PatientID}/{StudyInstanceUID}/{SOPInstanceUID}.dcm`, with slashes on every system."""

    def __init__(self, text: str, known: Collection[str]) -> None:
        """`known` are the keywords that it may have. Raises SettingsError."""
        self.keywords: set[str] = set()
        self._names = [self._parsed(name, known) for name in text.split("/")]

    def _parsed(self, name: str, known: Collection[str]) -> list[tuple[str, str | None]]:
        """(literal, keyword behind it) of one name of the path."""
        try:
            pieces = list(string.Formatter().parse(name))
        except ValueError as error:
            raise SettingsError(f"the layout {name!r}: {error}") from None
        if not pieces:
            raise SettingsError("the layout has an empty name: it begins with a slash, or ends with one")
        for _, keyword, form, conversion in pieces:
            if keyword is not None and (keyword not in known or form or conversion):
                raise SettingsError(
                    f"the layout has {{{keyword}}}, which is none of {', '.join(sorted(known))}"
                )
            self.keywords |= {keyword} if keyword else set()
        return [(literal, keyword) for literal, keyword, *_ in pieces]

    def path(self, values: Mapping[str, str]) -> str:
        """The path of a file. A value that is missing is `_`."""
        return "/".join(
            safe_name(
                "".join(literal + (safe_name(values.get(key, "")) if key else "") for literal, key in name)
            )
            for name in self._names
        )
