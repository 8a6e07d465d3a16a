"""Upload slots by a clock of the test: shares, the slowest, what scarcity ends."""

import pytest

from streamsrv.errors import Overloaded, TooManyRequests
from streamsrv.web.connection.clients import GRACE, SPAN, YOUNG, Meter, Uploads

RATE = 1000


class UploadClock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return UploadClock()


class SentUpload:
    """An upload that moves `rate` bytes a second."""

    def __init__(self, uploads, client, clock, rate=0):
        self.slot = uploads.take(client)
        self.ended = []
        self.rate = rate
        self.meter = Meter(lambda: None, clock.now)
        self.slot.watch(self.meter, self.ended.append)


def pass_time(uploads, clock, sent, seconds):
    for _ in range(round(seconds * 2)):
        clock.now += 0.5
        for each in sent:
            each.meter.moved += each.rate // 2
        uploads.sweep(clock.now)


@pytest.mark.parametrize(("most", "share"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 6), (32, 24)])
def test_one_client_has_a_share(clock, most, share):
    uploads = Uploads(most, RATE, clock)
    sent = [SentUpload(uploads, "10.0.0.1", clock) for _ in range(share)]
    with pytest.raises(TooManyRequests):
        uploads.take("10.0.0.1")
    for number in range(most - share):
        sent.append(SentUpload(uploads, f"10.0.1.{number}", clock))
    with pytest.raises(Overloaded, match=f"{most} uploads are being received"):
        uploads.take("10.0.2.1")
    uploads.free(sent[0].slot)
    uploads.free(sent[0].slot)
    uploads.take("10.0.2.1")
    with pytest.raises(TooManyRequests if share == 1 else Overloaded):
        uploads.take("10.0.2.1")


def test_clients_of_one_ipv6_network_are_one(clock):
    uploads = Uploads(8, RATE, clock)
    for number in range(6):
        uploads.take(f"2001:db8::{number}")
    with pytest.raises(TooManyRequests, match="6 uploads of this client"):
        uploads.take("2001:db8::ffff")
    uploads.take("2001:db8:0:1::1")


def test_a_newcomer_replaces_the_slowest(clock):
    uploads = Uploads(4, RATE, clock)
    sent = [SentUpload(uploads, f"10.0.0.{rate}", clock, rate) for rate in (600, 300, 5000, 900)]
    with pytest.raises(Overloaded):  # too young
        uploads.take("10.0.1.1")
    pass_time(uploads, clock, sent, 2 * YOUNG)
    sent[1].meter.pause()  # the server's time
    for expected in (0, 3):
        SentUpload(uploads, "10.0.1.1", clock, 5000)
        assert [bool(each.ended) for each in sent].index(True) in (0, expected)
        assert "slowest" in sent[expected].ended[0]
    with pytest.raises(Overloaded):
        uploads.take("10.0.1.1")
    sent[1].meter.resume()
    uploads.take("10.0.1.1")
    assert len(sent[1].ended) == 1
    assert sent[2].ended == []


def test_a_client_at_its_share_replaces_its_own(clock):
    uploads = Uploads(8, RATE, clock)
    own = [SentUpload(uploads, "10.0.0.1", clock, 900) for _ in range(6)]
    other = SentUpload(uploads, "10.0.0.2", clock, 1)
    pass_time(uploads, clock, [*own, other], 1)
    uploads.take("10.0.0.1")
    assert sum(len(each.ended) for each in own) == 1
    assert other.ended == []


def test_while_slots_are_scarce_the_slowest_end(clock):
    uploads = Uploads(8, RATE, clock)
    sent = [SentUpload(uploads, f"10.0.0.{number}", clock, 100 * number) for number in range(1, 9)]
    pass_time(uploads, clock, sent, GRACE - 0.5)
    assert not any(each.ended for each in sent)
    pass_time(uploads, clock, sent, 10)
    assert [len(each.ended) for each in sent] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert "slots are scarce" in sent[0].ended[0]


def test_a_rate_is_that_of_the_last_seconds(clock):
    """A client that was fast and stops does not live off its credit."""
    uploads = Uploads(2, RATE, clock)
    sent = [SentUpload(uploads, f"10.0.0.{number}", clock, 1_000_000) for number in range(2)]
    pass_time(uploads, clock, sent, 60)
    assert not sent[0].ended
    sent[0].rate = 0
    pass_time(uploads, clock, sent, 2 * SPAN + 1)
    assert len(sent[0].ended) == 1
    assert not sent[1].ended


def test_the_rate_zero_ends_none(clock):
    uploads = Uploads(4, 0, clock)
    sent = [SentUpload(uploads, f"10.0.0.{number}", clock) for number in range(4)]
    pass_time(uploads, clock, sent, 60)
    with pytest.raises(Overloaded):
        uploads.take("10.0.1.1")
    assert not any(each.ended for each in sent)
