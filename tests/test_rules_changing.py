"""Stores and deletes by a principal with a rule; and studies whose visibility changes."""

import contextlib
import copy
import itertools
import json
import re
import threading

import pytest
from hostile_files import SECONDARY_CAPTURE
from rules_world import Side, file_of, key_of

from streamsrv.events.tail import ChangeTail
from streamsrv.ingest import store_batch
from streamsrv.ingest.transaction import Ingest
from streamsrv.pixels.pool import PixelPool
from streamsrv.query.attributes import Level
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import query_of
from streamsrv.query.rules import any_of, limited_to, rule_of
from streamsrv.server import dimse_ingest
from streamsrv.settings import Settings
from streamsrv.store import Store, StoreOptions
from streamsrv.web.access.principal import Principal, Right
from streamsrv.wire.answers import Request
from streamsrv.wire.resources import target_of

A, B = rule_of(["InstitutionName=A"]), rule_of(["InstitutionName=B"])
POOL = PixelPool(1)  # starts no process before it has to decode
REASON, NOT_AUTHORIZED = "00081197", 292


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path, StoreOptions(min_free=0)) as store:
        yield store


def failure(reply):
    """The reason of the only failed instance."""
    assert reply.status == 409
    (item,) = json.loads(reply.body)["00081198"]["Value"]
    return item[REASON]["Value"][0]


@pytest.mark.parametrize("policy", ["refuse", "accept-identical", "replace"])
def test_an_instance_outside_the_rule_is_refused_everywhere_in_the_same_way(store, policy):
    """The same bytes, whether the instance is there or not, with the same bytes or others."""
    everyone = Side(store, POOL)
    there, other, absent = key_of(1, 1, 1), key_of(1, 1, 2), key_of(9)
    assert everyone.put(file_of(there, institution="B")).status == 200
    before = everyone.ask(f"/v2/studies/{there[0]}").body
    side = Side(store, POOL, A, on_duplicate=policy)
    told = set()
    for key, hospital, fill in itertools.product((there, other, absent), ("B", None), (1, 2)):
        reply = side.put(file_of(key, fill, institution=hospital))
        assert failure(reply) == NOT_AUTHORIZED
        told.add(reply.text.replace(key[2].encode(), b"UID").replace(key[0].encode(), b"UID"))
    assert len(told) == 1
    # The only instance that a store within the rule cannot have: one with the same three UIDs.
    reply = side.put(file_of(there, institution="A"))
    assert reply.text.replace(there[2].encode(), b"UID").replace(there[0].encode(), b"UID") in told
    assert everyone.ask(f"/v2/studies/{there[0]}").body == before
    assert everyone.ask(f"/v2/studies/{absent[0]}").status == 404


# Digests of record ids, boundaries, which follow from them, and times.
UNEQUAL = re.compile(rb"[0-9a-f]{16,}|, \('Last-Modified', '[^']*'\)")


@pytest.mark.parametrize("policy", ["refuse", "replace"])
def test_stores_in_the_study_of_another_hospital_are_as_on_a_server_without_it(tmp_path, policy):
    """A and B each store in one study, also in one series. Each has the answers of a server of its own."""
    texts = {"A": {"patient": "P1", "name": "Doe^A", "date": "20240102", "modality": "CT"}}
    texts["B"] = {"patient": "P2", "name": "Roe^B", "date": "20230304", "modality": "MR"}
    rules, numbers = {"A": A, "B": B}, {"A": (1, 2), "B": (3, 4)}
    with contextlib.ExitStack() as stack:
        shared, *own = (
            stack.enter_context(Store.open(tmp_path / name, StoreOptions(min_free=0))) for name in "xAB"
        )
        sides = {each: Side(shared, POOL, rules[each], on_duplicate=policy) for each in "AB"}
        alone = {
            each: Side(store, POOL, None, on_duplicate=policy) for each, store in zip("AB", own, strict=True)
        }

        def same(who, act):
            found, expected = (UNEQUAL.sub(b"", act(side).text) for side in (sides[who], alone[who]))
            assert found == expected, who
            return act

        def asked(who):
            for path in PATHS:
                same(who, lambda side, path=path: side.ask(f"/v2{path}"))

        other = {"A": "B", "B": "A"}
        for step in range(2):
            for who, series in (("A", 1), ("B", 1), ("B", 3), ("A", 2)):
                file = file_of(key_of(1, series, numbers[who][step]), step, institution=who, **texts[who])
                for headers in ({}, {"If_None_Match": "*"}, {}):
                    same(
                        who, lambda side, file=file, headers=headers: side.put(file, study="1.2.1", **headers)
                    )
                asked(who)
                asked(other[who])
        assert dict(Side(shared, POOL).ask("/v2/instances").headers)["X-Total-Count"] == "8"
        one = key_of(1, 1, 1)
        same("A", lambda side: side.ask(f"/v2/studies/{one[0]}/series/{one[1]}/instances/{one[2]}", "DELETE"))
        asked("A")
        asked("B")
        for who in "BA":
            same(who, lambda side: side.ask("/v2/studies/1.2.1", "DELETE"))
            same(who, lambda side: side.ask("/v2/studies/1.2.1", "DELETE"))
            asked("B")
            asked("A")
        assert Side(shared, POOL).ask("/v2/instances").status == 204


