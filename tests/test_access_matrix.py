"""Each resource and method with each kind of credentials: the rows come from the table of routes, so a route
without a row here fails."""

import json
import math
import time

import pytest
from access_world import Site, bearer, file_of, grants_for
from clinic import CT_INSTANCES, CT_SERIES, CT_STUDY, ct
from live_server import start_server

from streamsrv.web.access.grants import KEY, Grant, digest_of, new_key
from streamsrv.web.access.principal import ALL_RIGHTS, Right, named_rights
from streamsrv.wire.resources import FOLLOWING, PAGES, ROUTES, SHARING, UNVERSIONED, Kind

OPEN, ANY = "open", ""
# Kind and method -> the right that they need.
RIGHTS = {
    ("service", "GET"): ANY,
    ("openapi", "GET"): ANY,
    ("yaml", "GET"): ANY,
    ("search", "GET"): "search",
    ("search", "POST"): "store",
    ("changefeed", "GET"): "search",
    ("latest", "GET"): "search",
    ("events", "GET"): "search",
    ("instances", "GET"): "read",
    ("instances", "POST"): "store",
    ("instances", "DELETE"): "delete",
    ("metadata", "GET"): "read",
    ("frames", "GET"): "read",
    ("rendered", "GET"): "read",
    ("thumbnail", "GET"): "read",
    ("bulkdata", "GET"): "read",
    ("pixeldata", "GET"): "read",
    ("wado", "GET"): "read",
    ("live", "GET"): OPEN,
    ("ready", "GET"): OPEN,
    ("shares", "GET"): "share",
    ("shares", "POST"): "share",
    ("share", "DELETE"): "share",
    ("session", "POST"): OPEN,
    ("session", "DELETE"): OPEN,
    ("issuer", "GET"): OPEN,
    ("page", "GET"): OPEN,
    ("viewer", "GET"): OPEN,
}
ROWS = [
    *((route, "/v2") for route in (*ROUTES, *SHARING, *FOLLOWING)),
    *((route, "") for route in (*UNVERSIONED, *PAGES)),
]
VALUES = {
    "{study}": CT_STUDY,
    "{series}": CT_SERIES,
    "{instance}": CT_INSTANCES[0],
    "{frames}": "1",
    "{frame}": "1",
    "{path}": "7FE00010",
    "{share}": "none",
}
WADO = f"?requestType=WADO&studyUID={CT_STUDY}&seriesUID={CT_SERIES}&objectUID={CT_INSTANCES[0]}"
VIEWER = "https://viewer.example"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "DELETE", "PUT")


class Matrix(Site):
    def __init__(self, server):
        super().__init__(server)
        self.connection = self.connect()
        self.grants = grants_for(server.data)
        self.store(self.granted(Right.STORE), file_of(ct(1)))
        self.only = {name: self.granted(Right[name.upper()]) for name in named_rights(ALL_RIGHTS)}
        self.without = {name: self.granted(ALL_RIGHTS & ~Right[name.upper()]) for name in self.only}
        expired = self.granted(ALL_RIGHTS, time.time() - 1)
        # None, malformed, of another server, expired.
        self.refused = ("", "streamsrv_x", new_key(), expired)

    def granted(self, rights, until=math.inf):
        key = new_key()
        with self.grants.changing() as change:
            change.write(Grant(KEY, key[:20], digest_of(key), rights, None, time.time(), until))
        return key

    def status(self, method, path, key, **headers):
        """Of every answer: cross-origin headers, and a challenge if and only if it is 401."""
        headers |= bearer(key) if key else {}
        answer = self.ask(method, path, self.connection, Origin=VIEWER, **headers)
        assert answer.getheader("Access-Control-Allow-Origin") == VIEWER
        assert (answer.getheader("WWW-Authenticate") is not None) is (answer.status == 401)
        assert "Authorization, Cookie" in answer.getheader("Vary")
        assert answer.status not in (500, 503), answer.body
        return answer.status


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    flags = (
        "--auth",
        "required",
        "--cors-origins",
        VIEWER,
        "--failed-logins",
        "0",
        "--on-duplicate",
        "replace",
    )
    server = start_server(tmp_path_factory.mktemp("matrix"), *flags, workers=1)
    matrix = Matrix(server)
    yield matrix
    matrix.close()
    assert server.end() == 0


