"""The peers of the settings: the rights of each AE title, and its addresses.

An AE title is no credential: any machine can send it. So an entry may name the address too, and a peer that
no entry names is rejected.
"""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple, TypeAlias

from streamsrv.config import SettingsError
from streamsrv.dimse.destinations import client_context, destination_of
from streamsrv.errors import RuleError
from streamsrv.query.rules import Rule, rule_of
from streamsrv.settings import Settings
from streamsrv.settings.dimse import not_an_ae_title
from streamsrv.web.access.principal import CHANGING, NO_RIGHTS, Principal, Right
from streamsrv.web.access.roles import parse_entry
from streamsrv.web.connection.certificates import BadCertificate, check_mode

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
SETTING = "dimse_peers"


class PeerEntry(NamedTuple):
    """`network` is None for any address."""

    title: str
    network: Network | None
    rights: Right
    rule: Rule | None


def _entry(text: str) -> PeerEntry:
    """Raises SettingsError."""
    entry = parse_entry(text, SETTING)
    title, has_address, address = entry.role.partition("@")
    if reason := not_an_ae_title(title):
        raise SettingsError(f"{SETTING}: {text!r} is refused: {reason}")
    try:
        network = ipaddress.ip_network(address.strip(), strict=False) if has_address else None
    except ValueError:
        raise SettingsError(
            f"{SETTING}: {text!r} is refused: behind the @ is an address, or a network as 10.0.7.0/24"
        ) from None
    try:
        rule = rule_of(entry.conditions) if entry.conditions else None
    except RuleError as error:
        raise SettingsError(f"{SETTING}: {text!r} is refused: {error}") from None
    return PeerEntry(title.strip(), network, entry.rights, rule)


class DimsePeers:
    """Raises SettingsError for entries that cannot be read."""

    def __init__(self, settings: Settings) -> None:
        self._entries = [_entry(text) for text in settings.dimse_peers]
        self._any_peer = settings.dimse_any_peer
        self._withheld = CHANGING if settings.read_only else NO_RIGHTS

    def principal(self, title: str, address: str) -> Principal | None:
        """The rights of a peer with this AE title at this address; None for an unknown one."""
        entry = next((each for each in self._entries if _matches(each, title, address)), None)
        if entry is None and not self._any_peer:
            return None
        rights, rule = (entry.rights, entry.rule) if entry else (Right.STORE, None)
        return Principal(f"dimse:{title}", rights & ~self._withheld, rule)


def _matches(entry: PeerEntry, title: str, address: str) -> bool:
    if entry.title != title:
        return False
    if entry.network is None:
        return True
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found) in entry.network


def check_dimse(settings: Settings) -> None:
    """Raises SettingsError for a port that no peer could use."""
    DimsePeers(settings)
    for text in settings.dimse_destinations:
        destination_of(text)
    if settings.dimse_tls and not settings.tls_certificate:
        raise SettingsError("dimse_tls needs tls_certificate")
    if settings.dimse_ca and not os.access(settings.dimse_ca, os.R_OK):
        raise SettingsError(f"dimse_ca: {settings.dimse_ca} cannot be read")
    if settings.dimse_key and not settings.dimse_certificate:
        raise SettingsError("dimse_key has no effect without dimse_certificate")
    if settings.dimse_certificate:
        _check_certificate(settings)
    if settings.dimse_port and not settings.dimse_peers and not settings.dimse_any_peer:
        raise SettingsError(
            'dimse_port needs dimse_peers, as "CT1@10.0.7.3 -> store". To let every peer store, set '
            "dimse_any_peer"
        )


def _check_certificate(settings: Settings) -> None:
    """Raises SettingsError."""
    try:
        check_mode("dimse_key", settings.dimse_key or settings.dimse_certificate)
        client_context(settings)
    except BadCertificate as error:
        raise SettingsError(error.detail) from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise SettingsError(f"dimse_certificate: {settings.dimse_certificate}: {reason}") from None
