"""streamsrv/wire/hot_paths.py"""

from __future__ import annotations

import pytest

from streamsrv.errors import RequestError
from streamsrv.wire import hot_paths, resources

INSTANCE = "/v2/studies/1.2/series/3.4/instances/5.6"
PATHS = [
    *(INSTANCE + below for below in ("", "/", "/metadata", "/bulkdata/7FE00010", "/rendered", "/nonsense")),
    *(
        f"{INSTANCE}/frames/{numbers}"
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
    f"{INSTANCE}//frames/1",
    f"{INSTANCE}/frames/1/rendered",
    f"{INSTANCE}/frames/1/frames/1",
    f"{INSTANCE}/bulkdata/7FE00010/frames/1",
    f"{INSTANCE}/bulkdata/x/frames/1",
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
    "/health/live",
    "/frames/1",
    "*",
    "",
    INSTANCE + "/frames/" + ",".join(map(str, range(1, 300))),
]


def said(function, path):
    try:
        return function(path)
    except RequestError as error:
        return type(error), error.detail


@pytest.mark.parametrize("path", PATHS)
def test_as_resources_has_it(path):
    expected = said(resources.target_of, path)
    assert said(hot_paths.target_of, path) == expected
    assert said(hot_paths.target_of, path) == expected


def test_the_frames_of_an_instance_share_one_entry():
    hot_paths._instance_of.cache_clear()
    hot_paths._remembered.cache_clear()
    for number in range(1, 100):
        assert hot_paths.target_of(f"{INSTANCE}/frames/{number}").frames == (number,)
    assert hot_paths._instance_of.cache_info().currsize == 1
    assert hot_paths._remembered.cache_info().currsize == 0


def test_long_paths_are_not_kept():
    hot_paths._remembered.cache_clear()
    hot_paths.target_of(PATHS[-1])
    assert hot_paths._remembered.cache_info().currsize == 0
