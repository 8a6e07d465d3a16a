"""HTTP as RFC 9110, RFC 9457 and the Fetch standard want it, from a real server: every resource of the route
table, and everything that caches, ranges and other origins need."""

import email.utils
import json
import re
import zlib

import clinic as world
import pytest
import zstandard
from clinic import (
    CT_INSTANCES,
    CT_SERIES,
    CT_STUDY,
    LETTER,
    LETTER_SERIES,
    OTHER_STUDY,
    SLIDE,
    SLIDE_SERIES,
    SLIDE_STUDY,
    ask,
)

from streamsrv.web.cors import EXPOSE_HEADERS
from streamsrv.wire.resources import ROUTES, UNVERSIONED, Kind

VIEWER = "https://viewer.example"
STUDY = f"/studies/{CT_STUDY}"
INSTANCE = f"{STUDY}/series/{CT_SERIES}/instances/{CT_INSTANCES[0]}"
BULK = f"/studies/{OTHER_STUDY}/series/{LETTER_SERIES}/instances/{LETTER}/bulkdata/00420011"
VALUES = {
    "study": CT_STUDY,
    "series": CT_SERIES,
    "instance": CT_INSTANCES[0],
    "frames": "1",
    "frame": "1",
}
READABLE = [route for route in ROUTES if "GET" in route.methods]
# They come and go with the connection or the moment.
PASSING = {"date", "x-request-id", "transfer-encoding", "connection"}


# The slices have no bulk data besides their pixels; the letter has.
WITH_BULK = {"study": OTHER_STUDY, "series": LETTER_SERIES, "instance": LETTER, "path": "00420011"}


def path_of(route):
    return route.template.format(**(WITH_BULK if route.kind is Kind.BULKDATA else VALUES))


def by_template(routes):
    return pytest.mark.parametrize("route", routes, ids=[route.template or "/" for route in routes])


@by_template(READABLE)
@pytest.mark.parametrize("accept", ["", "*/*"])
def test_head_has_the_headers_of_get_and_no_body(clinic, route, accept):
    headers = {"Accept": accept} if accept else {}
    get, head = (ask(clinic.url + path_of(route), method, **headers) for method in ("GET", "HEAD"))
    assert (get.status, head.status) == (200, 200)
    assert head.body == b""
    lasting = {name: value for name, value in get.headers.items() if name not in PASSING}
    if "content-length" not in head.headers:  # an answer whose length nobody knows before its end
        assert "transfer-encoding" in get.headers
    assert lasting == {name: value for name, value in head.headers.items() if name not in PASSING}


