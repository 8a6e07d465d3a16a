"""The tables of documents that are made from tables of the code. As a script it writes the pages."""

import re
from pathlib import Path

from framecodecs import registry
from framecodecs.libraries import BUILT_IN, LIBRARIES
from streamsrv.dicom.syntaxes import SYNTAXES
from streamsrv.errors import AlreadyStored, InstanceRefused, NotAuthorized, NotDicom, StudyMismatch
from streamsrv.pixels.transcoding import TARGETS
from streamsrv.query.attributes import Level, Returned, attributes_at
from streamsrv.search.parameters import PARAMETERS
from streamsrv.web.cors import ALLOW_HEADERS, EXPOSE_HEADERS
from streamsrv.web.operations import STORE_TYPES, WADL, operations
from streamsrv.wire.accept import (
    FRAME_SENT_AS,
    IMAGE_TYPES,
    INSTANCE_SENT_AS,
    MEDIA_SYNTAXES,
    METADATA_OFFERS,
    PAGE_TYPES,
    RULES,
    STORE_OFFERS,
    THUMBNAIL_TYPES,
    Offer,
)
from streamsrv.wire.mediatypes import OCTETS
from streamsrv.wire.resources import ROUTES, VERSIONS, Kind

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("api.md", "conformance.md", "transfer-syntaxes.md")
TRANSACTIONS = {
    "POST": "Store",
    "DELETE": "Delete",
    "OPTIONS": "Retrieve Capabilities",
}
RETURNED = {
    Returned.ALWAYS: "always",
    Returned.PRESENT: "if it has a value",
    Returned.ASKED: "if asked for or matched",
}


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def code(text):
    return f"`{text}`" if text else ""


def codes(texts):
    return ", ".join(map(code, texts))


def _transaction(method, route):
    if method in TRANSACTIONS or route.kind is Kind.SERVICE:
        return TRANSACTIONS.get(method, "Retrieve Capabilities")
    if route.kind in (Kind.CHANGEFEED, Kind.LATEST):
        return "Change Feed (an extension)"
    return "Search" if route.kind is Kind.SEARCH else "Retrieve"


def resources():
    rows = [
        (_transaction(method, route), code(f"{method} {route.template or '/'}"))
        for route in ROUTES
        for method in route.allow
        if method not in ("HEAD", "OPTIONS") or (method == "OPTIONS" and route.kind is Kind.SERVICE)
    ]
    return table(("transaction", "resource"), sorted(rows, key=lambda row: row[0]))


def media_types():
    rows = {}
    for route in ROUTES:
        for operation in operations(route):
            if operation.method == "GET":
                rows.setdefault(str(route.kind), operation.answers[200])
    return table(
        ("resource", "media types of answers"), [(kind, codes(types)) for kind, types in rows.items()]
    )


def statuses():
    found = {}
    for route in ROUTES:
        for operation in operations(route):
            if operation.method != "HEAD":
                found.setdefault(_transaction(operation.method, route), set()).update(operation.answers)
    return table(
        ("transaction", "status codes"),
        [(name, ", ".join(map(str, sorted(each)))) for name, each in sorted(found.items())],
    )


def stored():
    rows = [
        ("bodies", codes(STORE_TYPES)),
        ("parts", codes(("application/dicom", "application/dicom+json", "application/dicom+xml"))),
        ("responses", codes(map(str, STORE_OFFERS))),
        ("content codings of bodies", code("gzip")),
    ]
    return table(("store", "media types"), rows)


def failures():
    rows = [
        (error.failure_reason, f"{error.failure_reason:04X}", meaning)
        for error, meaning in (
            (InstanceRefused, "readable, yet over a limit"),
            (
                NotAuthorized,
                "outside the rule of the client, or one with the same three UIDs is stored that is",
            ),
            (NotDicom, "not a DICOM Part 10 file, or one of its UIDs is missing or malformed"),
            (StudyMismatch, "belongs to another study than the one in the URL"),
            (AlreadyStored, "stored already"),
        )
    ]
    return table(("Failure Reason (0008,1197)", "hex", "meaning"), rows)


def syntaxes():
    rows = []
    for row in SYNTAXES.values():
        sent = INSTANCE_SENT_AS.get(row.uid, row.uid)
        rows.append((row.name, code(row.uid), "as stored" if sent == row.uid else SYNTAXES[sent].name))
    return table(("transfer syntax", "UID", "an instance as stored (`transfer-syntax=*`) goes out as"), rows)


