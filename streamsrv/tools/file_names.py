"""Names of files that Linux, macOS and Windows accept, from values of attributes."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Bytes of UTF-8: file systems allow 255, and a path of four such names stays below 4,096.
LONGEST = 120
_REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)


def safe_name(text: str) -> str:
    """One name without a separator, never empty. Equal texts give equal names; different texts may too,
    such as `A/B` and `A_B`."""
    name = _REFUSED.sub("_", unicodedata.normalize("NFC", text))
    name = name.encode("utf-8", "replace").decode("utf-8").strip(" ").rstrip(". ")
    if len(name.encode()) > LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[: LONGEST - 9].decode('utf-8', 'ignore').rstrip('. ')}-{digest}"
    if not name:
        return "_"
    return f"_{name}" if _DEVICES.match(name) or name.startswith(".") else name