PATHS = [
    *("/studies", "/series", "/instances", "/studies/1.2.1/series", "/studies/1.2.1/instances?limit=1"),
    *(
        "/studies?PatientID=P1",
        "/studies?PatientID=P2",
        "/studies?PatientName=Doe*",
        "/studies?StudyDate=2023-",
    ),
    *("/studies?ModalitiesInStudy=MR", "/series?Modality=CT&limit=1", "/studies?InstitutionName=A"),
    *(
        "/instances?SOPInstanceUID=1.2.1.1.1",
        "/series?SeriesInstanceUID=1.2.1.1",
        "/studies?orderby=PatientID",
    ),
    *(
        "/studies/1.2.1",
        "/studies/1.2.1/metadata",
        "/studies/1.2.1/series/1.2.1.1",
        "/studies/1.2.1/bulkdata",
    ),
    *(
        "/studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.1",
        "/studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.3",
    ),
    *("/studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.3/frames/1", "/studies/1.2.1/series/1.2.1.3/metadata"),
    *("/studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.1/bulkdata/00420011",),
]


def test_two_senders_with_rules_store_in_one_new_study_at_once(tmp_path):
    with Store.open(tmp_path, StoreOptions(min_free=0)) as store:
        start, replies = threading.Barrier(2), {}

        def put(hospital, rule, series):
            files = [file_of(key_of(1, series, number), institution=hospital) for number in range(1, 9)]
            start.wait()
            replies[hospital] = Side(store, None, rule).put(*files)

        threads = [threading.Thread(target=put, args=each) for each in (("A", A, 1), ("B", B, 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {reply.status for several in replies.values() for reply in several} == {200}
        for rule, series in ((A, 1), (B, 2)):
            found = json.loads(Side(store, None, rule).ask("/v2/instances").body)
            assert [each["0020000E"]["Value"] for each in found] == [[f"1.2.1.{series}"]] * 8


def test_a_share_of_a_mixed_study_shows_what_its_maker_sees(store):
    everyone = Side(store, POOL)
    for series, hospital in ((1, "A"), (2, "B")):
        everyone.put(
            file_of(key_of(1, series), institution=hospital), file_of(key_of(2, series), institution=hospital)
        )
    for rule, series in ((A, ["1.2.1.1"]), (B, ["1.2.1.2"]), (None, ["1.2.1.1", "1.2.1.2"])):
        found = json.loads(Side(store, POOL, limited_to(rule, "1.2.1")).ask("/v2/series").body)
        assert [each["0020000E"]["Value"][0] for each in found] == series


def test_a_view_is_told_of_no_instance_of_others(tmp_path):
    """Not while their study is mixed, and not when it is no longer."""
    with Store.open(tmp_path, StoreOptions(min_free=0)) as store:
        everyone, side = Side(store, None), Side(store, None, A)
        tail = ChangeTail(store.restricted(A), store, 0)
        tail.begin(None)
        told = []
        for act in (
            lambda: everyone.put(file_of(key_of(1, 2), institution="B")),
            lambda: side.put(file_of(key_of(1, 1, 1), institution="A")),
            lambda: side.put(file_of(key_of(1, 1, 2), institution="A")),
            lambda: side.put(file_of(key_of(1, 4), institution="A", modality="SR")),
            lambda: side.ask("/v2/studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.1", "DELETE"),
            lambda: side.ask("/v2/studies/1.2.1/series/1.2.1.4", "DELETE"),
            lambda: everyone.ask("/v2/studies/1.2.1/series/1.2.1.2", "DELETE"),
            lambda: everyone.put(file_of(key_of(1, 3), institution="B")),
            lambda: everyone.ask("/v2/studies/1.2.1/series/1.2.1.3", "DELETE"),
        ):
            assert act().status in (200, 204)
            feed = side.ask("/v1/changefeed?includeMetadata=false").body
            assert b"1.2.1.2" not in feed
            assert b"1.2.1.3" not in feed
            told += tail.read()
        expected = [("create", "1.2.1.1.1"), ("create", "1.2.1.1.2"), ("create", "1.2.1.4.1")]
        expected += [("delete", "1.2.1.1.1"), ("delete", "1.2.1.4.1")]
        for events in (json.loads(feed), [json.loads(each.data) for each in told]):
            assert [(each["action"], each["sopInstanceUid"]) for each in events] == expected
        latest = json.loads(side.ask("/v2/changefeed/latest?includeMetadata=false").body)
        assert (latest["action"], latest["sopInstanceUid"]) == expected[-1]


def test_a_c_store_in_the_study_of_another_hospital(store):
    Side(store, POOL).put(file_of(key_of(1), institution="B"))
    ingest_of = dimse_ingest(store, Settings())
    outcomes = []
    for key, hospital in ((key_of(1, 2), "A"), (key_of(1, 3), "B"), (key_of(1), "A"), (key_of(2), "B")):
        ingest = ingest_of(Principal("dimse:X", frozenset((Right.STORE,)), A), (SECONDARY_CAPTURE, key[2]))
        ingest.begin()
        ingest.feed(file_of(key, institution=hospital))
        outcomes.append([each.failure_reason for each in ingest.finish().failed])
    assert outcomes == [[], [NOT_AUTHORIZED], [NOT_AUTHORIZED], [NOT_AUTHORIZED]]


@pytest.mark.parametrize("headers", [{"If_None_Match": "*"}, {"If_Match": "*"}, {"If_Match": '"x"'}])
def test_conditions_of_a_store_take_an_invisible_study_for_absent(store, headers):
    hidden, absent = key_of(1), key_of(2)
    Side(store, POOL).put(file_of(hidden, institution="B"))
    side = Side(store, POOL, A)
    told = [
        side.put(file_of(key, institution="B"), study=key[0], **headers).text.replace(key[2].encode(), b"")
        for key in (hidden, absent)
    ]
    assert told[0] == told[1]


def test_stores_and_replacements_within_the_rule(store):
    side, key = Side(store, POOL, A, on_duplicate="replace"), key_of(1)
    assert side.put(file_of(key, 1, institution="A")).status == 200
    assert side.put(file_of(key, 2, institution="A")).status == 200
    assert failure(side.put(file_of(key, 3, institution="B"))) == NOT_AUTHORIZED
    refusing = Side(store, POOL, A)
    assert failure(refusing.put(file_of(key, 2, institution="A"))) == 45070
    found = side.ask(f"/v2/studies/{key[0]}/series/{key[1]}/instances/{key[2]}", Accept="application/dicom")
    assert found.body == file_of(key, 2, institution="A")


def test_by_several_rules_each_instance_is_visible_that_one_of_them_shows(store):
    """Also in one transaction; an instance between two alternatives is refused."""
    rule = any_of(
        [rule_of(["InstitutionName=A", "PatientID=1"]), rule_of(["InstitutionName=B", "PatientID=2"])]
    )
    side, target = Side(store, POOL, rule), target_of("/v2/studies")
    request = Request("POST", "/v2/studies", (), {"content-type": "application/dicom"}, "http://h/v2", 2)
    ingests = [side._actions.ingest(request, target) for _ in range(4)]
    for number, (ingest, values) in enumerate(zip(ingests, ("A1", "B2", "A2", "B1"), strict=True)):
        file = file_of(key_of(1, 1, number + 1), institution=values[0], patient=values[1])
        ingest.feed(file, stays=True)
    results = store_batch(store, ingests)
    assert [len(result.stored) for result in results] == [1, 1, 0, 0]
    assert side.ask("/v2/studies/1.2.1/instances").body.count(b'"00080018"') == 2
    Side(store, POOL).put(file_of(key_of(1, 2), institution="A", patient="2"))
    assert side.ask("/v2/studies/1.2.1/instances").body.count(b'"00080018"') == 2


def test_answers_of_searches_are_cached_for_one_rule(store):
    whole = Side(store, POOL)
    for number, hospital in enumerate("ABC", start=1):
        whole.put(file_of(key_of(number), institution=hospital))
    for rule, count in ((A, 1), (B, 1), (any_of([A, B]), 2), (None, 3), (A, 1)):
        view = copy.copy(whole)
        view._actions = whole._actions.restricted(rule, True)
        assert view.ask("/v2/studies").body.count(b'"0020000D"') == count


def test_short_bodies_of_several_senders_keep_their_rules(store):
    """They share one transaction."""
    target = target_of("/v2/studies")
    request = Request("POST", "/v2/studies", (), {"content-type": "application/dicom"}, "http://h/v2", 2)
    sides = [Side(store, POOL, A), Side(store, POOL, B), Side(store, POOL), Side(store, POOL, B)]
    ingests: list[Ingest] = []
    for number, (side, hospital) in enumerate(zip(sides, "AACA", strict=True)):
        ingests.append(side._actions.ingest(request, target))
        ingests[-1].feed(file_of(key_of(number + 1), institution=hospital), stays=True)
    results = store_batch(store, ingests)
    assert [len(result.stored) for result in results] == [1, 0, 1, 0]


def test_a_delete_takes_what_is_invisible_for_absent(store):
    everyone, side = Side(store, POOL), Side(store, POOL, A)
    hidden, mixed = key_of(1), key_of(2)
    everyone.put(file_of(hidden, institution="B"), file_of(mixed, institution="A"))
    everyone.put(file_of(key_of(2, 2), institution="B"))
    told = set()
    for study, series, uid in (hidden, key_of(9)):
        for path in (f"/studies/{study}", f"/studies/{study}/series/{series}"):
            told.add(side.ask(f"/v2{path}", "DELETE").text)
            told.add(side.ask(f"/v2{path}", "DELETE", If_Match="*").text)
        told.add(side.ask(f"/v2/studies/{study}/series/{series}/instances/{uid}", "DELETE").text)
    told.add(side.ask("/v2/studies/1.2.2/series/1.2.2.2", "DELETE").text)
    told.add(side.ask("/v2/studies/1.2.2/series/1.2.2.2/instances/1.2.2.2.1", "DELETE").text)
    assert len(told) == 1
    assert dict(everyone.ask("/v2/instances").headers)["X-Total-Count"] == "3"
    # Of a mixed study only the visible instances go.
    assert side.ask(f"/v2/studies/{mixed[0]}", "DELETE").status == 204
    assert side.ask(f"/v2/studies/{mixed[0]}", "DELETE").text in told
    assert everyone.ask(f"/v2/studies/{mixed[0]}/instances").body.count(b'"00080018"') == 1


def test_an_instance_from_outside_changes_nothing_in_a_study(store):
    """Also in nothing that was remembered."""
    everyone, side = Side(store, POOL), Side(store, POOL, A)
    key, other = key_of(1), key_of(1, 2)
    everyone.put(file_of(key, institution="A"))
    study = f"/v2/studies/{key[0]}"
    paths = [
        "/v2/studies",
        f"{study}/series",
        study,
        f"{study}/metadata",
        f"{study}/series/{key[1]}/instances/{key[2]}/frames/1",
    ]
    before = [side.ask(path) for path in paths]
    assert [reply.status for reply in before] == [200] * 5
    everyone.put(file_of(other, institution="B", date="20250101", patient="PB"))
    assert [side.ask(path) for path in paths] == before
    etag = dict(before[2].headers)["ETag"]
    assert side.ask(study, If_None_Match=etag).status == 304
    assert everyone.ask(f"{study}/series/{key[1]}", "DELETE").status == 204
    assert [side.ask(path).status for path in paths] == [204, 204, 404, 404, 404]


def test_the_cached_frames_of_an_instance_end_with_its_visibility(store, monkeypatch):
    monkeypatch.setattr("streamsrv.retrieve.cached_frames.SETTLED", -1)
    everyone, side = Side(store, POOL, on_duplicate="replace"), Side(store, POOL, A)
    key = key_of(1)
    everyone.put(file_of(key, institution="A"))
    path = f"/v2/studies/{key[0]}/series/{key[1]}/instances/{key[2]}/frames/1"
    accept = {"accept": 'multipart/related; type="application/octet-stream"'}
    request = Request("GET", path, (), accept, "http://h/v2", 2)
    kept = side._actions.cached_frames(request, target_of(path))
    assert kept.current(kept.version())
    assert Side(store, POOL, B)._actions.cached_frames(request, target_of(path)) is None
    everyone.put(file_of(key_of(1, 2), institution="B"))
    assert kept.current(kept.version())
    everyone.put(file_of(key, institution="B"))
    assert not kept.current(kept.version())


def test_many_changes_and_a_bounded_log_are_noticed(tmp_path):
    """A view that was not asked for a while has nothing old."""
    with Store.open(tmp_path, StoreOptions(min_free=0, keep_changes=1)) as store:
        everyone, side = Side(store, POOL), Side(store, POOL, A)
        for number in range(1, 40):
            hospital = "A" if number % 2 else "B"
            everyone.put(file_of(key_of(number), institution=hospital, date=f"202401{number % 28 + 1:02}"))
            if number % 7 == 0:
                everyone.ask(f"/v2/studies/{key_of(number)[0]}", "DELETE")
            if number % 5 == 0:
                kept = [each for each in range(1, number + 1, 2) if each % 7]
                assert dict(side.ask("/v2/studies").headers)["X-Total-Count"] == str(len(kept))
                assert side.ask("/v2/studies").body.count(b'"0020000D"') == len(kept)


def test_counts_and_orders_follow_the_changes(tmp_path, monkeypatch):
    """While few studies are visible, and then while few are hidden."""
    monkeypatch.setattr("streamsrv.store.index.few_studies.RuleMemory.most", 12)
    with Store.open(tmp_path, StoreOptions(min_free=0)) as store:
        everyone, side, there = Side(store, POOL), Side(store, POOL, A), {}
        for number in range(1, 41):
            key = key_of(number)
            values = {
                "institution": "B" if number % 4 == 0 else "A",
                "name": f"N{number * 7 % 10}" * (number % 3),
            }
            everyone.put(file_of(key, **values))
            there[key[0]] = values
            if number % 6 == 0:
                gone = key_of(number // 2)[0]
                everyone.ask(f"/v2/studies/{gone}", "DELETE")
                del there[gone]
            seen = [
                (values["name"], study) for study, values in there.items() if values["institution"] == "A"
            ]
            up = sorted(seen, key=lambda each: (not each[0], *each))
            down = sorted(sorted(seen, key=lambda each: each[1]), key=lambda each: each[0], reverse=True)
            for order, expected in (("PatientName", up), ("-PatientName", down)):
                found = side.ask(f"/v2/studies?orderby={order}")
                uids = [each["0020000D"]["Value"][0] for each in json.loads(found.body)]
                assert uids == [study for _, study in expected], (number, order)
            for level in ("studies", "series", "instances"):
                total = dict(side.ask(f"/v2/{level}?limit=1").headers)["X-Total-Count"]
                assert total == str(len(seen)), (number, level)
        assert len(seen) > 12 > len(there) - len(seen)


def test_rules_share_a_memory(tmp_path):
    """The rule that was used least recently forgets its studies, and finds them again."""
    with Store.open(tmp_path, StoreOptions(min_free=0, rules_memory=20_000)) as store:
        everyone = Side(store, POOL)
        for number in range(30):
            everyone.put(file_of(key_of(number), institution="ABC"[number % 3]))
        views = [store.index.restricted(rule_of([f"InstitutionName={name}"])) for name in "ABC"]
        query = query_of(Level.STUDY, None, None, ())

        def remembered(view):
            assert len(list(view.search(query))) == 10
            return [each.counts for each in views]

        assert remembered(views[0]) == [True, False, False]
        assert remembered(views[1]) == [True, True, False]
        assert remembered(views[0]) == [True, True, False]
        assert remembered(views[2]) == [True, False, True]
        assert remembered(views[1]) == [False, True, True]
        del views[1:]
        assert remembered(views[0]) == [True]


def test_the_length_of_a_list_is_known_again(tmp_path, monkeypatch):
    """Of a long list the visible studies are counted once. Later changes count as if each hid one."""
    monkeypatch.setattr("streamsrv.store.index.few_studies.NOTED", 4)
    with Store.open(tmp_path, StoreOptions(min_free=0)) as store:
        everyone = Side(store, POOL)
        for number in range(12):
            everyone.put(file_of(key_of(number), institution="AB"[number % 2]))
            everyone.put(file_of(key_of(number, 2), institution="AB"[number % 2]))
        few = store.index.restricted(A)._visibility.few(Budget())
        few.note(b"key", 3)
        assert few.least(b"key", 12) == 0
        few.note(b"key", 5)
        assert (few.least(b"key", 12), few.least(b"other", 12)) == (5, 0)
        later = few.changed(few.version + 1, few.sequence + 2, [], (12, 24, 24))
        assert (later.least(b"key", 12), few.least(b"key", 12)) == (3, 5)
        later.note(b"key", 4)
        assert (later.least(b"key", 12), few.least(b"key", 12)) == (4, 2)
