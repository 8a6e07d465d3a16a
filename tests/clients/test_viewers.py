"""What OHIF, Cornerstone3D and dicom-microscopy-viewer send, word for word, and what their code needs of the
answers.

A row of REQUESTS is a request as a browser was seen to make it, and the properties that its answer must have.
"""

import io
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import clinic as world
import numpy as np
import openjpeg
import pytest
from clinic import (
    CT_INSTANCES,
    CT_SERIES,
    CT_STUDY,
    LETTER,
    LETTER_SERIES,
    OTHER_STUDY,
    PALETTE,
    PALETTE_SERIES,
    SLIDE,
    SLIDE_SERIES,
    SLIDE_STUDY,
    ask,
)
from PIL import Image

E = f"/studies/{CT_STUDY}/series/{CT_SERIES}"
INSTANCE = f"{E}/instances/{CT_INSTANCES[0]}"
SLIDE_E = f"/studies/{SLIDE_STUDY}/series/{SLIDE_SERIES}"
SLIDE_I = f"{SLIDE_E}/instances/{SLIDE}"
PALETTE_I = f"/studies/{OTHER_STUDY}/series/{PALETTE_SERIES}/instances/{PALETTE}"
LETTER_I = f"/studies/{OTHER_STUDY}/series/{LETTER_SERIES}/instances/{LETTER}"
JSON = "application/dicom+json"
CORNERSTONE = "multipart/related; type=application/octet-stream; transfer-syntax=*"
MICROSCOPY = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
BULK = 'multipart/related; type="application/octet-stream"'
_UID = "1.2.840.10008.1.2.4."
OHIF_MICROSCOPY = ", ".join(
    [f'multipart/related; type="image/jls"; transfer-syntax={_UID}{n}' for n in (80, 81)]
    + [f'multipart/related; type="image/jp2"; transfer-syntax={_UID}{n}' for n in (90, 91)]
    + [f'multipart/related; type="image/jpx"; transfer-syntax={_UID}{n}' for n in (92, 93)]
    + ['multipart/related; type="application/octet-stream"; transfer-syntax=*']
    + [f'multipart/related; type="image/jpeg"; transfer-syntax={_UID}50']
)
# Cornerstone's loader of ranges has the Accept header above, so `urlArguments` of its options name HTJ2K.
HTJ2K = f"accept=image/jphc;transfer-syntax={_UID}202"
IMG = "image/jxl,image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
LIST = "limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060%2C00080090%2C00100030"
FILTERS = (
    "PatientName=*doe*&00100020=*1*&AccessionNumber=*A*&StudyDescription=*Th*&ModalitiesInStudy=CT"
    "&StudyDate=20240101-20240201"
)


STUDY_LIST = {
    *("00080050", "00080061", "00080090", "00081030", "00100010"),
    *("00100020", "00100030", "00201206", "00201208"),
}

# -- what answers must be


def studies(*uids):
    """The study list reads these attributes of each result."""

    def check(reply):
        found = reply.json() if reply.status == 200 else []
        assert reply.status in (200, 204)
        assert [each["0020000D"]["Value"][0] for each in found] == list(uids)
        for each in found:
            assert set(each) >= STUDY_LIST
            assert each["00080020"]["Value"]

    return check


def series(count, *tags):
    def check(reply):
        found = reply.json() if reply.status == 200 else []
        assert len(found) == count
        assert all(each["00201209"]["Value"][0] and set(tags) <= set(each) for each in found)

    return check


def metadata(reply):
    assert (reply.status, reply.media_type) == (200, JSON)
    for each in reply.json():
        assert {"00280010", "00280011", "00280100", "00083002"} <= set(each)
        assert "Value" not in each.get("7FE00010", {})
    assert len(reply.json()) in (2, 3)


