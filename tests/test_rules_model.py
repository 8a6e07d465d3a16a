"""Three principals of three hospitals share one connection with one without a rule. Random requests of all
routes are compared with a model: no answer holds anything that its principal may not see. All of them store
in the same studies and series: each sees the instances that its rule accepts.

Meanwhile another client stores and deletes. SOAK=20 sends about 10,000 requests."""

import base64
import gzip
import http.client
import io
import itertools
import os
import re
import socket
import threading
import time

import pytest
from access_world import Site, bearer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live_server import start_server
from rules_world import file_of, key_of

from streamsrv.wire.conditional import SETTLED
from streamsrv.wire.resources import ROUTES, UNVERSIONED, Kind

SOAK = int(os.environ.get("SOAK", "1"))
EXAMPLES = 6 if SOAK == 1 else 10 * SOAK
EVERYONE, A, B, C, OLD, OTHERS = 0, 1, 2, 3, 4, 5  # principals, and the labels of instances
RULES = {
    A: ["InstitutionName=A*"],
    B: ["InstitutionName=B"],
    C: ["InstitutionName=C", "StudyDate=20200101-"],
}
LABELS = {
    A: {"institution": "A-Nord", "patient": "PA"},
    B: {"institution": "B", "patient": "PB"},
    C: {"institution": "C", "patient": "PC"},
    OLD: {"institution": "C", "patient": "PC", "date": "20191231"},
    OTHERS: {"institution": "D", "patient": "PD"},
}
STUDIES = [8000 + 100 * label + number for label in (A, B, C) for number in (1, 2, 3)]
# These are stored once, so that their frames are cached. Instances of others come and go.
LASTING = {label: 8000 + 100 * label + 9 for label in (A, B, C)}
PLACES = [*STUDIES, *LASTING.values()]
DATA_ROUTES = [
    route
    for route in (*ROUTES, *UNVERSIONED)
    if route.kind not in (Kind.PAGE, Kind.VIEWER, Kind.LIVE, Kind.READY) and "GET" in route.allow
]
OCTETS = 'multipart/related; type="application/octet-stream"'
HEADERS = (
    {},
    {"Accept": OCTETS},
    {"Accept": "application/dicom"},
    {"Accept": "application/zip"},
    {"Accept": "application/dicom+json", "Accept-Encoding": "gzip"},
    {"Accept": "text/html"},
    {"Range": "bytes=0-99"},
    {"X-Request-ID": "given"},
)
QUERIES = (
    *("", "", "limit=1", "limit=2&offset=1", "includefield=all", "orderby=PatientID", "orderby=-StudyTime"),
    *("PatientID=PB", "InstitutionName=*", "StudyDate=2010-2030", "ModalitiesInStudy=CT&limit=1", "Rows=16"),
    *("PatientName=doe&fuzzymatching=true", f"StudyInstanceUID=1.2.{STUDIES[0]},1.2.{STUDIES[3]}"),
    *(f"SOPInstanceUID=1.2.{STUDIES[6]}.1.1", "EncapsulatedDocument="),
)
STEPS = (*("search", "read", "again", "again", "hot", "hot") * 3, *("store", "mix", "mix") * 2, "delete")
SEARCHES = [route for route in DATA_ROUTES if route.kind is Kind.SEARCH]


def step_of(random):
    return (
        random.choice(STEPS),
        random.choice((EVERYONE, A, A, B, B, C, C)),
        random.choice(PLACES),
        random.choice((1, 2)),
        random.choice((1, 2)),
        random.choice((A, B, C, OLD)),
        random.randrange(1000),
        random.randrange(len(HEADERS)),
        random.randrange(len(QUERIES)),
    )


class Reader(io.BufferedReader):
    """Of one connection, for several answers."""

    def close(self):
        """An answer closes its file; the connection goes on."""

    def makefile(self, *_):
        return self

    def end(self):
        super().close()


