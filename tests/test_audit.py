"""The audit trail of a real server: one entry for each row of the table of routes, over all ways and workers;
entries of acknowledged stores and deletes after kill -9; a full disk; the verb."""

import errno
import http.client
import itertools
import json
import os
import signal
import threading
import urllib.parse

import pytest
from faulty_disk import FOR_EVER, SYNC, WRITE, FaultyDisk
from kill_world import children, has_the_index_open, verb, waited
from live_server import start_server
from small_client import BOUNDARY, LOST, Client, NotSent, file_of, key_of, multipart, path_of

from streamsrv.audit.reading import entries_of, verify
from streamsrv.web.auditing import MOST_REFUSED
from streamsrv.wire.resources import PAGES, ROUTES, UNVERSIONED, Kind

FRAME = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
MULTIPART = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}
# Their changes have tests of their own.
SIGN_IN = {Kind.SESSION, Kind.ISSUER, Kind.SHARES, Kind.SHARE}
NO_DATA = {Kind.SERVICE, Kind.OPENAPI, Kind.YAML, Kind.LIVE, Kind.READY, Kind.PAGE, Kind.VIEWER}
SEARCHING = {Kind.SEARCH, Kind.CHANGEFEED, Kind.LATEST}
EVENTS = dict.fromkeys(SEARCHING, "query") | {Kind.INSTANCES: "instances-sent"}
ALL = (*ROUTES, *UNVERSIONED, *PAGES)
ROWS = [(number, route) for number, route in enumerate(ALL, start=100) if route.kind not in SIGN_IN]
PATIENT = {"Content-Type": "application/dicom"}


def trail(server):
    return list(entries_of(server.data / "audit"))


class Audited:
    """A server with one worker, and requests of its users."""

    def __init__(self, server):
        self.server = server
        self.keys = {"": {}}
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.origin).netloc)
        self._markers = []

    def add(self, name, rights):
        code, said = verb("key", "add", name, "--data", str(self.server.data), "--rights", rights)
        assert code == 0, said
        self.keys[name] = {"Authorization": f"Bearer {said.strip()}"}

    def ask(self, method, path, user="anna", body=None, **headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, fields | self.keys[user])
        with self.connection.getresponse() as answer:
            answer.read()
            return answer.status

    def ask_marked(self, *requests):
        """The statuses of the requests. A marker is written behind their entries."""
        statuses = [self.ask(*each) for each in requests]
        self._markers.append(f"/v2/studies?StudyDescription=marker{len(self._markers)}")
        self.ask("GET", self._markers[-1])
        return statuses

    def sections(self, count):
        """The entries before each of the last `count` markers, back to the marker before."""
        waited(lambda: trail(self.server)[-1].get("query") == self._markers[-1], "the marker")
        found = [[]]
        for each in trail(self.server):
            if each.get("query") in self._markers:
                found.append([])
            else:
                found[-1].append(each)
        return found[-count - 1 : -1]

    def entries(self, *requests):
        """The statuses of the requests, and the entries that they make."""
        statuses = self.ask_marked(*requests)
        return statuses, *self.sections(1)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    server = start_server(tmp_path_factory.mktemp("audited"), "--auth", "required", workers=1)
    world = Audited(server)
    world.add("anna", "search,read,store,delete")
    world.add("ben", "search")
    yield world
    world.connection.close()
    assert server.end() == 0
    assert [each["event"] for each in trail(server)][-1] == "application-stop"
    assert verify(server.data / "audit").problems == []
    assert "PatientName" not in server.log.read_text()
    assert "ID 1" not in server.log.read_text()


def path_below(route, number):
    study, series, uid = key_of(number, 1, 1)
    path = route.template if route in (*UNVERSIONED, *PAGES) else f"/v2{route.template}"
    filled = {"{study}": study, "{series}": series, "{instance}": uid, "{frames}": "1", "{frame}": "1"}
    for field, value in (*filled.items(), ("{path}", "7FE00010")):
        path = path.replace(field, value)
    if route.kind is Kind.SEARCH:
        path += f"?PatientName=row{number}"
    if route.kind is Kind.WADO_URI:
        path += f"?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={uid}"
    return path