def slide_metadata(reply):
    """Nested sequences in full, the number of frames, and an ICC profile behind an absolute URL."""
    metadata(reply)
    (found,) = (each for each in reply.json() if each["00080018"]["Value"] == [SLIDE])
    assert found["00280008"]["Value"] == [4]
    assert found["52009229"]["Value"][0]["00289110"]["Value"][0]["00280030"]["Value"]
    assert found["00400560"]["Value"][0]["00400551"]
    uri = found["00480105"]["Value"][0]["00282000"]["BulkDataURI"]
    assert urlsplit(uri).scheme == "http"
    profile = ask(uri, Accept=BULK)
    assert profile.status == 200
    assert profile.parts()[0][1] == world.ICC_PROFILE


def frame(media_type, syntax, payload):
    """One part, as Cornerstone looks for it: a head under 1000 bytes, with `Content-Type:` in that case."""

    def check(reply):
        assert reply.status == 200
        assert "multipart" in reply.headers["content-type"]
        assert "content-encoding" not in reply.headers
        assert reply.headers["content-length"] == str(len(reply.body))
        ((head, content),) = reply.parts()
        assert len(head) < 1000
        assert re.search(rb"^Content-Type: %b; transfer-syntax=%b\r?$" % (media_type, syntax), head, re.M)
        assert content == payload

    return check


def picture(kind, within=None):
    def check(reply):
        assert (reply.status, reply.media_type) == (200, f"image/{kind}")
        opened = Image.open(io.BytesIO(reply.body))
        assert within is None or max(opened.size) <= within

    return check


def whole_instance(reply):
    assert reply.status == 200
    ((_, content),) = reply.parts()
    assert content[128:132] == b"DICM"
    assert content == world.file_of(world.ct(1))


def palette_table(reply):
    ((head, content),) = reply.parts()
    assert head.startswith(b"Content-Type: application/octet-stream")
    assert content == world.palette().RedPaletteColorLookupTableData


def document(reply):
    """OHIF shows it in a frame. There Chromium refuses to show a PDF whose policy is a sandbox."""
    assert (reply.status, reply.media_type, reply.body) == (200, "application/pdf", world.PDF)
    assert reply.headers["content-security-policy"].startswith("default-src 'none';")
    assert "sandbox" not in reply.headers["content-security-policy"]


def is_part(first, last):
    def check(reply):
        assert reply.status == 206
        total = int(reply.headers["content-range"].rpartition("/")[2])
        assert reply.headers["content-range"] == f"bytes {first}-{min(last, total - 1)}/{total}"
        assert "multipart" in reply.headers["content-type"]

    return check


@dataclass
class Row:
    who: str
    path: str
    accept: str
    check: object
    range: str = ""


