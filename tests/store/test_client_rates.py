"""Buckets of clients, with a clock of the test."""

import pytest

from streamsrv.errors import TooManyRequests
from streamsrv.query.rates import ClientRates


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_burst_and_then_the_rate():
    clock = Clock()
    rates = ClientRates(2.0, 10.0, clock)
    for _ in range(10):
        rates.check("a", "too much")
        rates.spend("a", 1)
    with pytest.raises(TooManyRequests, match="too much") as refused:
        rates.check("a", "too much")
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    assert rates.wait("b") == 0
    clock.now += 0.5  # one unit
    assert rates.wait("a") == 0
    rates.spend("a", 1)
    assert rates.wait("a") == 1
    clock.now += 1000
    rates.spend("a", 9)
    assert rates.wait("a") == 0, "a bucket holds no more than the burst"
    rates.spend("a", 1)
    assert rates.wait("a") == 1


def test_a_debt_is_paid_before_the_next_request():
    clock = Clock()
    rates = ClientRates(10.0, 5.0, clock)
    rates.spend("a", 1_005)
    assert rates.wait("a") == 100
    clock.now += 99
    assert rates.wait("a") == 1
    clock.now += 1.1
    assert rates.wait("a") == 0


def test_without_a_rate_nothing_is_counted():
    rates = ClientRates(0, 0)
    rates.spend("a", 1e9)
    assert rates.wait("a") == 0


def test_the_clients_that_came_last_are_remembered():
    rates = ClientRates(1.0, 1.0, Clock(), remembered=3)
    for client in "abac":  # `b` is the oldest then
        rates.spend(client, 5)
    rates.spend("d", 5)
    assert [client for client in "abcd" if rates.wait(client)] == ["a", "c", "d"]