def path_of(route, prefix, method):
    path = prefix + route.template
    for name, value in VALUES.items():
        path = path.replace(name, value)
    if method == "DELETE":  # of nothing
        path = path.replace(CT_STUDY, "1.2.3")
    return path + {"wado": WADO, "events": "?duration=0"}.get(str(route.kind), "")


def test_each_route_has_a_row():
    assert {(str(route.kind), method) for route, _ in ROWS for method in route.methods} == set(RIGHTS)
    assert {kind for kind, _ in RIGHTS} == set(map(str, Kind))


@pytest.mark.parametrize("method", METHODS)
def test_each_route_with_each_kind_of_credentials(matrix, method):
    for route, prefix in ROWS:
        right = OPEN if OPEN in (RIGHTS[str(route.kind), each] for each in route.methods) else ANY
        allowed = method in route.allow
        if allowed and method != "OPTIONS":
            right = RIGHTS[str(route.kind), "GET" if method == "HEAD" else method]
        path = path_of(route, prefix, method)
        for key in matrix.refused:
            assert (matrix.status(method, path, key) == 401) is (right is not OPEN), (method, path, key)
        if allowed and right not in (OPEN, ANY):
            assert matrix.status(method, path, matrix.without[right]) == 403, path
        good = matrix.only[right if right in matrix.only else "share"]
        statuses = {matrix.status(method, path, good) for _ in range(3)}
        assert len(statuses) == 1, path
        status = statuses.pop()
        if not allowed:
            assert status == 405, path
        elif route.kind == "session" and method != "OPTIONS":
            assert status == 403, path  # no browser of this origin asks
        elif method in ("POST", "DELETE"):
            assert status in (400, 404, 415), path
        elif route.kind in ("viewer", "page", "issuer") and method != "OPTIONS":
            assert status == 404, path  # there is no viewer, no such file, and no text/html in Accept
        else:
            assert status == 200, path


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Range": "bytes=0-3"}, ""),
        ({"Accept": "*/*;q=0.1"}, "accept=*/*"),
        ({"If_None_Match": "*"}, ""),
        ({"Expect": "100-continue"}, ""),
        ({"X_HTTP_Method_Override": "GET", "X_Forwarded_User": "admin"}, ""),
    ],
)
def test_no_form_of_a_request_goes_round_the_check(matrix, headers, query):
    for route, prefix in ROWS:
        if RIGHTS.get((str(route.kind), "GET"), ANY) in (OPEN, ANY):
            continue
        path = path_of(route, prefix, "GET")
        path += ("&" if "?" in path else "?") + query if query else ""
        assert {matrix.status("GET", path, key, **headers) for key in matrix.refused} == {401}, path
        right = RIGHTS[str(route.kind), "GET"]
        assert matrix.status("GET", path, matrix.without[right], **headers) == 403
        assert matrix.status("GET", path, matrix.only[right], **headers) in (200, 206, 304), path


def test_a_preflight_needs_no_credentials(matrix):
    for route, prefix in ROWS:
        asked = {"Access_Control_Request_Method": "GET"}
        assert matrix.status("OPTIONS", path_of(route, prefix, "GET"), "", **asked) == 204


def test_paths_that_name_nothing_are_401_first(matrix):
    for path in ("/v2/none", "/v3/studies", "/none", "/v2/studies/x", "/v2/studies/1.2/series/..", "*"):
        method = "OPTIONS" if path == "*" else "GET"
        assert {matrix.status(method, path, key) for key in matrix.refused} == {401}, path
        assert matrix.status(method, path, matrix.only["read"]) in (200, 400, 404), path


def test_replacing_needs_a_right(matrix):
    storer, replacer = matrix.only["store"], matrix.granted(Right.STORE | Right.REPLACE)
    one, other = ct(3), ct(3)
    other.PatientID = "P-2"
    matrix.store(storer, file_of(one))
    answer = matrix.store(storer, file_of(other), status=409)
    assert json.loads(answer.body)["00081198"]["Value"][0]["00081197"]["Value"] == [45070]
    path, reader = f"/v2/studies/{CT_STUDY}/metadata", bearer(matrix.only["read"])
    assert b'"P-2"' not in matrix.ask(path=path, **reader).body
    matrix.store(replacer, file_of(other))
    assert b'"P-2"' in matrix.ask(path=path, **reader).body