RAW = frame(b"application/octet-stream", b"1.2.840.10008.1.2.1", world.ct_pixels(1).tobytes())
JPEG = frame(b"image/jpeg", b"1.2.840.10008.1.2.4.50", world.tiles(1, 4)[2])
ALL = (SLIDE_STUDY, CT_STUDY, OTHER_STUDY)
REQUESTS = [
    Row("OHIF, study list", f"/studies?{LIST}", JSON, studies(*ALL)),
    Row("OHIF, its filters", f"/studies?{FILTERS}&{LIST}", JSON, studies(CT_STUDY)),
    Row("OHIF, nothing found", f"/studies?PatientName=*nobody*&{LIST}", JSON, studies()),
    Row("OHIF, opening a study", f"/studies?{LIST}&StudyInstanceUID={CT_STUDY}", JSON, studies(CT_STUDY)),
    Row(
        "OHIF, its series",
        f"/studies/{CT_STUDY}/series?includefield=00080021,00080031,0008103E,00200011",
        JSON,
        series(1, "00080021", "00080031", "0008103E", "00200011", "00080060"),
    ),
    Row("OHIF, prior studies", f"/studies?00100020=P-1&{LIST}", JSON, studies(CT_STUDY, OTHER_STUDY)),
    Row("all, each series", f"{E}/metadata", JSON, metadata),
    Row("Cornerstone, pixels", f"{INSTANCE}/frames/1", CORNERSTONE, RAW),
    Row("Cornerstone, JPEG", f"{SLIDE_I}/frames/3", CORNERSTONE, JPEG),
    Row("Cornerstone, first part", f"{INSTANCE}/frames/1", CORNERSTONE, is_part(0, 4095), "bytes=0-4095"),
    Row("Cornerstone, the rest", f"{INSTANCE}/frames/1", CORNERSTONE, is_part(4096, 1 << 30), "bytes=4096-"),
    Row("DMV, series", f"/studies/{SLIDE_STUDY}/series?Modality=SM", JSON, series(1, "00080060")),
    Row("DMV, metadata", f"{SLIDE_E}/metadata", JSON, slide_metadata),
    Row("DMV, tiles", f"{SLIDE_I}/frames/3", MICROSCOPY, JPEG),
    Row("OHIF microscopy, tiles", f"{SLIDE_I}/frames/3", OHIF_MICROSCOPY, JPEG),
    Row("OHIF, palette", f"{PALETTE_I}/bulkdata/00281201", BULK, palette_table),
    Row("OHIF, thumbnail", f"{INSTANCE}/thumbnail?viewport=256,256", "image/jpeg", picture("jpeg", 256)),
    Row("OHIF, of a series", f"{E}/thumbnail?viewport=256,256", "image/jpeg", picture("jpeg", 256)),
    Row("OHIF, rendered", f"{INSTANCE}/rendered?accept=image/jpeg", BULK, picture("jpeg")),
    Row("OHIF, thumbnailDirect", f"{INSTANCE}/thumbnail?accept=image/jpeg", IMG, picture("jpeg")),
    Row("OHIF, SEG", INSTANCE, 'multipart/related; type="application/dicom"', whole_instance),
    Row("OHIF, PDF", f"{LETTER_I}/rendered", PAGE, document),
    Row("OHIF, PDF as bulk data", f"{LETTER_I}/bulkdata/00420011?accept=application/pdf", BULK, document),
]


@pytest.mark.parametrize("row", REQUESTS, ids=lambda row: row.who)
def test_a_request_as_it_was_seen(clinic, row):
    headers = {"Accept": row.accept, "Origin": "https://viewer.example"}
    if row.range:
        headers["Range"] = row.range
    reply = ask(clinic.url + row.path, **headers)
    row.check(reply)
    assert reply.headers["access-control-allow-origin"] == "*"


def test_htj2k_by_arguments_of_the_url(clinic):
    """The loader requests a first range and then the rest, and knows the syntax by the Content-Type."""
    url = f"{clinic.url}{INSTANCE}/frames/1?{HTJ2K}"
    first, rest = (ask(url, Accept=CORNERSTONE, Range=each) for each in ("bytes=0-499", "bytes=500-"))
    assert (first.status, rest.status) == (206, 206)
    for reply in (first, rest):
        assert reply.headers["content-type"] == f"image/jphc; transfer-syntax={_UID}202"
    frame = first.body + rest.body
    assert first.headers["content-range"] == f"bytes 0-499/{len(frame)}"
    assert np.array_equal(openjpeg.decode(frame), world.ct_pixels(1))


@pytest.mark.parametrize("path", [f"{INSTANCE}/frames/1", f"{SLIDE_I}/frames/3"])
def test_ranges_can_be_glued_together(clinic, path):
    """The body is the same each time, boundary included, whichever worker answers."""
    whole = ask(clinic.url + path, Accept=CORNERSTONE).body
    for _ in range(6):
        parts = [
            ask(clinic.url + path, Accept=CORNERSTONE, Range=each) for each in ("bytes=0-99", "bytes=100-")
        ]
        assert b"".join(part.body for part in parts) == whole


def test_what_is_quoted_is_preflighted_and_what_has_a_token_always(clinic):
    for asked in ("accept", "authorization", "accept,authorization,range"):
        reply = ask(
            f"{clinic.url}{SLIDE_I}/frames/1",
            "OPTIONS",
            Origin="https://viewer.example",
            Access_Control_Request_Method="GET",
            Access_Control_Request_Headers=asked,
        )
        assert reply.status == 204
        allowed = reply.headers["access-control-allow-headers"].replace(" ", "").split(",")
        assert set(asked.split(",")) <= set(allowed)