def frame_types():
    rows = [(code(name), codes(uids)) for name, uids in MEDIA_SYNTAXES.items()]
    return table(("media type of frames", "transfer syntaxes, the default first"), rows)


def keys(level):
    rows = [
        (
            row.keyword,
            ".".join(f"({tag[:4]},{tag[4:]})" for tag in row.path),
            row.vr,
            "required" if row.required else "optional",
            RETURNED[row.returned],
        )
        for row in attributes_at(level)
    ]
    return table(("attribute", "tag", "VR", "matching", "returned"), rows)


def parameters():
    extensions = {"orderby", "after"}
    rows = [
        (code(name), text.removesuffix(". An extension"), "extension" if name in extensions else "PS3.18")
        for name, text in PARAMETERS.items()
    ]
    return table(("query parameter", "meaning", "from"), rows)


def headers():
    def listed(text):
        return codes(name.strip() for name in text.split(","))

    rows = [
        ("versions in the path", codes(f"/v{version}" for version in VERSIONS)),
        ("request headers of other origins", listed(ALLOW_HEADERS)),
        ("answer headers that other origins see", listed(EXPOSE_HEADERS)),
        ("metadata and search results", codes(map(str, METADATA_OFFERS))),
        ("capabilities", codes((WADL, "application/json"))),
    ]
    return table(("subject", "values"), rows)


def decision_rows():
    """Resource, range, and the representation that goes out."""
    forms = ("", "; transfer-syntax=*", "; transfer-syntax=UID")
    rows = [
        (str(resource), f"{media_type}{form}", str(takes))
        for (resource, media_type), rule in RULES.items()
        for form, takes in zip(forms, rule, strict=True)
    ]
    bulk = f'multipart/related; type="{OCTETS}"'
    rows.append(("study, series, instance", bulk, "the bulk data of the instances"))
    offered = {
        "metadata, search": METADATA_OFFERS,
        "store response": STORE_OFFERS,
        "rendered": [Offer(media_type) for media_type in IMAGE_TYPES],
        "rendered report": [Offer(media_type) for media_type in PAGE_TYPES],
        "thumbnail": [Offer(media_type) for media_type in THUMBNAIL_TYPES],
        "bulk data": [Offer(OCTETS, multipart=True), Offer(OCTETS)],
    }
    for resource, offers in offered.items():
        rows += [(resource, str(each), "if asked for" if at else "default") for at, each in enumerate(offers)]
    return rows


def decisions():
    return table(
        ("resource", "acceptable range", "representation"),
        [(resource, code(asked), taken) for resource, asked, taken in decision_rows()],
    )


def codecs():
    def names(libraries, without):
        return ", ".join("built in" if name == BUILT_IN else name for name in libraries) or without

    heads = ("Transfer syntax", "UID", "Media type of a frame", "Lossy", "Decoded by", "Encoded by")
    rows = [
        (
            row.name,
            row.uid,
            row.media_type,
            "yes" if row.lossy else "no",
            names(row.decode_libraries, "passes through"),
            names(row.encode_libraries if row.uid in TARGETS else (), "-"),
        )
        for row in registry.SYNTAXES.values()
    ]
    return table(heads, rows)


def libraries():
    rows = [
        (library.package, library.licence, code(library.hint))
        for library in LIBRARIES.values()
        if library.package != BUILT_IN
    ]
    return table(("Library", "Licence", "Install"), rows)


def never_sent():
    rows = [
        (SYNTAXES[uid].name, code(uid), SYNTAXES[sent].name)
        for uid, sent in FRAME_SENT_AS.items()
        if uid in SYNTAXES
    ]
    return table(("frames stored in", "UID", "go out in"), rows)


TABLES = {
    "resources": resources,
    "media types": media_types,
    "status codes": statuses,
    "store": stored,
    "failure reasons": failures,
    "transfer syntaxes": syntaxes,
    "frames": frame_types,
    "study keys": lambda: keys(Level.STUDY),
    "series keys": lambda: keys(Level.SERIES),
    "instance keys": lambda: keys(Level.INSTANCE),
    "query parameters": parameters,
    "headers": headers,
    "decisions": decisions,
    "never sent": never_sent,
    "codecs": codecs,
    "libraries": libraries,
}
# How a table stands in a page.
_PLACE = re.compile(r"(<!-- table: ([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables_of(page):
    return {name: text.strip("\n") for _, name, text, _ in _PLACE.findall(page)}


def filled(page):
    return _PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[4]}", page)


if __name__ == "__main__":
    for name in PAGES:
        path = DOCS / name
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
