"""One row of a table of settings, and the checks of its texts. A check returns why a text is refused, else an
empty text."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from typing import Any, TypeAlias

Value: TypeAlias = str | int | float | bool | tuple[str, ...]

# An origin as browsers send it (RFC 6454 6.2): scheme, host in ASCII, the port unless it is the default.
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?", re.IGNORECASE
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def never_an_origin(text: str) -> str:
    """Why no browser sends this text as Origin; empty for `*` and for origins."""
    found = _ORIGIN.fullmatch(text)
    if text in ("*", "null"):
        return ""
    if found is None and re.search(r'["\'{}]|^\[|\]$', text):
        return "it can never match: origins are separated by commas, without brackets and quotes: https://a.example,https://b.example"
    if found is None and "://" not in text:
        return f"it can never match: an origin has a scheme: write http://{text} or https://{text}"
    if found is None and "*" in text:
        return "it can never match: an origin has no wildcard; only `*` alone stands for every origin"
    if found is None:
        return (
            "it can never match: an origin is scheme, host and perhaps port, without a path, "
            "as in https://viewer.example:8443"
        )
    if found[2] and _DEFAULT_PORTS.get(found[1].lower()) == found[2]:
        return f"it can never match: browsers leave out the default port {found[2]}"
    if found[2] and not 0 < int(found[2]) < 65_536:
        return f"it can never match: there is no port {found[2]}"
    return ""


def never_a_host(text: str) -> str:
    """Why no Host header has this name; empty for `*`, names and addresses."""
    if (
        text == "*"
        or re.fullmatch(r"[A-Za-z0-9._-]+", text)
        or ("/" not in text and not never_a_network(text))
    ):
        return ""
    return "it can never match: a host is a name or an address, without scheme, port and path"


def never_a_network(text: str) -> str:
    """Why no peer has this address; empty for addresses and networks, and for `unix`."""
    if text == "unix":
        return ""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return "it can never match: a proxy is an IP address, or a network such as 10.0.0.0/8"
    return ""


def not_a_mode(text: str) -> str:
    return "" if re.fullmatch("0?[0-7]{3}", text) else "it is no octal mode such as 660"


def not_a_header(text: str) -> str:
    """RFC 9110 5.1."""
    return "" if re.fullmatch(r"[A-Za-z0-9-]*", text) else "it is no header, as X-Forwarded-User is"


def not_a_base(text: str) -> str:
    """Why absolute URLs cannot begin with this text; empty if they can."""
    if not text or re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", text, re.IGNORECASE):
        return ""
    return "it is no URL of a server: write https://pacs.example or https://pacs.example/dicom"


def not_an_issuer(text: str) -> str:
    """Why no token can come from this issuer; empty if one can (OpenID Connect Discovery 3)."""
    if not text or re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", text):
        return ""
    return "it is no URL of an issuer: write https://login.example/realms/hospital"


def not_an_endpoint(text: str) -> str:
    """Why this is no host with a port; empty if it is, or there is no text."""
    found = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", text)
    if not text or (found and 0 < int(found[1]) < 65_536):
        return ""
    return "write a host and a port, as in logs.example:6514"


def not_a_database(text: str) -> str:
    """Why this is no URL of a database; empty if it is, or there is no text."""
    if not text or re.fullmatch(r"postgres(ql)?://([^@/\s]*@)?([^@?\s%]|%[0-9A-Fa-f]{2})*(\?\S*)?", text):
        return ""
    return (
        "it is no URL of PostgreSQL: write postgresql://user@host/name. In a password `@`, `/` and `%` are "
        "%40, %2F and %25"
    )


def without_passwords(value: Value) -> Value:
    """User and password of a URL are replaced by `...`, also if the URL is wrong."""
    if not isinstance(value, str):
        return value
    without = re.sub(r":/+.*@", "://...@", value, flags=re.DOTALL)
    return re.sub(r"(?<=[?&])((?:ssl)?password)=[^&]*", r"\1=...", without)


def not_a_bucket(text: str) -> str:
    """Why this is no URL of a bucket; empty if it is, or there is no text."""
    if not text or re.fullmatch(r"s3://[A-Za-z0-9._-]+(/[A-Za-z0-9!_.*'()/-]*)?", text):
        return ""
    return "it is no URL of a bucket: write s3://bucket/prefix"


def setting(
    table: str,
    default: Any,
    unit: str,
    reason: str,
    *,
    least: float = 0,
    most: float = float("inf"),
    choices: tuple[str, ...] = (),
    advanced: bool = False,
    wrong: Callable[[str], str] = lambda text: "",
) -> Any:
    """An advanced setting serves measurements and tests: its default suits every server. `wrong` returns why
    a text, or an element of a list, is refused, or an empty text."""
    limits = {"least": least, "most": most, "choices": choices, "wrong": wrong}
    row = {"table": table, "unit": unit or " | ".join(choices), "reason": reason, "advanced": advanced}
    return dataclasses.field(default=default, metadata=row | limits)
