"""The destinations of the settings: AE title, host and port."""

from __future__ import annotations

import re
from typing import NamedTuple

from streamsrv.config import SettingsError
from streamsrv.settings.dimse import not_an_ae_title

SETTING = "dimse_destinations"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]]+):([0-9]{1,5})")


class MoveDestination(NamedTuple):
    title: str
    host: str
    port: int
    tls: bool = False


def destination_of(text: str) -> MoveDestination:
    """Raises SettingsError."""
    title, _, address = text.partition("@")
    place, _, option = address.strip().partition(" ")
    found = _HOST.fullmatch(place) if option.strip() in ("", "tls") else None
    reason = not_an_ae_title(title)
    if not reason and (found is None or not 0 < int(found[2]) < 1 << 16):
        reason = "behind the @ are host and port, as 10.0.8.5:104, and perhaps tls"
    if reason or found is None:
        raise SettingsError(f"{SETTING}: {text!r} is refused: {reason}")
    return MoveDestination(title.strip(), found[1].strip("[]"), int(found[2]), bool(option))


def destination_in(url: str) -> MoveDestination:
    """That of aet://TITLE@HOST:PORT, or of aets:// with TLS. Raises SettingsError."""
    scheme, _, place = url.partition("://")
    return destination_of(place + (" tls" if scheme == "aets" else ""))
