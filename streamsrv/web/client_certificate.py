"""The certificate that a client has proved in the handshake of its connection (RFC 5280)."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

# Attribute types of a subject with a short name (RFC 4514 3); others keep the name that OpenSSL gives.
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_SPECIAL = frozenset(',+"\\<>;=')
# Values of the setting `certificate_name` -> kinds of alternative names.
_KINDS = {"email": "email", "dns": "DNS", "uri": "URI"}


class ClientCertificate(NamedTuple):
    """`fingerprint` is the SHA-256 of the certificate. `found` is the certificate as `SSLObject.getpeercert`
    returns it. `until` is its end in seconds of `time.time()`."""

    fingerprint: str
    found: Mapping[str, Any]
    until: float

    def name(self, kind: str) -> str:
        """The subject (RFC 4514), its last common name, or the first alternative name of the kind; empty if
        there is none."""
        if kind in _KINDS:
            names = (value for each, value in self.found.get("subjectAltName", ()) if each == _KINDS[kind])
            return next(names, "")
        parts = [part for part in self.found.get("subject", ()) if part]
        if kind == "common-name":
            names = (value for part in reversed(parts) for each, value in part if each == "commonName")
            return next(names, "")
        return ",".join("+".join(_attribute(*each) for each in part) for part in reversed(parts))


def _attribute(name: str, value: str) -> str:
    """RFC 4514 2.3, with escapes, so that two subjects never have one text."""
    text = "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in value)
    if text.startswith(("#", " ")):
        text = "\\" + text
    if text.endswith(" ") and len(value) > 1:
        text = f"{text[:-1]}\\ "
    return f"{_SHORT.get(name, name)}={text}"


def certificate_of(engine: ssl.SSLObject) -> ClientCertificate | None:
    """None if the client has shown none."""
    encoded, found = engine.getpeercert(binary_form=True), engine.getpeercert()
    if not encoded or not found:
        return None
    until = ssl.cert_time_to_seconds(str(found["notAfter"]))
    return ClientCertificate(hashlib.sha256(encoded).hexdigest(), found, float(until))
