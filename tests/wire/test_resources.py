"""streamsrv/wire/resources.py"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.errors import BadRequest, MethodNotAllowed, NotFound, RequestError, URITooLong
from streamsrv.wire.resources import (
    _PLAIN_ROUTES,
    MAX_FRAMES,
    MAX_PARAMETERS,
    PAGES,
    ROUTES,
    UNVERSIONED,
    Kind,
    ResourceLevel,
    base_url,
    bulk_url,
    frame_url,
    instance_url,
    parse_query,
    study_url,
    target_in_table,
    target_of,
)

STUDY, SERIES, INSTANCE = "1.2.840.1", "1.2.840.2", "1.2.840.3"
KEY = (STUDY, SERIES, INSTANCE)
AT = f"/v2/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}"
VALUES = {
    "study": STUDY,
    "series": SERIES,
    "instance": INSTANCE,
    "frames": "3,1,3",
    "frame": "7",
    "path": "00480105/0/00282000",
}

# The interface as it is promised: a change here is a change for clients.
PROMISED = {
    "": "GET HEAD OPTIONS",
    "/studies": "GET POST HEAD OPTIONS",
    "/series": "GET HEAD OPTIONS",
    "/instances": "GET HEAD OPTIONS",
    "/studies/{study}/series": "GET HEAD OPTIONS",
    "/studies/{study}/instances": "GET HEAD OPTIONS",
    "/studies/{study}/series/{series}/instances": "GET HEAD OPTIONS",
    "/studies/{study}": "GET POST DELETE HEAD OPTIONS",
    "/studies/{study}/series/{series}": "GET DELETE HEAD OPTIONS",
    "/studies/{study}/series/{series}/instances/{instance}": "GET DELETE HEAD OPTIONS",
    **{
        f"{level}/{below}": "GET HEAD OPTIONS"
        for level in (
            "/studies/{study}",
            "/studies/{study}/series/{series}",
            "/studies/{study}/series/{series}/instances/{instance}",
        )
        for below in ("metadata", "rendered", "thumbnail", "bulkdata", "pixeldata")
    },
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}": "GET HEAD OPTIONS",
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}/rendered": "GET HEAD OPTIONS",
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frame}/thumbnail": "GET HEAD OPTIONS",
    "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{path}": "GET HEAD OPTIONS",
    "/changefeed": "GET HEAD OPTIONS",
    "/changefeed/latest": "GET HEAD OPTIONS",
    "/openapi.json": "GET HEAD OPTIONS",
    "/api.yaml": "GET HEAD OPTIONS",
}


def test_routes_are_those_promised() -> None:
    assert {route.template: " ".join(route.allow) for route in ROUTES} == PROMISED
    assert len(ROUTES) == len(PROMISED)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.template)
@pytest.mark.parametrize("version", [1, 2])
def test_each_route_is_reached_with_its_values(route, version: int) -> None:
    target = target_of(f"/v{version}" + route.template.format(**VALUES))
    assert target.route is route
    assert (target.kind, target.level, target.version) == (route.kind, route.level, version)
    for name in ("study", "series", "instance"):
        assert getattr(target, name) == (VALUES[name] if f"{{{name}}}" in route.template else None)
    assert target.frames == (
        (3, 1, 3) if "{frames}" in route.template else (7,) if "{frame}" in route.template else ()
    )
    assert target.bulk == (VALUES["path"] if "{path}" in route.template else None)


@pytest.mark.parametrize("route", UNVERSIONED, ids=lambda route: route.template)
def test_some_routes_have_no_version(route) -> None:
    """The URLs in their answers have the newest one."""
    target = target_of(route.template)
    assert (target.route, target.version, target.study) == (route, 2, None)
    with pytest.raises(NotFound, match="no such resource"):
        target_of("/v2" + route.template)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v2/", ""),
        ("/v2//studies", "/studies"),
        ("/v2/studies/", "/studies"),
        ("/v2//studies/", "/studies"),
        ("/v1//studies//1.2", "/studies/{study}"),
        ("/v1/studies//1.2/metadata", "/studies/{study}/metadata"),
        ("/v1//series", "/series"),
        ("/v2/%73tudies/1%2E2", "/studies/{study}"),
        ("/v2/studies/001.02", "/studies/{study}"),
        ("/v2/studies/" + "1" * 64, "/studies/{study}"),
    ],
)
def test_spellings_that_are_tolerated(path: str, template: str) -> None:
    assert target_of(path).route.template == template


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/studies",
        "/v0/studies",
        "/v3/studies",
        "/v20/studies",
        "/V2/studies",
        "/dicom-web/studies",
        "/health",
        "/health/live/x",
        "//v2/studies",
        "*",
        "/v99999/studies",
    ],
)
def test_no_or_another_version_is_told_which_there_are(path: str) -> None:
    with pytest.raises(NotFound, match=r"supported are /v1 and /v2"):
        target_of(path)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/study",
        "/v2/Studies",
        "/v2///studies",
        "/v2/studies///1.2",
        f"/v2/studies/{STUDY}/",
        f"/v2/studies/{STUDY}/frames",
        f"/v2/studies/{STUDY}/series{SERIES}/instances/{INSTANCE}",
        f"/v2/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}/",
        f"{AT}/frames",
        f"{AT}/frames/1/metadata",
        f"{AT}/frames/1/2",
        f"{AT}/metadata/x",
        f"/v2/studies/{STUDY}%2Fmetadata/metadata/x",
        f"{AT}/frames/99999999999",
    ],
)
def test_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        target_of(path)


@pytest.mark.parametrize(
    "uid",
    [
        "",
        "a",
        "1.2.a",
        ".1",
        "1.",
        "1..2",
        "1" * 65,
        "1.2 ",
        "1.2%00",
        "1.2%0A",
        "-1",
        "1%2F2",
        "%D9%A1.2",
        "1.2+",
        "..",
        "series",
        "1,2",
    ],
)
def test_malformed_uid_is_named(uid: str) -> None:
    paths = {
        "series": f"/v2/studies/1.2/series/{uid}/metadata",
        "instance": f"/v2/studies/1.2/series/1.3/instances/{uid}/frames/1",
    }
    if uid:  # an empty segment after `studies` is passed over
        paths["study"] = f"/v2/studies/{uid}/metadata"
    for name, path in paths.items():
        with pytest.raises(BadRequest, match=f"the {name} UID"):
            target_of(path)


def test_an_empty_uid_never_shortens_a_path() -> None:
    # A script with an empty variable must not delete the study when it means a series.
    for path in ("/v2/studies//series/1.3", "/v2/studies//series/1.3/instances/1.4", "/v2/studies/1.2/"):
        with pytest.raises(NotFound):
            target_of(path)
    for path in ("/v2/studies/1.2/series/", "/v2/studies/1.2/series//instances/1.4", f"{AT}/bulkdata/"):
        with pytest.raises(BadRequest):
            target_of(path)


@pytest.mark.parametrize(
    ("text", "frames"),
    [("1", (1,)), ("2,1,2", (2, 1, 2)), ("007", (7,)), ("1%2C2", (1, 2)), ("4294967296", (4294967296,))],
)
def test_frame_lists_keep_order_and_repeats(text: str, frames: tuple[int, ...]) -> None:
    assert target_of(f"{AT}/frames/{text}").frames == frames
    assert target_of(f"{AT}/frames/{text}/rendered").frames == frames


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "00",
        "-1",
        "+1",
        "1,",
        ",1",
        "1,,2",
        "1.0",
        "a",
        "1;2",
        "1 ",
        "%201",
        "1-3",
        "0x1",
        "%D9%A1",
        "1%0A",
        "1e3",
    ],
)
def test_malformed_frame_list(text: str) -> None:
    with pytest.raises(BadRequest, match="not a whole number from 1"):
        target_of(f"{AT}/frames/{text}")


def test_frame_lists_are_bounded() -> None:
    assert len(target_of(f"{AT}/frames/" + ",".join(["1"] * MAX_FRAMES)).frames) == MAX_FRAMES
    with pytest.raises(URITooLong, match="at most 10000 numbers"):
        target_of(f"{AT}/frames/" + ",".join(["1"] * (MAX_FRAMES + 1)))
    with pytest.raises(NotFound, match="no SOP instance has a frame 9"):
        target_of(f"{AT}/frames/" + "9" * 50_000)


def test_thumbnail_of_one_frame_only() -> None:
    assert target_of(f"{AT}/frames/2/thumbnail").frames == (2,)
    with pytest.raises(BadRequest, match="one frame"):
        target_of(f"{AT}/frames/2,3/thumbnail")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("7fe00010", "7FE00010"),
        ("00480105/0/00282000", "00480105/0/00282000"),
        ("0040a730/12/0040a730/0/0008113a", "0040A730/12/0040A730/0/0008113A"),
    ],
)
def test_bulk_data_paths(text: str, path: str) -> None:
    assert target_of(f"{AT}/bulkdata/{text}").bulk == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "7FE0001",
        "7FE000100",
        "PixelData",
        "00480105/0",
        "00480105/x/00282000",
        "00480105//00282000",
        "../7FE00010",
        "7FE00010/",
        "%2E%2E/x",
        "00480105/0/00282000%0A",
        "00480105/00000000001/00282000",
        "00480105/0/" * 200 + "00282000",
    ],
)
def test_malformed_bulk_data_path(text: str) -> None:
    with pytest.raises(BadRequest, match="not a bulk data path"):
        target_of(f"{AT}/bulkdata/{text}")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/studies/%",
        "/v2/studies/%4",
        "/v2/studies/1.2%zz",
        "/v2/studies/%ff",
        "/v2/studies/%C3",
        "/v2/\u20ac",
        "/v2/studies/\xff",
    ],
)
def test_percent_decoding_is_strict(path: str) -> None:
    with pytest.raises(BadRequest, match="the URL"):
        target_of(path)


def test_percent_decoding_happens_once() -> None:
    with pytest.raises(BadRequest, match=r"'1%2E2'"):
        target_of("/v2/studies/1%252E2")


def test_methods() -> None:
    target = target_of("/v2/studies/1.2/metadata")
    for method in ("GET", "HEAD", "OPTIONS"):
        target.check_method(method)
    for method in ("POST", "DELETE", "PUT", "get", ""):
        with pytest.raises(MethodNotAllowed) as caught:
            target.check_method(method)
        assert caught.value.allow == ("GET", "HEAD", "OPTIONS")


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("", ()),
        ("a", (("a", ""),)),
        ("a=", (("a", ""),)),
        ("a=b=c&a=d", (("a", "b=c"), ("a", "d"))),
        ("&a=1&&b=2&", (("a", "1"), ("b", "2"))),
        ("PatientName=M%C3%BCller+A%2BB^*", (("PatientName", "Müller A+B^*"),)),
        ("PatientName=M\xc3\xbcller", (("PatientName", "Müller"),)),
        ("a%3Db=%26%25", (("a=b", "&%"),)),
        ("a=%2520", (("a", "%20"),)),
        ("a;b=c", (("a;b", "c"),)),
    ],
)
def test_queries(query: str, pairs: tuple[tuple[str, str], ...]) -> None:
    assert parse_query(query) == pairs


@pytest.mark.parametrize("query", ["a=%", "a=%f", "%G0=1", "a=%FF", "a=\xfc", "a=\u0416"])
def test_malformed_queries(query: str) -> None:
    with pytest.raises(BadRequest, match="the URL"):
        parse_query(query)


def test_queries_are_bounded() -> None:
    assert len(parse_query("&".join(["a=1"] * MAX_PARAMETERS))) == MAX_PARAMETERS
    with pytest.raises(URITooLong):
        parse_query("&" * MAX_PARAMETERS)


def test_urls_lead_back_to_their_targets() -> None:
    base = base_url("https://pacs.example/dicom/", 2)
    assert base == "https://pacs.example/dicom/v2"
    prefix = "https://pacs.example/dicom"
    assert target_of(study_url(base, STUDY).removeprefix(prefix)).study == STUDY
    target = target_of(instance_url(base, *KEY).removeprefix(prefix))
    assert (target.kind, target.level, (target.study, target.series, target.instance)) == (
        Kind.INSTANCES,
        ResourceLevel.INSTANCE,
        KEY,
    )
    assert target_of(frame_url(base, *KEY, 12).removeprefix(prefix)).frames == (12,)
    assert target_of(bulk_url(base, *KEY, "7FE00010").removeprefix(prefix)).bulk == "7FE00010"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "",
                "v1",
                "v2",
                "v3",
                "studies",
                "series",
                "instances",
                "1.2",
                "1.2.",
                "frames",
                "1,2",
                "bulkdata",
                "7FE00010",
                "metadata",
                "%",
                "%2e",
                "health",
                "live",
                "\xff",
                "rendered",
                "thumbnail",
            ]
        ),
        max_size=11,
    ).map("/".join)
    | st.text(max_size=30)
)
def test_any_path_is_a_target_or_a_documented_error(path: str) -> None:
    for whole in (path, "/" + path, "/v2/" + path):
        try:
            target = target_of(whole)
        except RequestError:
            continue
        assert target.route in (*ROUTES, *UNVERSIONED, *PAGES)


def test_long_paths_end_quickly() -> None:
    begun = time.process_time()
    for path in [
        "/v2" + "/" * 60_000,
        "/v2/studies/" + "1." * 30_000,
        f"{AT}/bulkdata/" + "0/" * 30_000,
        f"{AT}/frames/" + "0" * 60_000,
        "/v2/" + "%41" * 20_000,
    ]:
        with pytest.raises(RequestError):
            target_of(path)
    assert time.process_time() - begun < 0.5


# Plain paths

PLAIN = "/v2/studies/1.2/series/3.4/instances/5.6"
PATHS = [
    *(PLAIN + below for below in ("", "/", "/metadata", "/bulkdata/7FE00010", "/rendered", "/nonsense")),
    *(
        f"{PLAIN}/frames/{numbers}"
        for numbers in (
            "1",
            "2147483647",
            "9999999999",
            "10000000000",
            "0",
            "01",
            "1,2",
            "x",
            "",
            "1/",
            "%31",
        )
    ),
    f"{PLAIN}//frames/1",
    f"{PLAIN}/frames/1/rendered",
    f"{PLAIN}/frames/1/frames/1",
    f"{PLAIN}/bulkdata/7FE00010/frames/1",
    f"{PLAIN}/bulkdata/x/frames/1",
    "/v2/studies/1.2/frames/1",
    "/v2/studies//1.2/series/3.4/instances/5.6/frames/7",
    "/v1/studies/1%2E2/series/3.4/instances/5.6/frames/7",
    "/v1/studies/%/series/3.4/instances/5.6/frames/7",
    "/v2/studies/1.x/series/3.4/instances/5.6/frames/7",
    "/v3/studies/1.2/series/3.4/instances/5.6/frames/7",
    *(
        f"/v2/studies/{study}/series/3.4/instances/{instance}/frames/7"
        for study, instance in (
            (".", "5"),
            ("1.", "5"),
            ("1..2", "5"),
            ("1", ".5"),
            ("1", "5."),
            ("1" * 64, "5" * 64),
            ("1" * 65, "5"),
            ("1", "5" * 65),
            ("1\n", "5"),
            ("1", "5\n"),
            ("\u0661", "5"),
        )
    ),
    "/v2/studies",
    "/v2/studies/1.2/studies",
    "/v2/studies/1.2/series/3.4/series",
    f"{PLAIN}/frames/1/frames",
    "/health/live",
    "/frames/1",
    "*",
    "",
    PLAIN + "/frames/" + ",".join(map(str, range(1, 300))),
]


def said(function, path):
    try:
        return function(path)
    except RequestError as error:
        return type(error), error.detail


TEMPLATES = [route.template for route in (*ROUTES, *UNVERSIONED)]
FIXED = [prefix + template for prefix in ("/v1", "/v2", "", "/v3") for template in TEMPLATES]


@pytest.mark.parametrize("path", [*PATHS, *FIXED])
def test_plain_paths_have_the_target_of_the_table(path):
    assert said(target_of, path) == said(target_in_table, path)


def test_each_route_of_plain_parts_is_found_without_the_table():
    plain = {route.template for route in _PLAIN_ROUTES.values()}
    others = {route.template for route in ROUTES} - plain
    assert not any(template.startswith("/studies/{study}") for template in others if "{path}" not in template)
