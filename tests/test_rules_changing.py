"""Stores and deletes by a principal with a rule; and studies whose visibility changes."""

import copy
import json

import pytest
from rules_world import Side, file_of, key_of

from streamsrv.ingest import store_batch
from streamsrv.ingest.transaction import Ingest
from streamsrv.pixels.pool import PixelPool
from streamsrv.query.attributes import Level
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import query_of
from streamsrv.query.rules import any_of, rule_of
from streamsrv.store import Store, StoreOptions
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
def test_a_store_in_an_invisible_study_tells_nothing_about_it(store, policy):
    """The same bytes, whether the instance is there or not, with the same bytes or others."""
    everyone = Side(store, POOL)
    there, other = key_of(1, 1, 1), key_of(1, 1, 2)
    assert everyone.put(file_of(there, institution="B")).status == 200
    before = everyone.ask(f"/v2/studies/{there[0]}").body
    side = Side(store, POOL, A, on_duplicate=policy)
    told = set()
    for key in (there, other):
        for values in ({"institution": "B"}, {"institution": "A"}, {"institution": None}):
            for fill in (1, 2):
                reply = side.put(file_of(key, fill, **values))
                assert failure(reply) == NOT_AUTHORIZED
                told.add(reply.text.replace(key[2].encode(), b"UID"))
    assert len(told) == 1
    # The same for an instance outside the rule, in a study that does not exist.
    absent = key_of(9)
    assert side.put(file_of(absent, institution="B")).text.replace(absent[2].encode(), b"UID") in told
    assert everyone.ask(f"/v2/studies/{there[0]}").body == before
    assert everyone.ask(f"/v2/studies/{absent[0]}").status == 404


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


def test_no_store_makes_a_study_that_its_sender_cannot_see(store):
    """By each alternative alone one of the two could be stored."""
    side = Side(store, POOL, any_of([A, B]))
    first, second = key_of(1, 1, 1), key_of(1, 1, 2)
    assert side.put(file_of(first, institution="A")).status == 200
    assert failure(side.put(file_of(second, institution="B"))) == NOT_AUTHORIZED
    assert side.ask(f"/v2/studies/{first[0]}/instances").body.count(b'"00080018"') == 1


def test_no_transaction_makes_a_study_that_its_sender_cannot_see(store):
    """As above, with both instances in one transaction."""
    side, target = Side(store, POOL, any_of([A, B])), target_of("/v2/studies")
    request = Request("POST", "/v2/studies", (), {"content-type": "application/dicom"}, "http://h/v2", 2)
    ingests = [side._actions.ingest(request, target) for _ in range(3)]
    for number, (ingest, hospital) in enumerate(zip(ingests, "ABA", strict=True)):
        ingest.feed(file_of(key_of(1, 1, number + 1), institution=hospital), stays=True)
    results = store_batch(store, ingests)
    assert [len(result.stored) for result in results] == [1, 0, 1]


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


def test_a_delete_takes_an_invisible_study_for_absent(store):
    everyone, side = Side(store, POOL), Side(store, POOL, A)
    hidden, mixed = key_of(1), key_of(2)
    everyone.put(file_of(hidden, institution="B"), file_of(mixed, institution="A"))
    everyone.put(file_of(key_of(2, 2), institution="B"))
    told = set()
    for study, series, uid in (hidden, mixed, key_of(9)):
        for path in (f"/studies/{study}", f"/studies/{study}/series/{series}"):
            told.add(side.ask(f"/v2{path}", "DELETE").text)
            told.add(side.ask(f"/v2{path}", "DELETE", If_Match="*").text)
        told.add(side.ask(f"/v2/studies/{study}/series/{series}/instances/{uid}", "DELETE").text)
    assert len(told) == 1
    assert dict(everyone.ask("/v2/instances").headers)["X-Total-Count"] == "3"
    assert everyone.ask(f"/v2/studies/{mixed[0]}/series/{key_of(2, 2)[1]}", "DELETE").status == 204
    assert side.ask(f"/v2/studies/{mixed[0]}", "DELETE").status == 204


def test_a_study_that_gets_an_instance_from_outside_disappears_at_once(store):
    """Also from everything that was remembered; and it comes back with its old answers."""
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
    assert [side.ask(path) for path in paths] == before
    everyone.put(file_of(other, institution="B"))
    assert [side.ask(path).status for path in paths] == [204, 204, 404, 404, 404]
    etag = dict(before[2].headers)["ETag"]
    assert side.ask(study, If_None_Match=etag).status == 404
    assert everyone.ask(f"{study}/series/{other[1]}", "DELETE").status == 204
    assert [side.ask(path) for path in paths] == before


def test_the_cached_frames_of_an_instance_end_with_its_visibility(store, monkeypatch):
    monkeypatch.setattr("streamsrv.retrieve.cached_frames.SETTLED", -1)
    everyone, side = Side(store, POOL), Side(store, POOL, A)
    key = key_of(1)
    everyone.put(file_of(key, institution="A"))
    path = f"/v2/studies/{key[0]}/series/{key[1]}/instances/{key[2]}/frames/1"
    accept = {"accept": 'multipart/related; type="application/octet-stream"'}
    request = Request("GET", path, (), accept, "http://h/v2", 2)
    kept = side._actions.cached_frames(request, target_of(path))
    assert kept.current(kept.version())
    assert Side(store, POOL, B)._actions.cached_frames(request, target_of(path)) is None
    everyone.put(file_of(key_of(1, 2), institution="B"))
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