class Connection:
    """Sends several requests at once, then reads their answers."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._reader = Reader(socket.SocketIO(self._socket, "r"))

    def ask(self, requests):
        self._socket.sendall(b"".join(map(self._text, requests)))
        return [self._answer(request["method"]) for request in requests]

    @staticmethod
    def _text(request):
        lines = [f"{request['method']} {request['path']} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in request["headers"].items()]
        if request["body"]:
            lines.append(f"Content-Length: {len(request['body'])}")
        return "\r\n".join([*lines, "", ""]).encode() + request["body"]

    def _answer(self, method):
        answer = http.client.HTTPResponse(self._reader, method=method)
        answer.begin()
        answer.content = answer.read()
        assert not answer.will_close
        return answer

    def close(self):
        self._reader.end()
        self._socket.close()


class World:
    """The model of the store, and the requests to it."""

    def __init__(self, site):
        self.keys = {
            label: site.key(f"h{label}", "search,read,store,replace,delete", *rule(label)) for label in RULES
        }
        self.keys[EVERYONE] = site.key("all", "search,read,store,replace,delete")
        self.connection = Connection(site.port)
        self.labels = {}  # key of an instance -> label
        self.all_labels = {}  # the same, with all that it ever had
        self.etags = {}  # path -> the last one that anybody got
        self.last = None
        self.requests = 0

    def do(self, *steps):
        requests = [self.request(*step) for step in steps]
        self.requests += len(requests)
        for request, answer in zip(requests, self.connection.ask(requests), strict=True):
            self.check(request, answer)

    def request(self, what, who, study, series, number, label, route, headers, query):
        key, body, method = key_of(study, series, number), b"", "GET"
        named = dict(HEADERS[headers])
        if what == "again" and self.last is not None:
            request = self.last | {"who": who}
        elif what == "mix":
            # A lasting study gets an instance of another hospital, or loses it.
            study, label = LASTING[min(label, C)], label % C + 1
            if number == 1:
                return self.request("store", EVERYONE, study, 2, 1, label, 0, 0, 0)
            return self.request("delete", EVERYONE, study, 2, 1, label, 1, 0, 0)
        elif what == "store":
            body = file_of(key, 16 + label, **LABELS[label])
            request = make(who, "POST", "/v2/studies", {"Content-Type": "application/dicom"}, key, body)
        elif what == "delete":
            depth = (headers + route) % 3 + 1
            request = make(who, "DELETE", "/v2" + path_of(key[:depth]), {}, key[:depth])
        elif what == "hot":
            key = key_of(LASTING[min(label, C)])
            who = min(label, C) if number == 1 else who
            request = make(who, "GET", f"/v2{path_of(key)}/frames/1", {"Accept": OCTETS}, key)
        else:
            routes = SEARCHES if what == "search" else DATA_ROUTES
            named = named if what == "read" or headers == 4 else {}
            request = self.read(routes[route % len(routes)], who, key, named, QUERIES[query])
            if headers + query == 9 and request["path"] in self.etags:
                request["headers"]["If-None-Match"] = self.etags[request["path"]]
            method = "HEAD" if query == 3 and headers == 0 else method
            request["method"] = method
        request["label"] = label
        request["headers"] = request["headers"] | bearer(self.keys[who])
        if request["method"] == "GET":
            self.last = request
        return request

    def read(self, route, who, key, headers, query):
        values = dict(zip(("study", "series", "instance"), key, strict=True))
        values |= {"frames": "1", "frame": "1", "path": "00420011"}
        path = route.template.format(**values)
        depth = max(route.level - 0, 0) if route.kind is not Kind.SEARCH else path.count("/") // 2
        if route.kind is Kind.SEARCH and query:
            path += f"?{query}"
        if route.kind is Kind.WADO_URI:
            path += f"?requestType=WADO&studyUID={key[0]}&seriesUID={key[1]}&objectUID={key[2]}"
        elif route in ROUTES:
            path = f"/v2{path}"
        request = make(who, "GET", path, headers, key[:depth])
        return request | {"route": route, "query": query}

    # The model

    def under(self, target):
        return [key for key in self.labels if key[: len(target)] == tuple(target)]

    def visible(self, who, target=()):
        return [key for key in self.under(target) if who in (EVERYONE, self.labels[key])]

    def unknown(self, who, *, ever):
        """UIDs that have no visible instance; with `ever`, those that never had one."""
        seen = (
            {key for key, labels in self.all_labels.items() if who in labels} if ever else self.visible(who)
        )
        known = {uid for key in seen for uid in key}
        return {uid for key in self.all_labels for uid in key} - known

    def check(self, request, answer):
        who, key, told = request["who"], request["key"], content_of(answer)
        named = request["path"] + str(request["headers"]) + (" ".join(key) if request["body"] else "")
        assert answer.status < 500, (request, answer.status, told[:300])
        if who != EVERYONE:
            told_uids = set(re.findall(rb"1\.2\.8[0-9.]+", told))
            for uid in self.unknown(who, ever="changefeed" in request["path"]):
                assert uid in named or uid.encode() not in told_uids, (request["path"], who, uid)
            assert b"1.2.8999" not in told, request
            for label in {A, B, C, OLD, OTHERS} - {who}:
                assert bytes([16 + label]) * 64 not in told, (request, label)
        if request["method"] == "POST":
            self.stored(request, answer)
        elif request["method"] == "DELETE":
            gone = self.visible(who, key)
            assert answer.status == (204 if gone else 404), request
            for each in gone:
                del self.labels[each]
        elif "route" in request and request["route"].kind is Kind.SEARCH:
            self.searched(request, answer)
        elif key:
            there = bool(self.visible(who, key))
            assert (answer.status != 404) is there or self.has_none(request, answer), (request, answer.status)
            assert there or answer.getheader("ETag") is None
        if answer.getheader("ETag"):
            self.etags[request["path"]] = answer.getheader("ETag")

    def has_none(self, request, answer):
        """Some resources of an instance that is there do not exist."""
        return answer.status == 404 and "route" in request and request["route"].kind is Kind.THUMBNAIL

    def stored(self, request, answer):
        who, key, label = request["who"], request["key"], request["label"]
        may = who == EVERYONE or label == who == self.labels.get(key, who)
        assert answer.status == (200 if may else 409), (request["who"], key, label, answer.content)
        if may:
            self.labels[key] = label
            self.all_labels.setdefault(key, set()).add(label)
        else:
            assert re.findall(rb'"00081197":{"vr":"US","Value":\[(\d+)\]', answer.content) == [b"292"]

    def searched(self, request, answer):
        who, depth = request["who"], request["route"].level
        assert answer.status in (200, 204, 206, 304, 400, 406, 416), (request, answer.status)
        found = {key[:depth] for key in self.visible(who, request["key"])}
        total = answer.getheader("X-Total-Count")
        if who != EVERYONE and not request["query"] and answer.status in (200, 204):
            assert total == str(len(found)), (request, sorted(found))
        elif who != EVERYONE and total is not None:
            assert int(total) <= len(found)


def make(who, method, path, headers, key=(), body=b""):
    return {
        "who": who,
        "method": method,
        "path": path,
        "headers": dict(headers),
        "key": tuple(key),
        "body": body,
    }


def path_of(key):
    return "".join(
        f"/{name}/{uid}" for name, uid in zip(("studies", "series", "instances"), key, strict=False)
    )


def rule(label):
    return itertools.chain.from_iterable(("--where", each) for each in RULES[label])


def content_of(answer):
    """The header fields and the content, with cursors decoded."""
    content = answer.content
    if answer.getheader("Content-Encoding") == "gzip":
        content = gzip.decompress(content)
    told = str(answer.getheaders()).encode() + content
    cursors = re.findall(rb"after=([A-Za-z0-9_-]+)", told)
    return told + b"".join(base64.urlsafe_b64decode(each + b"==") for each in cursors)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world while another client stores and deletes studies of other hospitals."""
    flags = ("--auth", "required", "--on-duplicate", "replace")
    server = start_server(tmp_path_factory.mktemp("model"), *flags, workers=2)
    site = Site(server)
    world, ended = World(site), threading.Event()
    for label, study in LASTING.items():
        world.do(("store", EVERYONE, study, 1, 1, label, 0, 0, 0))
    time.sleep(SETTLED)
    other = threading.Thread(target=trouble, args=(site.port, world.keys[EVERYONE], ended))
    other.start()
    yield world
    ended.set()
    other.join()
    print(f"{world.requests} requests")
    world.connection.close()
    site.close()
    assert server.end() == 0
    log = server.log.read_text()
    assert all(f" {way} " in log or f" {way}\n" in log for way in ("plain", "known-headers", "cached-frame"))


