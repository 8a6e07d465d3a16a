"""Answers that are cached until the next commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_world import Holder, ask, element, header, instance, populate, results, values

from streamsrv.search import Searches
from streamsrv.store.index.index import Index
from streamsrv.wire.answers import Request


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Holder]:
    index = Index.open(tmp_path)
    index.add_segment()
    index.commit(list(populate()), segment=1, committed_end=0)
    yield Holder(index)
    index.close()


def test_a_page_is_searched_for_once(own: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    search = Searches._search

    def counting(searches: Searches, request: Request, *rest: Any) -> Any:
        searched.append(request.path)
        return search(searches, request, *rest)

    monkeypatch.setattr(Searches, "_search", counting)
    searches = own.searches()
    first, second = (ask(searches, "/studies?PatientID=P0") for _ in range(2))
    assert len(searched) == 1
    assert (first.status, first.headers, list(first.plan)) == (200, second.headers, list(second.plan))
    assert [ask(searches, "/studies?PatientID=nobody").status for _ in range(2)] == [204, 204]
    assert len(searched) == 2


def test_after_a_commit_it_is_searched_for_again(own: Holder) -> None:
    searches = own.searches()
    before = values(results(searches, "/studies"), "0020000D")
    new = instance(("1.9", "1.9.0", "1.9.0.0"), 900, {"00080020": element("DA", "20991231")})
    own.index.commit([new], segment=1, committed_end=0)
    assert values(results(searches, "/studies"), "0020000D") == ["1.9", *before]
    own.index.delete(own.index.packed("1.9"), segment=1, committed_end=0, dead_bytes=0)
    assert values(results(searches, "/studies"), "0020000D") == before


def test_requests_that_differ_share_no_page(own: Holder) -> None:
    searches = own.searches()
    assert len(results(searches, "/studies?limit=1")) == 1
    assert len(results(searches, "/studies?limit=2")) == 2
    xml = ask(searches, "/studies?limit=1", accept='multipart/related; type="application/dicom+xml"')
    assert "dicom+xml" in header(xml, "Content-Type")[0]
    assert header(ask(searches, "/studies?limit=1"), "Content-Type") == ["application/dicom+json"]


def test_conditions_are_of_the_request(own: Holder) -> None:
    searches = own.searches()
    (etag,) = header(ask(searches, "/studies"), "ETag")
    assert ask(searches, "/studies", **{"if-none-match": etag}).status == 304
    assert ask(searches, "/studies", **{"if-none-match": '"another"'}).status == 200
    part = ask(searches, "/studies", range="bytes=0-0")
    assert (part.status, part.length) == (206, 1)
    assert ask(searches, "/studies").status == 200
