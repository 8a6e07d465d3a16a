"""Pages that are kept until the next commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_world import Holder, ask, element, header, instance, populate, results, values

from streamsrv.search import answers, pages
from streamsrv.search.pages import A_PAGE, Pages
from streamsrv.store.index.index import Index
from streamsrv.wire.answers import Request


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Holder]:
    index = Index.open(tmp_path)
    index.add_segment()
    index.commit(list(populate()), segment=1, committed_end=0)
    yield Holder(index)
    index.close()


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    make = answers._made

    def counting(store: Holder, request: Request, *rest: Any) -> Any:
        made.append(request.path)
        return make(store, request, *rest)

    monkeypatch.setattr(answers, "_made", counting)
    return made


def test_a_page_is_searched_for_once(own: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_searches(monkeypatch)
    first = ask(own, "/studies?PatientID=P0")
    second = ask(own, "/studies?PatientID=P0")
    assert len(made) == 1
    assert (first.status, first.headers, list(first.plan)) == (200, second.headers, list(second.plan))
    assert ask(own, "/studies?PatientID=nobody").status == ask(own, "/studies?PatientID=nobody").status == 204
    assert len(made) == 2


def test_after_a_commit_it_is_searched_for_again(own: Holder) -> None:
    before = values(results(own, "/studies"), "0020000D")
    new = instance(("1.9", "1.9.0", "1.9.0.0"), 900, {"00080020": element("DA", "20991231")})
    own.index.commit([new], segment=1, committed_end=0)
    assert values(results(own, "/studies"), "0020000D") == ["1.9", *before]
    own.index.delete(own.index.packed("1.9"), segment=1, committed_end=0, dead_bytes=0)
    assert values(results(own, "/studies"), "0020000D") == before


def test_requests_that_differ_share_no_page(own: Holder) -> None:
    assert len(results(own, "/studies?limit=1")) == 1
    assert len(results(own, "/studies?limit=2")) == 2
    xml = ask(own, "/studies?limit=1", accept='multipart/related; type="application/dicom+xml"')
    assert "dicom+xml" in header(xml, "Content-Type")[0]
    assert header(ask(own, "/studies?limit=1"), "Content-Type") == ["application/dicom+json"]


def test_conditions_are_of_the_request(own: Holder) -> None:
    (etag,) = header(ask(own, "/studies"), "ETag")
    assert ask(own, "/studies", **{"if-none-match": etag}).status == 304
    assert ask(own, "/studies", **{"if-none-match": '"another"'}).status == 200
    part = ask(own, "/studies", range="bytes=0-0")
    assert (part.status, part.length) == (206, 1)
    assert ask(own, "/studies").status == 200


def test_what_comes_late_is_never_found() -> None:
    kept: Pages[str] = Pages()
    kept.put(1, "a", "old", 0)
    kept.put(2, "a", "new", 0)
    assert (kept.get(1, "a"), kept.get(2, "a")) == (None, "new")
    kept.put(1, "b", "late", 0)
    assert kept.get(2, "b") is None


def test_pages_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_BYTES", 3 * A_PAGE)
    kept: Pages[int] = Pages()
    kept.put(1, "too long", 0, 2 * A_PAGE + 1)
    assert kept.get(1, "too long") is None
    for number in range(4):
        kept.put(1, number, number, 0)
    assert [kept.get(1, number) for number in range(4)] == [None, None, None, 3]
