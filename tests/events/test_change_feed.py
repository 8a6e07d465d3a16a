"""The change feed over a store, without a socket."""

import itertools
import json
import time
from datetime import datetime

import pytest
from events_world import BASE, World, body_of, put_together
from small_client import key_of

from streamsrv.errors import BadRequest, ChangesGone, Forbidden, NotAcceptable
from streamsrv.events.feed import AT_ONCE
from streamsrv.events.parameters import time_of
from streamsrv.query.rules import any_of, rule_of
from streamsrv.store.index.batch import FORGET_EVERY

ONE, TWO, OTHER = key_of(1, 1, 1), key_of(1, 1, 2), key_of(2, 1, 1)


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "store")
    yield made
    made.store.close()


def test_members_and_states(world):
    world.put(ONE, TWO, OTHER)
    world.put(ONE, version=2)
    world.store.delete(*TWO)
    world.put(TWO, version=3)
    world.store.delete(*OTHER)
    changes = world.ask()
    assert [(each["sequence"], each["action"], each["state"]) for each in changes] == [
        (1, "create", "replaced"),
        (2, "create", "replaced"),
        (3, "create", "deleted"),
        (4, "update", "current"),
        (5, "delete", "replaced"),
        (6, "create", "current"),
        (7, "delete", "deleted"),
    ]
    names = ("studyInstanceUid", "seriesInstanceUid", "sopInstanceUid")
    assert [tuple(each[name] for name in names) for each in changes] == [
        *(ONE, TWO, OTHER, ONE, TWO, TWO, OTHER)
    ]
    assert [each["sequence"] for each in changes if "metadata" in each] == [4, 6]
    for each in changes:
        assert list(each)[:7] == ["sequence", *names, "action", "timestamp", "state"]
        moment = datetime.fromisoformat(each["timestamp"])
        assert each["timestamp"].endswith("Z")
        assert abs(moment.timestamp() - time.time()) < 60


def test_metadata_are_those_of_the_instance_now(world):
    world.put(ONE, version=2, size=4_000)
    (change,) = world.ask()
    metadata = change["metadata"]
    assert metadata["00080018"] == {"vr": "UI", "Value": [ONE[2]]}
    assert metadata["00200013"]["Value"] == [2]
    assert metadata["7FE00010"]["BulkDataURI"].startswith(f"{BASE}/studies/{ONE[0]}/series/")
    assert "metadata" not in world.ask("/v1/changefeed?includemetadata=False")[0]
    assert world.ask("/v1/changefeed/latest") == change
    assert "metadata" not in world.ask("/v2/changefeed/latest?includeMetadata=false")
    assert "metadata" not in world.ask(may_read=False)[0]
    with pytest.raises(Forbidden, match="read"):
        world.answer("/v2/changefeed?includeMetadata=true", may_read=False)


def test_long_metadata_are_made_while_they_are_sent(world, monkeypatch):
    world.put(ONE, TWO)
    made = world.ask()
    monkeypatch.setattr("streamsrv.events.feed.AT_ONCE", 100)
    answer = world.answer()
    assert answer.length is None
    assert json.loads(body_of(answer)) == made
    assert AT_ONCE > 100


def test_nothing_has_changed(world):
    assert world.ask() == world.ask("/v2/changefeed") == []
    assert world.answer("/v2/changefeed/latest").status == 204


def test_pages_by_offset(world):
    keys = [key_of(1, 1, number) for number in range(1, 16)]
    world.put(*keys)
    world.store.delete(keys[0][0])  # one row of the log for all
    seen, offset = [], 0
    while page := world.sequences(f"/v1/changefeed?offset={offset}&limit=7"):
        assert len(page) <= 7
        seen += page
        offset = page[-1]
    assert seen == list(range(1, 31))
    assert world.sequences("/v1/changefeed") == list(range(1, 11))
    assert world.sequences("/v2/changefeed") == list(range(1, 31))
    assert world.sequences("/v2/changefeed?offset=10&limit=3") == [11, 12, 13]
    assert world.sequences("/v1/changefeed?offset=30") == world.sequences("/v2/changefeed?offset=30") == []


def test_windows_of_time(world):
    for number in range(1, 9):
        world.put(key_of(1, 1, number))
    world.store.delete("1.2.1")
    times = {each["sequence"]: each["timestamp"] for each in world.ask("/v2/changefeed")}
    assert sorted(times.values()) == list(times.values())
    assert len(set(times.values())) == 9  # deleted together
    for first, last in itertools.combinations(range(1, 10), 2):
        found = world.sequences(f"/v2/changefeed?startTime={times[first]}&endTime={times[last]}")
        assert found == list(range(first, last))
    assert world.sequences(f"/v2/changefeed?startTime={times[9]}") == list(range(9, 17))
    assert world.sequences(f"/v2/changefeed?endTime={times[3]}&offset=1") == [2]
    assert world.sequences(f"/v2/changefeed?startTime={times[2]}&offset=2&limit=2") == [4, 5]
    assert world.sequences("/v2/changefeed?startTime=2999-01-01T00:00:00Z") == []
    assert len(world.sequences("/v2/changefeed?startTime=0001-01-01T00:00:00%2B14:00")) == 16


