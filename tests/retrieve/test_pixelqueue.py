"""The fair queue of orders, without processes; and what a client stops that leaves."""

import os
import threading
import time

import pytest
from pixel_world import ManualAnswer

from framecodecs.errors import DecodeError, QueueFull
from framecodecs.pool.pipes import StoredFrame
from streamsrv.errors import Overloaded, StoreError, WouldBlock
from streamsrv.pixels.orders import QUICK, WORTH_A_PROCESS, Making, Order
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.queue import CLIENTS, FairQueue
from streamsrv.wire.answers import Requester


def order(pixels=1, requester=None, frames=()):
    return Order(print, frames, (), pixels, requester or Requester("a"))


class SentOrders:
    """What was sent, with its answers."""

    def __init__(self):
        self.orders, self.answers, self.error = [], [], None

    def __call__(self, order):
        if self.error is not None:
            raise self.error
        self.orders.append(order)
        self.answers.append(ManualAnswer())
        return self.answers[-1]


@pytest.fixture
def sent():
    return SentOrders()


def test_a_client_has_a_few_orders_sent_and_others_wait(sent):
    queue = FairQueue(2, 10)
    answers = [queue.submit("a", order(number), sent) for number in range(5)]
    assert [one.pixels for one in sent.orders] == [0, 1]
    queue.submit("b", order(9), sent)  # before what the other one has waiting
    assert [one.pixels for one in sent.orders] == [0, 1, 9]
    sent.answers[1].set_result(["x"])
    assert [one.pixels for one in sent.orders] == [0, 1, 9, 2]
    assert answers[1].result(0) == ["x"]
    for number in (0, 3):
        sent.answers[number].set_result([str(number)])
    assert [one.pixels for one in sent.orders] == [0, 1, 9, 2, 3, 4]
    assert answers[2].result(0) == ["3"]
    sent.answers[4].set_exception(DecodeError("no"))
    with pytest.raises(DecodeError):
        answers[3].result(0)
    assert not answers[4].done()
    for number in (2, 5):
        sent.answers[number].set_result([])
    assert queue.clients == []


def test_too_many_orders_of_one_client_are_refused(sent):
    queue = FairQueue(1, 2)
    answers = [queue.submit("a", order(), sent) for _ in range(3)]
    with pytest.raises(QueueFull):
        queue.submit("a", order(), sent)
    queue.submit("b", order(), sent)
    assert answers[1].cancel()
    queue.submit("a", order(), sent)
    with pytest.raises(QueueFull):
        queue.submit("a", order(), sent)


def test_all_clients_together_have_a_limit(sent):
    queue = FairQueue(1, 2)
    for client in range(CLIENTS):
        for _ in range(3):
            queue.submit(str(client), order(), sent)
    queue.submit("another", order(), sent)
    with pytest.raises(QueueFull):
        queue.submit("another", order(), sent)


def test_what_was_cancelled_is_never_sent(sent):
    queue = FairQueue(1, 5)
    first, second, third = (queue.submit("a", order(number), sent) for number in range(3))
    assert second.cancel()
    assert not third.running()
    sent.answers[0].set_result([])
    assert [one.pixels for one in sent.orders] == [0, 2]
    sent.answers[1].begun = True
    assert third.running()
    assert not third.cancel()
    sent.answers[1].begun = False
    assert third.cancel()
    assert sent.answers[1].cancelled()
    assert queue.clients == []
    assert first.done()


def test_what_cannot_be_sent_later_is_told_and_the_next_one_is_sent(sent):
    queue = FairQueue(1, 5)
    answers = [queue.submit("a", order(number), sent) for number in range(2)]
    sent.error = QueueFull("full")
    sent.answers[0].set_result([])
    with pytest.raises(QueueFull):
        answers[1].result(0)
    with pytest.raises(QueueFull):
        queue.submit("a", order(), sent)
    assert queue.clients == []
    sent.error = None
    assert not queue.submit("a", order(), sent).done()


def test_files_stay_open_for_orders_that_wait(sent, tmp_path):
    def read(given):
        descriptor, offset, length = given.frames[1]
        read_by.append((descriptor, os.pread(descriptor, length, offset)))
        return sent(given)

    read_by = []
    (tmp_path / "segment").write_bytes(b"0123456789")
    file = os.open(tmp_path / "segment", os.O_RDONLY)
    stored = [b"at hand", StoredFrame(file, 3, 4), StoredFrame(file, 5, 2)]
    queue = FairQueue(1, 5)
    queue.submit("a", order(), sent)
    queue.submit("a", order(frames=stored), read)
    cancelled = queue.submit("a", order(frames=stored), read)
    os.close(file)
    cancelled.cancel()
    sent.answers[0].set_result([])
    ((descriptor, content),) = read_by
    assert (sent.orders[1].frames[0], content) == (b"at hand", b"3456")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    sent.answers[1].set_result([])
    assert queue.clients == []


