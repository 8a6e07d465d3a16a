"""Changes and events over HTTP, with two workers and clients with rights, rules and sessions."""

import json
import urllib.error
import urllib.request

import pytest
from access_world import Site, bearer, within
from browser_client import Browser
from change_readers import EventClient
from kill_world import waited
from live_server import start_server
from small_client import file_of, key_of

RULE = "PatientID=ID 1.2.1"


class Told(Site):
    def follow(self, key="", query="", **headers):
        named = bearer(key) if key else {}
        client = EventClient(f"{self.server.url}/events?{query}", **named, **headers)
        self.opened.append(client)
        return client

    def feed(self, key, path):
        answer = self.ask("GET", f"/v{path}", **bearer(key))
        return answer.status, json.loads(answer.body) if answer.status == 200 else answer.body


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    flags = ("--auth", "required", "--study-quiet", "0.5")
    server = start_server(tmp_path_factory.mktemp("events"), *flags, workers=2)
    site = Told(server)
    site.writer = site.key("writer", "store,delete")
    site.reader = site.key("reader", "search,read")
    site.searcher = site.key("searcher", "search")
    site.limited = site.key("limited", "search", "--where", RULE)
    site.store(site.writer, *(file_of(key_of(study, 1, 1), 1, 300) for study in (1, 2, 3)))
    yield site
    site.close()
    assert server.end() == 0


def test_the_feed_asks_for_rights(site):
    status, changes = site.feed(site.reader, "1/changefeed")
    assert status == 200
    assert [each["studyInstanceUid"] for each in changes[:3]] == ["1.2.1", "1.2.2", "1.2.3"]
    assert all(each["metadata"] for each in changes[:3])
    assert "metadata" not in site.feed(site.searcher, "2/changefeed")[1][0]
    assert site.feed(site.searcher, "2/changefeed?includeMetadata=true")[0] == 403
    assert site.feed(site.writer, "2/changefeed")[0] == 403
    assert [each["sequence"] for each in site.feed(site.limited, "2/changefeed")[1]] == [1]
    head = site.ask("HEAD", "/v2/changefeed", **bearer(site.reader))
    assert (head.status, head.body) == (200, b"")
    assert int(head.getheader("Content-Length")) > 1_000
    zipped = site.ask("GET", "/v2/changefeed", Accept_Encoding="gzip", **bearer(site.reader))
    assert zipped.getheader("Content-Encoding") == "gzip"


def test_events_of_both_workers_and_complete_studies(site):
    followers = [site.follow(site.searcher) for _ in range(4)]
    streams = [of_study("1.2.7", each.events()) for each in followers]
    for number in (1, 2):
        site.store(site.writer, file_of(key_of(7, 1, number), 1, 300))
    for stream in streams:
        told = [next(stream) for _ in range(3)]
        assert [(name, data["action"]) for name, data in told] == [
            ("message", "create"),
            ("message", "create"),
            ("complete", "complete"),
        ]
        assert told[2][1]["instances"] == 2
    again = site.follow(site.searcher, Last_Event_ID=followers[0].last_id)
    site.store(site.writer, file_of(key_of(7, 1, 3), 1, 300))
    assert next(of_study("1.2.7", again.events()))[1]["sopInstanceUid"] == "1.2.7.1.3"


def of_study(study, stream):
    return (event for event in stream if event[1]["studyInstanceUid"] == study)


def test_a_rule_limits_the_events(site):
    stream = site.follow(site.limited, "offset=0&duration=0").events()
    assert {data["studyInstanceUid"] for _, data in stream} == {"1.2.1"}


def test_a_stream_ends_with_its_principal(site):
    key = site.key("short", "search")
    stream = site.follow(key, "offset=0").events()
    next(stream)
    site.change("writer", "--rights", "store,delete")  # another one: the stream goes on
    next(stream)
    site.revoke("short")
    assert len(list(stream)) < 100  # it ends, without an error
    assert site.ask("GET", "/v2/events?duration=0", **bearer(key)).status == 401


def test_a_browser_follows_with_its_cookie(site):
    browser = Browser(site)
    assert browser.sign_in(key=site.reader).status in (200, 204)
    stream = site.follow(query="offset=0", Cookie=browser.cookie).events()
    assert next(stream)[1]["sequence"] == 1
    assert browser.ask("DELETE", "/session").status in (200, 204)
    assert len(list(stream)) < 100


def test_wrong_requests(site):
    for headers, status in (
        ({"Last-Event-ID": "x"}, 400),
        ({"Accept": "application/json"}, 406),
        ({"Authorization": f"Bearer {site.writer}"}, 403),
        ({"Authorization": ""}, 401),
    ):
        asked = urllib.request.Request(f"{site.server.url}/events", headers=bearer(site.reader) | headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=10)
        assert refused.value.code == status
        refused.value.close()


def test_streams_end_when_the_server_ends(server_factory):
    server = server_factory(workers=1)
    client = EventClient(f"{server.url}/events")
    stream = client.events()
    assert server.end() == 0
    assert list(stream) == []  # the last chunk was sent
    assert "cut off" not in server.log.read_text()
    client.close()


def test_the_audit_trail_has_both(site):
    site.ask("GET", "/v2/events?duration=0&offset=1", **bearer(site.reader))
    site.ask("GET", "/v1/changefeed?offset=1", **bearer(site.reader))
    for query in ("/v2/events?duration=0&offset=1", "/v1/changefeed?offset=1"):
        waited(lambda query=query: query in within("audit", "--data", site.server.data), query)