def test_each_row_of_the_table_of_routes_makes_one_entry(audited):
    files = multipart([file_of(key_of(number, 1, 1), number, 500) for number, _ in ROWS])
    assert audited.ask("POST", "/v2/studies", body=files, **MULTIPART) == 200
    stored = [each for each in trail(audited.server) if each["event"] == "instances-stored"]
    assert [(each["study"], each["patient_id"], each["user"]) for each in stored] == [
        (key_of(number, 1, 1)[0], f"ID 1.2.{number}", "key:anna") for number, _ in ROWS
    ]
    audited.entries()
    rows = []
    for number, route in ROWS:
        path = path_below(route, number)
        asked = [[("GET", path)], [("GET", path, "ben")]]
        if route.kind is Kind.INSTANCES:
            asked += [[("DELETE", path, "ben")], [("DELETE", path), ("DELETE", path)]]
        rows += [(number, route, path, len(asked), audited.ask_marked(*each)) for each in asked]
    sections = audited.sections(len(rows))
    for (number, route, path, *_), (read, refused, *deletes) in by_row(rows, sections):
        expected = [] if route.kind in NO_DATA else [EVENTS.get(route.kind, "instances-accessed")]
        (status,), found = read
        assert [each["event"] for each in found] == expected, path
        for each in found:
            assert (each["user"], each["outcome"]) == ("key:anna", 0 if status < 400 else 4), path
            assert each.get("study", "") == (key_of(number, 1, 1)[0] if "1.2." in path else ""), path
            assert each.get("query", path) == path
        is_refused = route.kind not in NO_DATA | SEARCHING
        assert events(refused) == (["access-refused"] if is_refused else expected), path
        if deletes:
            assert (deletes[0][0], events(deletes[0])) == ([403], ["access-refused"]), path
            event = "instances-deleted" if "/series/" in path else "study-deleted"
            statuses, found = deletes[1]
            assert statuses == [204, 404], path
            assert [(each["event"], each["outcome"]) for each in found] == [(event, 0), (event, 4)], path
            assert found[0]["patient_id"] == f"ID 1.2.{number}"


def events(asked):
    return [each["event"] for each in asked[1]]


def by_row(rows, sections):
    """Each row of the table, with the statuses and the entries of its requests."""
    for row, group in itertools.groupby(zip(rows, sections, strict=True), lambda each: each[0][:4]):
        yield row, [(asked[-1], found) for asked, found in group]


def test_sign_ins_and_share_links_make_entries(audited):
    study = key_of(20, 1, 1)[0]
    assert audited.ask("POST", "/v2/studies", body=file_of(key_of(20, 1, 1), 1, 500), **PATIENT) == 200
    audited.add("cleo", "search,read,share")
    browser = {"Content_Type": "application/json", "Origin": audited.server.origin}
    count = len(trail(audited.server))
    key = audited.keys["cleo"]["Authorization"].removeprefix("Bearer ")
    for body in ({"key": key}, {"key": "wrong"}):
        audited.ask("POST", "/session", "", json.dumps(body), **browser)
    assert audited.ask("POST", f"/v2/studies/{study}/shares", "cleo", "{}", **browser) == 201
    assert audited.ask("POST", f"/v2/studies/{study}/shares", "ben", "{}", **browser) == 403
    audited.entries()
    found = trail(audited.server)[count:-1]
    assert [(each["event"], each["outcome"], each["user"], each.get("study")) for each in found] == [
        ("login", 0, "key:cleo", None),
        ("login", 4, "anonymous", None),
        ("rights-changed", 0, "key:cleo", study),
        ("access-refused", 4, "key:ben", study),
    ]


def test_a_login_that_fails_makes_one_entry(audited):
    audited.keys["otto"] = {"Authorization": "Bearer otto"}
    wrong = [("GET", f"/v2/studies/1.2.{number}", user) for number in (3, 4) for user in ("", "otto")]
    statuses, found = audited.entries(*wrong, *wrong)
    assert statuses == [401] * 8
    assert found
    studies = [(each["event"], each["outcome"], each["study"], each["at"][:16]) for each in found]
    assert set(studies) >= {("login", 4, f"1.2.{number}", found[-1]["at"][:16]) for number in (3, 4)}
    assert len(studies) == len(set(studies))