def test_closing_ends_what_waits(sent):
    queue = FairQueue(1, 5)
    _, waiting = (queue.submit("a", order(), sent) for _ in range(2))
    queue.close()
    assert waiting.cancelled()


def test_many_threads(sent):
    """Whatever happens at the same time, each order has one outcome and no place is lost."""
    queue, lock, done = FairQueue(3, 10_000), threading.Lock(), []

    def send(given):
        answer = ManualAnswer()
        threading.Thread(target=answer.set_result, args=([given.pixels],)).start()
        return answer

    def client(name):
        for number in range(50):
            answer = queue.submit(name, order(number), send)
            if number % 7 == 3 and answer.cancel():
                continue
            assert answer.result(20) == [number]
            with lock:
                done.append(number)

    threads = [threading.Thread(target=client, args=(name,)) for name in "aabbcc" for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = time.monotonic() + 5
    while queue.clients and time.monotonic() < end:
        time.sleep(0.01)
    assert queue.clients == []
    assert len(done) > 12 * 40


# The pool


class ManualProcesses:
    """A FramePool that does nothing."""

    def __init__(self):
        self.sent, self.killed = SentOrders(), []

    def submit(self, work, frames, *arguments, deadline):
        return self.sent(deadline)

    def cancel(self, answer):
        self.killed.append(answer)
        answer.set_exception(StoreError("stopped"))

    def close(self):
        pass


@pytest.fixture
def pool():
    made = PixelPool(2)
    made._pool, made._slow_pool = ManualProcesses(), ManualProcesses()
    return made


def test_long_work_has_processes_of_its_own(pool):
    pool.submit(order(QUICK))
    pool.submit(order(QUICK + 1))
    assert len(pool._pool.sent.orders) == len(pool._slow_pool.sent.orders) == 1


@pytest.mark.parametrize("pixels", [QUICK, QUICK + 1, WORTH_A_PROCESS + 1])
@pytest.mark.parametrize("waits", [False, True])
def test_what_is_stopped(pool, pixels, waits):
    """An order that waits leaves the queue. One that has begun is stopped if it is long."""
    if waits:
        for _ in range(3):
            pool.submit(order(pixels))
    answer = pool.submit(order(pixels))
    processes = pool._slow_pool if pixels > QUICK else pool._pool
    if waits:
        assert len(processes.sent.answers) == 3
        processes.sent.answers[0].set_result([])
    processes.sent.answers[-1].begun = True
    is_long = pixels > WORTH_A_PROCESS
    assert pool.stop(answer, pixels) is is_long
    assert processes.killed == [processes.sent.answers[-1]] * is_long
    assert answer.done() is is_long


@pytest.mark.parametrize("pixels", [1, QUICK + 1])
def test_a_thread_whose_client_has_left_waits_no_longer(pool, pixels):
    requester = Requester("a")
    making = Making("key", lambda: order(pixels, requester), lambda results: b"made", requester)
    raised = []

    def ask():
        with pytest.raises(Overloaded) as error:
            pool.made(making)
        raised.append(error.value)

    thread = threading.Thread(target=ask)
    thread.start()
    while not (pool._pool.sent.answers or pool._slow_pool.sent.answers):
        time.sleep(0.001)
    requester.leave()
    thread.join(10)
    assert raised
    assert "key" not in pool.makings


def test_in_the_loop_long_work_that_has_begun_is_stopped(pool):
    pool._loop = threading.get_ident()
    making = Making("key", lambda: order(WORTH_A_PROCESS + 1), lambda results: b"made")
    with pytest.raises(WouldBlock) as blocked:
        pool.made(making)
    (only,) = pool._slow_pool.sent.answers
    only.begun = True
    assert blocked.value.leave()
    assert pool._slow_pool.killed == [only]
    assert "key" not in pool.makings


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_answer_of_many_orders_is_given_up_before_it_begins(pool, has_begun, monkeypatch):
    """A client that has shut its side and receives an answer gets the whole answer."""
    monkeypatch.setattr("streamsrv.pixels.turns.TURN", 0.01)
    requester = Requester("a")
    turns = pool.in_turn((number, order(1, requester)) for number in range(5))
    assert next(turns) is None
    if has_begun:
        pool._pool.sent.answers[0].set_result([])
        assert next(turns)[0] == 0
    requester.leave()
    if has_begun:
        assert next(turns) is None
        turns.close()
    else:
        with pytest.raises(Overloaded):
            next(turns)
    assert all(answer.cancelled() for answer in pool._pool.sent.answers[has_begun:])
