"""The settings about DICOM's own network protocol (PS3.8)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from streamsrv.settings.access import AccessSettings
from streamsrv.settings.rows import setting

TABLES_OF_DIMSE = {"dimse": "DICOM's own network protocol: C-STORE, C-FIND, C-GET, C-MOVE, commitment"}
(_dimse,) = (partial(setting, table) for table in TABLES_OF_DIMSE)


def not_an_ae_title(text: str) -> str:
    """Why this is no application entity title; empty if it is (PS3.5 6.2, AE)."""
    if re.fullmatch(r"(?=.*[^ ])[ -\[\]-~]{1,16}", text):
        return ""
    return "an AE title has 1 to 16 characters of ASCII, without a backslash"


@dataclass(frozen=True, slots=True)
class DimseSettings(AccessSettings):
    """A part of `Settings`."""

    dimse_port: int = _dimse(
        0,
        "TCP port",
        "The port for associations (PS3.8). The registered one is 11112. 0: no DIMSE.",
        most=65535,
    )
    dimse_host: str = _dimse(
        "127.0.0.1",
        "address",
        "The address of `dimse_port`. The protocol has no passwords: open it to a network of devices only.",
    )
    aet: str = _dimse(
        "STREAMSRV",
        "AE title",
        "The AE title of this server. Associations that call another one are rejected.",
        wrong=not_an_ae_title,
    )
    dimse_peers: tuple[str, ...] = _dimse(
        (),
        "AET[@ADDRESS] -> RIGHTS [where ...]",
        "Peers by AE title, and perhaps by address or network: `CT1@10.0.7.0/24 -> store`. The first entry "
        "that matches counts. Rights and conditions are those of `oidc_roles`.",
    )
    dimse_destinations: tuple[str, ...] = _dimse(
        (),
        "AET@HOST:PORT [tls]",
        "The peers to which C-MOVE sends instances, and Storage Commitment its reports: "
        "`PACS@10.0.8.5:104`, `RIS@ris.example.org:2762 tls`. A peer that asks for a C-MOVE needs the right "
        "`read`.",
    )
    dimse_tls: bool = _dimse(
        False,
        "yes or no",
        "The port speaks TLS, with `tls_certificate`, and asks for certificates of peers as the port of HTTP "
        "does (`tls_client_ca`). The registered port is 2762.",
    )
    dimse_ca: str = _dimse(
        "",
        "file",
        "Authorities in PEM of the destinations with TLS. Empty: those of the system.",
    )
    dimse_certificate: str = _dimse(
        "",
        "file",
        "The certificate in PEM, with its chain, that destinations with TLS and peers of forwarding "
        "(`aets://`) are shown. Empty: `tls_certificate`.",
    )
    dimse_key: str = _dimse(
        "",
        "file",
        "The private key of `dimse_certificate`, in PEM and without a password. Empty: it is in that file.",
    )
    dimse_any_peer: bool = _dimse(
        False,
        "yes or no",
        "Lets every peer store, with any AE title and from any address. Entries of `dimse_peers` come first.",
    )
    max_associations: int = _dimse(
        100,
        "associations a worker",
        "Another one is rejected for the moment (temporary congestion).",
        least=1,
    )
    max_associations_per_peer: int = _dimse(
        32,
        "associations a worker",
        "The same limit for one address (local limit exceeded). 0: no limit.",
    )
    dimse_max_pdu: int = _dimse(
        131_072,
        "bytes",
        "The longest P-DATA-TF PDU that is received. Each association holds twice as many bytes.",
        least=4096,
        most=1 << 20,
    )
    dimse_idle_timeout: float = _dimse(
        300.0,
        "seconds",
        "An association without a message for this time is aborted. `head_timeout` is that of its request, "
        "and `min_rate` the least rate of an instance.",
        least=0.1,
    )
