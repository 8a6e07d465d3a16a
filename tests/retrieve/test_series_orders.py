"""Orders of series: as many as there is room for, the one that was needed last is kept.

How instances follow one another is tested with what is made ahead of them (test_reading_ahead.py).
"""

import pytest
from pixel_world import KINDS, LITTLE, arrays_of, image, stored_as
from retrieve_world import keep

from streamsrv.pixels import series_order as series_orders
from streamsrv.pixels.series_order import Orders, order_of

KIND = KINDS["12 in 16"]
COUNT = 3


def add(store, number, instance_number):
    dataset = image(KIND, arrays_of(KIND, 1), f"1.2.3.4.{number}", InstanceNumber=instance_number)
    keep(store, stored_as(dataset, LITTLE))


@pytest.fixture
def row(store):
    """Of a series whose Instance Numbers run against its UIDs."""
    for number in range(COUNT):
        add(store, number, COUNT - number)
    return store.lookup("1.2.3")[0]


def of_series(row, uid):
    return row._replace(key=row.key._replace(series=uid))


def test_they_are_few_and_short(store, row, monkeypatch):
    monkeypatch.setattr(series_orders, "SERIES", 2)
    orders = Orders()
    for number in range(5):
        orders.learn(store, of_series(row, f"1.2.{number}"))
    assert len(orders._orders) == 2
    monkeypatch.setattr(series_orders, "INSTANCES", COUNT - 1)
    orders.learn(store, row)
    assert not orders._orders


def test_the_one_that_was_needed_last_is_kept(store, row, monkeypatch):
    monkeypatch.setattr(series_orders, "SERIES", 2)
    orders = Orders()
    other, third = (of_series(row, uid) for uid in ("1.2.1", "1.2.2"))
    for one in (row, other, row, third):
        orders.learn(store, one)
    assert list(orders._orders) == [row.key[:2], third.key[:2]]


def test_another_instance_is_another_mark(store, row):
    before = order_of(store, *row.key[:2])
    assert before.mark == order_of(store, *row.key[:2]).mark
    add(store, COUNT, 0)
    after = order_of(store, *row.key[:2])
    assert after.uids == [f"1.2.3.4.{COUNT}", *before.uids]
    assert after.mark != before.mark
