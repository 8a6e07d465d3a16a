"""docs/architecture.md equals the source: its house is the table of floors and the imports, and its journeys
go through modules that exist and use each other.
"""

import pytest
from house import PAGE, filled, groups, imported, journeys, leads, module_of
from test_floors import FLOORS

TEXT = PAGE.read_text(encoding="utf-8")
JOURNEYS = journeys(TEXT)


def test_the_house_is_that_of_the_source():
    """`python tests/house.py` writes it."""
    assert filled(TEXT) == TEXT


def test_the_house_has_every_room_and_arrows():
    rooms = {room for floor in groups().values() for members in floor.values() for room in members}
    assert rooms == set(FLOORS) - {"streamsrv", "streamsrv.__main__"}
    assert "store" in imported(["streamsrv.retrieve"])


def test_the_page_is_short():
    assert TEXT.count("\n") <= 150


def test_the_page_has_the_six_journeys():
    assert list(JOURNEYS) == [
        "store",
        "frame, stored",
        "frame, stored, cached",
        "frame, transcoded",
        "search",
        "delete",
    ]


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_goes_through_modules_that_use_each_other(name):
    """After `<` stands the module of an earlier stop, to which control returns."""
    (_, here), *stops = JOURNEYS[name]
    visited = [module_of(here)]
    for arrow, there in stops:
        if arrow == "<":
            assert module_of(there) in visited, there
        else:
            assert leads(here, there), f"{here} does not use {there}"
        visited.append(module_of(there))
        here = there


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_has_no_more_than_fifteen_modules(name):
    assert len({module_of(stop).name for _, stop in JOURNEYS[name]}) <= 15


def test_an_arrow_that_does_not_exist_is_seen():
    assert not leads("web.app", "store.index.index")
    assert not leads("web.app", "retrieve.frames:no_such_function")
    with pytest.raises(KeyError):
        module_of("web.no_such_module")
