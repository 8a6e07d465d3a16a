"""Studies in the order of an inverted list, against a model that sorts all, and how many rows that reads."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_world import Holder, ask, body_of, element, header, instance, request_of
from test_search_paging import next_page

from streamsrv.errors import TooManyRequests
from streamsrv.query.attributes import BY_TAG, NEWEST, Level, StudyOrder
from streamsrv.query.budget import Budget
from streamsrv.query.conditions import query_of
from streamsrv.query.matching import MatchingOptions
from streamsrv.query.values import sort_value
from streamsrv.store.index.index import Index
from streamsrv.wire.answers import Answer, Requester, resolved
from streamsrv.wire.resources import target_of

STUDIES = 600
LONG = "long " * 100  # longer than a list holds
NAMES: tuple[Any, ...] = (
    {"Alphabetic": "Doe^Jane"},
    {"Alphabetic": "doe^Jane"},
    {"Alphabetic": "\u00c9mile^Zo\u00e9"},
    {"Alphabetic": "Yamada^Tarou", "Ideographic": "\u5c71\u7530^\u592a\u90ce", "Phonetic": "yama"},
    {"Ideographic": "\u738b^\u5c0f\u6771"},
    {"Alphabetic": LONG + "A"},
    {"Alphabetic": LONG + "B"},
    {"Alphabetic": "\U0001f600" * 80},  # four bytes each, cut within a character
    {"Alphabetic": " ^"},
)
DATES = ("20240101", "20231231", "2024")
TAGS = ("00100010", "00100020", "00080020", "00081030", "00080030", "00080061", "00080090")
CONDITIONS = ("", "&StudyDate=20240101", "&PatientName=doe^j*", "&StudyDescription=h*")
BY_NAME = BY_TAG["00100010"]
FUZZY = MatchingOptions(fuzzy=True)


def attributes_of(numbers: random.Random) -> dict[str, Any]:
    several = [numbers.choice(NAMES) for _ in range(numbers.randrange(3))]
    return {
        "00100010": element("PN", *[numbers.choice(NAMES)][: numbers.randrange(9)]),
        "00080090": element("PN", *several),
        "00100020": element("LO", *[f"P{numbers.randrange(200)}"][: numbers.randrange(9)]),
        "00080020": element("DA", *[numbers.choice(DATES)][: numbers.randrange(9)]),
        "00080030": element("TM", numbers.choice(("10", "1015", "101500.5", "99"))),
        "00081030": element("LO", *[numbers.choice(("Head", "head", LONG, "-"))][: numbers.randrange(3)]),
        "00080060": element("CS", numbers.choice(("CT", "MR"))),
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Holder, dict[str, dict[str, Any]]]]:
    numbers, index = random.Random(5), Index.open(tmp_path_factory.mktemp("index"))
    index.add_segment()
    held, new = {}, []
    for study in range(STUDIES):
        uid = f"1.{numbers.randrange(10**6)}.{study}"
        held[uid] = attributes_of(numbers)
        new.append(instance((uid, f"{uid}.1", f"{uid}.1.1"), study + 1, held[uid]))
    index.commit(new, segment=1, committed_end=0)
    for attributes in held.values():
        attributes["00080061"] = attributes["00080060"]
    yield Holder(index), held
    index.close()


def value_of(attributes: dict[str, Any], tag: str) -> str | None:
    return sort_value(BY_TAG[tag].vr, attributes[tag])


def uids_of(holder: Holder, url: str | None) -> Iterator[str]:
    while url:
        answer = ask(holder, url)
        yield from (each["0020000D"]["Value"][0] for each in json.loads(body_of(answer) or b"[]"))
        url = next_page(answer)


@pytest.mark.no_cover
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "condition", ["", "&StudyDate=20240101", "&PatientName=doe^j*", "&StudyDescription=h*"]
)
def test_pages_come_in_the_order_of_the_values(
    archive: tuple[Holder, dict[str, dict[str, Any]]], tag: str, sign: str, condition: str
) -> None:
    holder, held = archive
    everything = set(uids_of(holder, f"/studies?limit=5000{condition}"))
    assert everything
    assert bool(condition) is (len(everything) < STUDIES)
    values = {uid: value_of(held[uid], tag) for uid in everything}
    valued = sorted(uid for uid in values if values[uid] is not None)
    valued.sort(key=lambda uid: values[uid] or "", reverse=bool(sign))
    expected = valued + sorted(uid for uid in values if values[uid] is None)
    for limit in (37, 5000):
        url = f"/studies?limit={limit}&orderby={sign}{tag}{condition}"
        assert list(uids_of(holder, url)) == expected


def test_an_offset_may_be_far_in_the_order_of_a_list(archive: tuple[Holder, dict[str, Any]]) -> None:
    holder, _ = archive
    assert ask(holder, "/studies?orderby=PatientName&offset=10001").status == 204
    assert header(ask(holder, "/studies?orderby=PatientName&limit=1"), "X-Total-Count") == [str(STUDIES)]


@pytest.mark.parametrize("order", [NEWEST, StudyOrder(BY_NAME), StudyOrder(BY_NAME, descending=True)])
def test_a_page_reads_about_its_own_rows(archive: tuple[Holder, dict[str, Any]], order: StudyOrder) -> None:
    """The budget allows a tenth of the studies."""
    holder, _ = archive
    query = query_of(Level.STUDY, None, None, []).page(50, order, None)
    hits = holder.index.search(query, Budget(rows=STUDIES // 10))
    assert len([hit for _, hit in zip(range(50), hits, strict=False)]) == 50


@pytest.mark.no_cover
def test_words_that_no_name_begins_with_cost_a_list_and_few_rows(tmp_path: Path) -> None:
    """Each word begins many names; none begins with all of them. Without the list each row would be read."""
    index = Index.open(tmp_path)
    index.add_segment()
    first, second = "ABCDEFGH", "IJKLMNOP"
    new = []
    for number in range(4_000):
        name = f"{first[number % 8]}{number}^{second[number // 8 % 8]}{number}"
        key = (f"1.{number}", f"1.{number}.1", f"1.{number}.1.1")
        new.append(instance(key, number + 1, {"00100010": element("PN", {"Alphabetic": name})}))
    index.commit(new, segment=1, committed_end=0)
    for words, found in (("a i", 50), ("a b", 0), ("a i k", 0), ("c k", 50)):
        query = query_of(Level.STUDY, None, None, [("PatientName", words)], FUZZY).page(50, NEWEST, None)
        budget = Budget(rows=1_500)
        hits = [hit for _, hit in zip(range(50), index.search(query, budget), strict=False)]
        assert len(hits) == found
    index.close()


def test_words_may_be_in_several_groups_of_a_name(archive: tuple[Holder, dict[str, Any]]) -> None:
    holder, held = archive
    expected = {uid for uid, each in held.items() if NAMES[3] in each["00100010"].get("Value", ())}
    for words in ("yamada \u5c71", "\u592a yama t", "tarou \u5c71"):
        url = f"/studies?limit=5000&fuzzymatching=true&PatientName={words}"
        assert set(uids_of(holder, url)) == expected


def test_the_searches_of_a_client_have_a_rate(archive: tuple[Holder, dict[str, Any]]) -> None:
    """Long ones alone are counted. Another client goes on."""
    holder, _ = archive
    searches = holder.searches(rate=100)

    def search(client: str, url: str) -> Answer:
        request = replace(request_of(url, {}), requester=Requester(client))
        return resolved(searches.answer(request, target_of(request.path)))

    for number in range(2):  # a thousand rows at once; each reads 600
        assert search("greedy", f"/studies?orderby=PatientName,StudyDate&limit={number + 1}").status == 200
    with pytest.raises(TooManyRequests) as refused:
        search("greedy", "/studies?orderby=PatientName,StudyDate&limit=3")
    assert 1 <= refused.value.retry_after <= 3
    assert search("modest", "/studies?orderby=PatientName,StudyDate&limit=3").status == 200
    assert search("greedy", "/studies?limit=3").status == 200