@by_template([route for route in UNVERSIONED if route.kind is not Kind.WADO_URI])
def test_head_of_what_has_no_version(clinic, route):
    get, head = (ask(clinic.origin + route.template, method) for method in ("GET", "HEAD"))
    assert (get.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-length"] == str(len(get.body))


@by_template([route for route in READABLE if route.template not in ("/openapi.json", "/api.yaml")])
def test_validators_and_vary(clinic, route):
    url = clinic.url + path_of(route)
    first = ask(url)
    assert first.status == 200
    assert "accept" in first.headers["vary"].lower()
    assert first.headers["cache-control"] == "private, no-cache"
    etag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
    for sent in (etag, f'"x", W/{etag}', "*"):
        again = ask(url, If_None_Match=sent)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-type" not in again.headers
        assert "content-length" not in again.headers
        assert again.headers["vary"] == first.headers["vary"]
    assert ask(url, If_None_Match='"x"').body == first.body


def test_etags_differ_by_representation(clinic):
    accepts = (
        "application/dicom; transfer-syntax=*",
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.5",
        'multipart/related; type="application/dicom"; transfer-syntax=*',
    )
    found = [ask(clinic.url + INSTANCE, Accept=accept) for accept in accepts]
    assert [reply.status for reply in found] == [200] * 3
    assert len({reply.headers["etag"] for reply in found}) == 3
    metadata = f"{clinic.url}{INSTANCE}/metadata"
    kinds = ("application/dicom+json", "application/json", 'multipart/related; type="application/dicom+xml"')
    assert len({ask(metadata, Accept=kind).headers["etag"] for kind in kinds}) == 3
    # Answers hold absolute URLs, so the version and the host are part of the representation.
    other = ask(f"{clinic.origin}/v1{INSTANCE}/metadata", Accept=kinds[0])
    assert other.headers["etag"] != ask(metadata, Accept=kinds[0]).headers["etag"]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("query", ["", "?includefield=PatientName"])
@pytest.mark.parametrize(
    "accept", ["application/dicom+json", 'multipart/related; type="application/dicom+xml"']
)
def test_search_results_in_a_coding(clinic, coding, query, accept):
    url = f"{clinic.url}/instances{query}"
    plain = ask(url, Accept=accept)
    packed = ask(url, Accept=accept, Accept_Encoding=coding)
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept, Accept-Encoding"
    assert packed.headers["content-encoding"] == coding
    undone = zlib.decompress(packed.body, 31) if coding == "gzip" else zstd_undone(packed.body)
    assert undone == plain.body
    assert len(packed.body) < len(plain.body)
    head = ask(url, "HEAD", Accept=accept, Accept_Encoding=coding)
    assert (head.headers["content-encoding"], head.body) == (coding, b"")
    etag = packed.headers["etag"]
    assert head.headers["etag"] == etag != plain.headers["etag"]
    again = ask(url, Accept=accept, Accept_Encoding=coding, If_None_Match=etag)
    assert (again.status, again.headers["etag"], again.body) == (304, etag, b"")
    assert ask(url, Accept=accept, Accept_Encoding=coding, Range="bytes=0-9").body == plain.body[:10]


def zstd_undone(body):
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


@pytest.mark.parametrize(
    "path", [INSTANCE, f"{INSTANCE}/frames/1", f"{INSTANCE}/metadata", BULK, STUDY, f"{STUDY}/metadata"]
)
def test_ranges(clinic, path):
    url = clinic.url + path
    whole = ask(url)
    total, etag = len(whole.body), whole.headers["etag"]
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-length"] == str(total)
    for asked, first, last in (
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, total - 1),
        ("bytes=-7", total - 7, total - 1),
        (f"bytes=3-{total * 9}", 3, total - 1),
    ):
        part = ask(url, Range=asked)
        assert part.status == 206
        assert part.headers["content-range"] == f"bytes {first}-{last}/{total}"
        assert part.body == whole.body[first : last + 1]
        assert (part.headers["etag"], part.headers["content-type"]) == (etag, whole.headers["content-type"])
    assert ask(url, Range="bytes=0-9", If_Range=etag).status == 206
    for condition in ('"x"', f"W/{etag}", whole.headers.get("last-modified", "yesterday")):
        assert ask(url, Range="bytes=0-9", If_Range=condition).body == whole.body
    assert ask(url, Range="bytes=0-1,5-6").status == 200
    assert ask(url, Range="lines=0-1").status == 200
    beyond = ask(url, Range=f"bytes={total}-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{total}")
    assert beyond.media_type == "application/problem+json"
    assert ask(url, Range="bytes=0-9", If_None_Match=etag).status == 304


def test_last_modified_where_it_is_exact(clinic):
    for path in (INSTANCE, f"{INSTANCE}/frames/1", f"{INSTANCE}/metadata", f"{INSTANCE}/rendered", BULK):
        reply = ask(clinic.url + path)
        date = reply.headers["last-modified"]
        changed = email.utils.parsedate_to_datetime(date)
        assert 0 <= (world.now() - changed).total_seconds() < 600
        unchanged = ask(clinic.url + path, If_Modified_Since=date)
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert unchanged.headers["last-modified"] == date
        assert ask(clinic.url + path, If_Modified_Since=date, If_None_Match='"x"').status == 200
        assert ask(clinic.url + path, If_Modified_Since="Thu, 01 Jan 2015 00:00:00 GMT").status == 200
    # A deletion changes these and leaves no date.
    for path in (STUDY, f"{STUDY}/series/{CT_SERIES}/metadata", "/studies"):
        assert "last-modified" not in ask(clinic.url + path).headers


@by_template([*ROUTES, *UNVERSIONED])
def test_options(clinic, route):
    base = clinic.url if route in ROUTES else clinic.origin
    url = base + (path_of(route) if route.template else "")
    reply = ask(url, "OPTIONS")
    assert (reply.status, reply.media_type) == (200, "application/vnd.sun.wadl+xml")
    assert reply.headers["allow"] == ", ".join(route.allow)
    preflight = ask(url, "OPTIONS", Origin=VIEWER, Access_Control_Request_Method="GET")
    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == "*"
    as_json = ask(url, "OPTIONS", Accept="application/json").json()
    assert as_json["openapi"] == "3.1.0"


