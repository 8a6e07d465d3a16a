"""The archive that `python -m perf search` asks holds what its requests look for: a measurement of empty
answers would look very fast."""

import random

import pytest

from perf import search as measure
from streamsrv import search
from streamsrv.store.store import Store, StoreOptions
from streamsrv.wire.answers import Request
from streamsrv.wire.resources import parse_query, target_of

STUDIES = 12
# A day at random may be one on which nobody came.
MAY_BE_EMPTY = {
    "StudyDate, a day",
    "StudyDate, a month",
    "PatientName, beginning",
    "PatientName, within",
    "PerformedProcedureStepStartDate",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    measure.grow(folder, 0, STUDIES)
    with Store.open(folder, StoreOptions(min_free=0), read_only=True) as opened:
        yield opened


def test_it_grows_by_studies(store):
    figures = store.index.statistics()
    assert (figures["studies"], figures["series"]) == (STUDIES, 2 * STUDIES)
    assert figures["instances"] == STUDIES * measure.A_STUDY


def test_an_archive_says_how_large_it_is(store):
    assert measure.grown(store) == STUDIES * measure.A_STUDY


@pytest.mark.parametrize("name", measure.KEYS)
def test_a_key_finds_something(store, name):
    url = measure.KEYS[name](random.Random(1), STUDIES)
    path, _, query = url.partition("?")
    request = Request("GET", f"/v2{path}", parse_query(query), {}, "http://server/v2", 2)
    answer = search.answer(store, request, target_of(request.path))
    assert answer.status == 200 or (answer.status == 204 and name in MAY_BE_EMPTY)
