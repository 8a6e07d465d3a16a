"""The destinations of the settings: AE title, host and port; and the TLS context of this server as a client.

The supervisor checks settings with it, so it imports none of the rooms that an association needs.
"""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple

from streamsrv.config import SettingsError
from streamsrv.settings import Settings
from streamsrv.settings.dimse import not_an_ae_title
from streamsrv.web.connection.certificates import CIPHERS, VERSIONS, ServerCertificate

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


def client_context(settings: Settings, certificate: ServerCertificate | None = None) -> ssl.SSLContext:
    """That of this server as a client. It shows `dimse_certificate`, else that of the server. Raises OSError:
    no password is asked for."""
    context = ssl.create_default_context(cafile=settings.dimse_ca or None)
    context.minimum_version = VERSIONS[settings.tls_min_version]
    context.set_ciphers(CIPHERS)
    chain, key = settings.dimse_certificate, settings.dimse_key
    if not chain:
        chain, key = settings.tls_certificate, settings.tls_key
        if certificate is not None:
            chain, key = f"/proc/self/fd/{certificate.pair}", ""
    if chain:
        context.load_cert_chain(chain, key or None, password="")
    return context