def test_preflights_say_what_viewers_need(clinic):
    reply = ask(
        f"{clinic.url}{INSTANCE}/frames/1",
        "OPTIONS",
        Origin=VIEWER,
        Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="accept,authorization",
    )
    allowed = {name.strip() for name in reply.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "accept", "content-type", "range", "if-none-match"} <= allowed
    assert "*" not in allowed  # would not cover authorization
    methods = {name.strip() for name in reply.headers["access-control-allow-methods"].split(",")}
    assert {"GET", "HEAD", "POST", "DELETE"} <= methods
    assert reply.headers["access-control-max-age"] == "7200"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/studies", 200), (f"{INSTANCE}/frames/1", 200), (f"{INSTANCE}/frames/9", 404), ("/studies/x", 400)],
)
def test_other_origins_may_read_answers_and_errors(clinic, path, status):
    reply = ask(clinic.url + path, Origin=VIEWER)
    assert reply.status == status
    assert reply.headers["access-control-allow-origin"] == "*"
    exposed = {name.strip().lower() for name in reply.headers["access-control-expose-headers"].split(",")}
    needed = "ETag Content-Range Content-Length Warning X-Total-Count Link Last-Modified"
    assert {name.lower() for name in needed.split()} <= exposed


def test_what_is_exposed_is_sent_somewhere():
    """A list for a browser, not a wish list."""
    assert all(re.fullmatch(r"[A-Za-z-]+", name.strip()) for name in EXPOSE_HEADERS.split(","))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/studies/not-a-uid", {}, 400),
        ("GET", "/studies?limit=x", {}, 400),
        ("GET", "/studies?Nonsense=1", {}, 400),
        ("GET", "/studies?after=x", {}, 400),
        ("GET", "/studies/%zz", {}, 400),
        ("GET", f"{INSTANCE}/frames/0", {}, 400),
        ("GET", "/studies/1.2.3", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("GET", f"{INSTANCE}/frames/7", {}, 404),
        ("DELETE", "/studies/1.2.3", {}, 404),
        ("PUT", STUDY, {}, 405),
        ("DELETE", "/studies", {}, 405),
        ("GET", STUDY, {"Accept": "text/html"}, 406),
        ("GET", "/studies", {"Accept": "image/png"}, 406),
        ("GET", "/studies", {"Accept-Charset": "iso-8859-1"}, 406),
        ("GET", "/studies?charset=iso-8859-1", {}, 406),
        ("GET", "/studies", {"Accept": "application/dicom+json; charset=iso-8859-1"}, 406),
        ("GET", f"{INSTANCE}/metadata", {"Accept-Charset": "utf-8;q=0, *"}, 406),
        ("GET", f"{STUDY}/metadata?charset=gb18030", {}, 406),
        ("GET", "/openapi.json", {"Accept-Charset": "utf-16"}, 406),
        (
            "POST",
            "/studies",
            {"Accept-Charset": "x", "Content-Type": "application/dicom", "Content-Length": "0"},
            406,
        ),
        ("GET", f"{INSTANCE}/rendered", {"Accept": "application/dicom"}, 406),
        ("OPTIONS", STUDY, {"Accept": "image/png"}, 406),
        ("GET", "/studies?" + "a" * 16384, {}, 414),
        ("GET", f"{INSTANCE}/frames/" + ",".join(["1"] * 8200), {}, 414),
        ("GET", STUDY, {"Range": "bytes=999999999-"}, 416),
        ("GET", STUDY, {"Cookie": "x" * 33000}, 431),
    ],
)
def test_every_error_is_a_problem(clinic, method, path, headers, status):
    reply = ask(clinic.url + path, method, **headers)
    assert (reply.status, reply.media_type) == (status, "application/problem+json")
    problem = reply.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(problem)
    assert problem["status"] == status
    assert problem["instance"] == reply.headers["x-request-id"]
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["api-supported-versions"] == "1, 2"
    as_text = ask(clinic.url + path, method, **(headers | {"Accept": "text/plain"}))
    if as_text.status in (414, 431):  # such a head is refused unread, and with it the Accept in it
        assert as_text.media_type == "application/problem+json"
    elif as_text.status == status:
        assert as_text.media_type == "text/plain"


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ('multipart/related; type="application/dicom"', b"x", 415),
        ('multipart/related; type="application/dicom"; boundary=x', b"no boundary", 400),
    ],
)
def test_errors_of_a_store(clinic, content_type, body, status):
    reply = ask(f"{clinic.url}/studies", "POST", body, Content_Type=content_type)
    assert (reply.status, reply.media_type) == (status, "application/problem+json")