def trouble(port, key, ended):
    """Each commit makes the workers look up again everything that they remember."""
    connection, study = Connection(port), ("1.2.8999",)
    for number in itertools.count(1):
        file = file_of(key_of(8999, 1, number % 5 + 1), 16 + OTHERS, **LABELS[OTHERS])
        headers = bearer(key) | {"Content-Type": "application/dicom"}
        requests = [make(EVERYONE, "POST", "/v2/studies", headers, study, file)]
        if number % 7 == 0:
            requests.append(make(EVERYONE, "DELETE", "/v2/studies/1.2.8999", bearer(key), study))
        assert {answer.status for answer in connection.ask(requests)} <= {200, 204}
        if ended.wait(0.02 if number % 20 else 0.3):
            break
    connection.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.randoms(use_true_random=True))
def test_no_answer_holds_anything_from_outside(world, random):
    for study in {key[0] for key in world.labels if int(key[0][4:]) not in LASTING.values()}:
        world.do(("delete", EVERYONE, int(study[4:]), 1, 1, A, 0, 0, 0))
    for label, number in itertools.product((A, B, C), (1, 2)):
        world.do(("store", EVERYONE, 8000 + 100 * label + number, 1, 1, label, 0, 0, 0))
    for _ in range(25):
        world.do(*(step_of(random) for _ in range(random.randint(1, 4))))