def test_a_client_without_credentials_cannot_fill_the_disk(audited):
    statuses, found = audited.entries(*[("GET", f"/v2/studies/1.2.{n}", "") for n in range(200, 260)])
    assert statuses == [401] * 60
    assert len(found) <= 2 * (MOST_REFUSED + 1)  # a minute may end meanwhile
    assert "more than 20 requests" in found[-1]["detail"]
    assert "study" not in found[-1]
    statuses, found = audited.entries(("DELETE", "/v2/studies/1.2.201", "ben"))
    assert (statuses, [each["study"] for each in found]) == ([403], ["1.2.201"])


def test_a_store_that_is_refused_makes_one_entry(audited):
    assert audited.ask("POST", "/v2/studies", body=file_of(key_of(8, 1, 1), 1, 500), **PATIENT) == 200
    count = len(trail(audited.server))
    assert audited.ask("POST", "/v2/studies/1.2.8", body=file_of(key_of(8, 1, 1), 1, 500), **PATIENT) == 409
    assert audited.ask("POST", "/v2/studies/1.2.8", body=b"no", Content_Type="text/plain") == 415
    audited.entries()
    found = [(each["event"], each["outcome"], each["detail"]) for each in trail(audited.server)[count:-1]]
    assert found == [("instances-stored", 4, "POST got 409"), ("instances-stored", 4, "POST got 415")]


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    """Two workers, without a login. The last test that uses it kills it."""
    server = start_server(tmp_path_factory.mktemp("open"), "--audit", "on", workers=2)
    yield server
    server.end()


def test_one_entry_a_minute_of_all_workers(open_server):
    server = open_server
    key = key_of(1, 1, 1)
    clients = [Client(server.origin) for _ in range(8)]
    assert clients[0].store([file_of(key, 1, 500)]).status == 200
    for _ in range(5):
        for client in clients:
            assert client.ask("GET", f"{path_of(key)}/frames/1", **FRAME).status == 200
    for client in clients:
        client.close()
    waited(lambda: "known-headers" in server.log.read_text(), "the log")
    ways = {line.rpartition(" ")[2] for line in server.log.read_text().splitlines() if "/frames/1" in line}
    assert ways >= {"plain", "known-headers"}
    waited(lambda: "instances-accessed" in {each["event"] for each in trail(server)}, "the entries")
    found = [each for each in trail(server) if each["event"] == "instances-accessed"]
    assert len(found) == len({each["at"][:16] for each in found}) > 0
    assert found[0]["user"] == "anonymous"
    assert verify(server.data / "audit").problems == []


def test_kill_9_loses_no_entry_of_an_acknowledged_store_or_delete(open_server):
    server = open_server
    stop, acknowledged, lock = threading.Event(), set(), threading.Lock()

    def work(base):
        client = Client(server.origin)
        for number in itertools.count(base):
            if stop.is_set():
                break
            key = key_of(number, 1, 1)
            for event in ("instances-stored", "study-deleted"):
                try:
                    stored = event == "instances-stored"
                    reply = client.store([file_of(key, 1, 500)]) if stored else client.delete(key[:1])
                except (NotSent, *LOST):
                    stop.wait(0.02)
                    break
                if not stored or reply.status == 200:
                    with lock:
                        acknowledged.add((event, key[0]))
        client.close()

    threads = [threading.Thread(target=work, args=(base,)) for base in (100_000, 200_000, 300_000)]
    for each in threads:
        each.start()
    for target in (20, 40):
        waited(lambda target=target: len(acknowledged) > target, "stores and deletes")
        os.kill(
            next(each for each in children(server.process.pid) if has_the_index_open(each, server.data)),
            signal.SIGKILL,
        )
    stop.set()
    for each in threads:
        each.join()
    server.process.kill()
    server.process.wait()
    recorded = {(each["event"], each.get("study")) for each in trail(server) if each["outcome"] == 0}
    assert acknowledged <= recorded
    assert verify(server.data / "audit").problems == []