@pytest.mark.parametrize(
    "path", ["/studies", f"{INSTANCE}/metadata", f"{INSTANCE}/frames/1", "/openapi.json"]
)
def test_character_sets_that_are_accepted(clinic, path):
    """Old browsers send such lists. Frames are no text."""
    plain = ask(clinic.url + path)
    for charset in ("iso-8859-1, utf-8;q=0.7, *;q=0.7", "*", "UTF8"):
        reply = ask(clinic.url + path, Accept_Charset=charset)
        assert (reply.status, reply.body) == (200, plain.body)
        assert "warning" not in reply.headers
    assert ask(f"{clinic.url}{path}?charset=utf-8", Accept_Charset="x").status == 200
    assert ask(f"{clinic.url}{INSTANCE}/frames/1", Accept_Charset="iso-8859-1").status == 200


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (INSTANCE, "application/dicom"),
        (f"{INSTANCE}/frames/1", "application/octet-stream"),
        (BULK, "application/octet-stream"),
        (BULK, "application/pdf"),
    ],
)
def test_single_parts_name_their_resource(clinic, path, accept):
    """PS3.18 8.4.2: as the parts of multipart answers do."""
    single = ask(clinic.url + path, Accept=accept)
    assert single.headers["content-location"] == clinic.url + path
    ((head, payload),) = ask(clinic.url + path, Accept=f'multipart/related; type="{accept}"').parts()
    assert f"Content-Location: {clinic.url}{path}".encode() in head
    assert payload == single.body
    again = ask(clinic.url + path, Accept=accept, If_None_Match=single.headers["etag"])
    assert (again.status, again.headers["content-location"]) == (304, clinic.url + path)


def test_what_would_do_is_named(clinic):
    would = ask(clinic.url + STUDY, Accept="text/html").json()["acceptable"]
    assert ask(clinic.url + STUDY, Accept=would[0]).status == 200
    assert "application/dicom" in " ".join(
        ask(f"{clinic.url}/studies", "POST", b"x", Content_Type="text/plain").json()["supported"]
    )
    assert ask(clinic.url + STUDY, "PUT").json()["allow"] == ["GET", "POST", "DELETE", "HEAD", "OPTIONS"]


def test_the_longest_url_that_is_taken(clinic):
    path = f"/v2/studies/{SLIDE_STUDY}/series/{SLIDE_SERIES}/instances/{SLIDE}/frames/"
    frames = ",".join(["1"] * 5000)
    assert len(path + frames) < 16384
    reply = ask(clinic.origin + path + frames, Accept='multipart/related; type="image/jpeg"')
    assert reply.status == 200
    assert len(reply.parts()) == 5000


def test_a_search_that_goes_on_over_http(clinic):
    seen, url = [], f"{clinic.url}/instances?limit=2&includefield=PatientName"
    while url:
        reply = ask(url)
        seen += [each["00080018"]["Value"][0] for each in reply.json()]
        link = reply.headers.get("link", "")
        url = link.partition(">")[0].strip("<")
        assert not link or link.endswith('; rel="next"')
    assert len(seen) == len(set(seen)) == 7


def test_max_age_is_a_setting_and_searches_are_fresh(server_factory):
    server = server_factory("--cache-max-age", "600", workers=1)
    stored = world.store(f"{server.url}/studies", [world.file_of(world.ct(1))])
    assert stored.headers["location"] == stored.headers["content-location"] == server.url + INSTANCE
    assert ask(stored.headers["location"]).status == 200
    assert ask(server.url + INSTANCE).headers["cache-control"] == "private, max-age=600"
    assert ask(f"{server.url}{INSTANCE}/metadata").headers["cache-control"] == "private, max-age=600"
    assert ask(f"{server.url}/studies").headers["cache-control"] == "private, no-cache"
    assert ask(f"{server.url}/studies/9").headers["cache-control"] == "no-store"


def test_search_limits_are_settings(server_factory):
    server = server_factory("--search-rows", "1", "--max-search-limit", "1", workers=1)
    world.store(f"{server.url}/studies", [world.file_of(world.ct(number)) for number in (1, 2)])
    broad = ask(f"{server.url}/instances")
    assert (broad.status, broad.media_type) == (413, "application/problem+json")
    assert "narrow" in json.loads(broad.body)["detail"]
    lowered = ask(f"{server.url}/studies?limit=2")
    assert lowered.headers["warning"] == '299 streamsrv "the limit was lowered to 1"'