def test_times_with_zones():
    assert time_of("startTime", "1970-01-01T01:00:00.0000019+01:00") == 1
    assert time_of("startTime", "1970-01-01T01:00:01 01:00") == 1_000_000
    assert time_of("startTime", "1970-01-01T00:00:01Z") == time_of("startTime", "1969-12-31T19:00:01-05:00")


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/changefeed?limit=0", "limit must be a whole number from 1 to 100"),
        ("/v1/changefeed?limit=101", "from 1 to 100"),
        ("/v2/changefeed?limit=201", "from 1 to 200"),
        ("/v2/changefeed?limit=x", "limit"),
        ("/v2/changefeed?offset=-1", "offset"),
        ("/v2/changefeed?offset=1&offset=2", "offset is given twice"),
        ("/v1/changefeed?startTime=2024-01-01T00:00:00Z", "startTime is a parameter of version 2"),
        ("/v2/changefeed?startTime=2024-01-01T00:00:00", "startTime has no zone"),
        ("/v2/changefeed?endTime=yesterday", "endTime"),
        (
            "/v2/changefeed?endTime=2024-01-01T00:00:00Z&starttime=2024-01-01T01:00:00%2B01:00",
            "before endTime",
        ),
        ("/v2/changefeed?includeMetadata=1", "includeMetadata must be true or false"),
    ],
)
def test_wrong_parameters_are_named(world, path, named):
    with pytest.raises(BadRequest, match=named):
        world.answer(path)


def test_unknown_parameters_and_types(world):
    world.put(ONE)
    headers = dict(world.answer("/v1/changefeed/latest?limit=3").headers)
    assert headers["Warning"] == '299 streamsrv "the parameter limit is not supported and was ignored"'
    assert dict(world.answer(accept="application/dicom+json").headers)["Content-Type"].endswith("+json")
    with pytest.raises(NotAcceptable):
        world.answer(accept="text/html")
    etag = dict(world.answer().headers)["ETag"]
    assert world.answer(**{"if-none-match": etag}).status == 304
    world.put(TWO)
    assert world.answer(**{"if-none-match": etag}).status == 200


def test_changes_that_are_gone(tmp_path):
    world = World(tmp_path / "store", keep_changes=10)
    for hundred in range(FORGET_EVERY // 100 + 2):
        keys = [key_of(1, 1, 100 * hundred + number) for number in range(100)]
        put_together(world.store, keys)
    first = world.store.first_change()
    assert first > 2
    oldest = world.ask(f"/v1/changefeed?offset={first - 1}&limit=1")[0]
    assert oldest["sequence"] == first
    for path in ("/v1/changefeed", "/v2/changefeed", "/v2/changefeed?startTime=1970-01-01T00:00:00Z"):
        answer = world.answer(path)
        assert json.loads(body_of(answer))[0]["sequence"] == first
        assert f"the changes before {first} are gone" in dict(answer.headers)["Warning"]
    for path in (f"/v1/changefeed?offset={first - 2}", "/v2/changefeed?startTime=2001-01-01T00:00:00Z"):
        with pytest.raises(ChangesGone, match=rf"go on behind {first - 1}, at {oldest['timestamp']}"):
            world.answer(path)
    world.store.close()


def test_times_never_decrease(world, monkeypatch):
    world.put(ONE)
    now = time.time_ns()
    monkeypatch.setattr("streamsrv.store.index.batch.time.time_ns", lambda: now - 3_600 * 10**9)
    world.put(TWO)
    world.store.delete(*ONE)
    times = [change.at for change in world.store.changes()]
    assert times == [times[0]] * 3


def test_a_rule_shows_the_changes_of_visible_studies(world):
    hidden = [key_of(2, 1, number) for number in range(1, 13)]
    world.put(ONE, *hidden, TWO)
    world.store.delete("1.2.2")
    world.put(key_of(3, 1, 1))
    world.store.delete("1.2.3")  # of a whole study: not told, though it was visible
    rule = any_of([rule_of([f"PatientID=ID 1.2.{study}"]) for study in (1, 3)])
    view = world.store.restricted(rule)
    feed = world.feed.restricted(view)
    assert world.sequences("/v1/changefeed?limit=5", feed=feed) == [1, 14]
    assert world.sequences("/v2/changefeed?offset=1", feed=feed) == [14]
    assert world.ask("/v2/changefeed/latest", feed=feed)["sequence"] == 14
    world.store.delete(*ONE)  # of a part
    assert world.ask("/v2/changefeed/latest", feed=feed)["action"] == "delete"
    nothing = world.feed.restricted(world.store.restricted(rule_of(["PatientID=none"])))
    assert world.ask(feed=nothing) == world.ask("/v2/changefeed", feed=nothing) == []
    assert world.answer("/v2/changefeed/latest", feed=nothing).status == 204