def test_a_disk_that_takes_no_entry_refuses_stores_and_deletes(tmp_path):
    disk = FaultyDisk(tmp_path)
    server = start_server(tmp_path / "server", "--audit", "on", workers=1, variables=disk.variables)
    client = Client(server.origin)
    for base, error, kinds, status in ((10, errno.ENOSPC, WRITE, 507), (20, errno.EIO, SYNC, 503)):
        stored, unacknowledged, refused = (key_of(base + number, 1, 1) for number in (1, 2, 3))
        assert client.store([file_of(stored, 1, 500)]).status == 200
        disk.arm(kinds, fails=FOR_EVER, error=error, path="/data/audit/")
        assert client.store([file_of(unacknowledged, 1, 500)]).status == 503
        reply = client.store([file_of(refused, 1, 500)])
        assert (reply.status, "audit trail" in reply.json()["detail"]) == (status, True)
        assert client.ask("DELETE", path_of(stored[:1])).status == status
        assert client.ask("GET", path_of(stored)).status == 200
        assert client.ask("GET", path_of(refused)).status == 404
        disk.disarm()
        waited(lambda key=stored: client.ask("DELETE", path_of(key[:1])).status in (204, 404), "a delete")
    client.close()
    assert server.end() == 0
    found = [(each["event"], each.get("study"), each["outcome"]) for each in trail(server)]
    for base in (10, 20):
        assert ("instances-sent", key_of(base + 1, 1, 1)[0], 0) in found
        assert ("study-deleted", key_of(base + 1, 1, 1)[0], 0) in found
        assert ("instances-stored", key_of(base + 3, 1, 1)[0], 0) not in found
    assert verify(server.data / "audit").problems == []


def test_the_verb(audited):
    folder = str(audited.server.data)
    audited.entries(("GET", "/v2/studies/1.2.99/metadata"))
    code, said = verb("audit", "--data", folder, "--user", "anna", "--study", "1.2.99", "--since", "1h")
    (line,) = said.splitlines()
    assert (code, json.loads(line)["event"]) == (0, "instances-accessed")
    assert verb("audit", "--data", folder, "--since", "2030-01-01") == (0, "")
    code, said = verb("audit", "verify", "--data", folder)
    assert (code, said.splitlines()[-1]) == (0, "the chain is whole")
    anchor = said.splitlines()[-2].rpartition(" ")[2]
    assert trail(audited.server)[-1]["event"] == "audit-log-used"
    code, said = verb("audit", "verify", "--data", folder, "--anchor", anchor, "--json")
    assert (code, json.loads(said)["ok"]) == (0, True)
    assert verb("audit", "verify", "--data", folder, "--anchor", f"1:{'0' * 64}")[0] == 1
    assert verb("audit", "verify", "--data", folder, "--anchor", "1")[0] == 2
    assert verb("audit", "verify", "--data", folder, "--user", "anna")[0] == 2
    assert verb("audit", "--data", folder, "--json")[0] == 2
    assert verb("audit", "--data", f"{folder}-other")[0] == 1


def test_changes_of_keys_and_links_by_the_verbs_make_entries(audited):
    count, data = len(trail(audited.server)), ("--data", str(audited.server.data))
    audited.add("dora", "read")
    assert verb("key", "revoke", "dora", *data)[0] == 0
    assert verb("key", "revoke", "dora", *data)[0] == 1
    assert verb("key", "list", *data)[0] == 0
    assert verb("share", "1.2.3", *data)[0] == 0
    found = [each for each in trail(audited.server)[count:] if each["event"] == "rights-changed"]
    assert [each["detail"] for each in found] == ["key add dora", "key revoke dora", "share"]
    assert {each["user"].partition(":")[0] for each in found} == {"os"}


def test_a_server_without_a_trail_does_not_start(tmp_path):
    (tmp_path / "file").touch()
    code, said = verb(
        *("serve", "--data", str(tmp_path / "data"), "--port", "0", "--audit", "on"),
        *("--audit-folder", str(tmp_path / "file" / "audit")),
    )
    assert code == 1
    assert "the audit trail cannot be written" in said
