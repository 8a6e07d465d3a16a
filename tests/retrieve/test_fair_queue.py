"""The fair queue of tasks, without processes; and what a client stops that leaves."""

import os
import threading
import time

import pytest
from pixel_world import ManualAnswer

from framecodecs.errors import DecodeError, QueueFull
from framecodecs.pool.pipes import StoredFrame
from streamsrv.errors import Overloaded, StoreError, TooManyRequests
from streamsrv.pixels.fair_queue import CLIENTS, FairQueue
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.tasks import QUICK, WORTH_A_PROCESS, FrameJob, PixelTask
from streamsrv.wire.answers import Requester


def task_of(pixels=1, requester=None, frames=()):
    return PixelTask(print, frames, (), pixels, requester or Requester("a"))


class SentTasks:
    """What was sent, with its answers."""

    def __init__(self):
        self.tasks, self.answers, self.error = [], [], None

    def __call__(self, task):
        if self.error is not None:
            raise self.error
        self.tasks.append(task)
        self.answers.append(ManualAnswer())
        return self.answers[-1]


@pytest.fixture
def sent():
    return SentTasks()


def test_a_client_has_a_few_orders_sent_and_others_wait(sent):
    queue = FairQueue(2, 10)
    answers = [queue.submit("a", task_of(number), sent) for number in range(5)]
    assert [one.pixels for one in sent.tasks] == [0, 1]
    queue.submit("b", task_of(9), sent)  # before what the other one has waiting
    assert [one.pixels for one in sent.tasks] == [0, 1, 9]
    sent.answers[1].set_result(["x"])
    assert [one.pixels for one in sent.tasks] == [0, 1, 9, 2]
    assert answers[1].result(0) == ["x"]
    for number in (0, 3):
        sent.answers[number].set_result([str(number)])
    assert [one.pixels for one in sent.tasks] == [0, 1, 9, 2, 3, 4]
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
    answers = [queue.submit("a", task_of(), sent) for _ in range(3)]
    with pytest.raises(TooManyRequests):
        queue.submit("a", task_of(), sent)
    queue.submit("b", task_of(), sent)
    assert answers[1].cancel()
    queue.submit("a", task_of(), sent)
    with pytest.raises(TooManyRequests):
        queue.submit("a", task_of(), sent)


def test_all_clients_together_have_a_limit(sent):
    queue = FairQueue(1, 2)
    for client in range(CLIENTS):
        for _ in range(3):
            queue.submit(str(client), task_of(), sent)
    queue.submit("another", task_of(), sent)
    with pytest.raises(QueueFull):
        queue.submit("another", task_of(), sent)


def test_what_was_cancelled_is_never_sent(sent):
    queue = FairQueue(1, 5)
    first, second, third = (queue.submit("a", task_of(number), sent) for number in range(3))
    assert second.cancel()
    assert not third.running()
    sent.answers[0].set_result([])
    assert [one.pixels for one in sent.tasks] == [0, 2]
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
    answers = [queue.submit("a", task_of(number), sent) for number in range(2)]
    sent.error = QueueFull("full")
    sent.answers[0].set_result([])
    with pytest.raises(QueueFull):
        answers[1].result(0)
    with pytest.raises(QueueFull):
        queue.submit("a", task_of(), sent)
    assert queue.clients == []
    sent.error = None
    assert not queue.submit("a", task_of(), sent).done()


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
    queue.submit("a", task_of(), sent)
    queue.submit("a", task_of(frames=stored), read)
    cancelled = queue.submit("a", task_of(frames=stored), read)
    os.close(file)
    cancelled.cancel()
    sent.answers[0].set_result([])
    ((descriptor, content),) = read_by
    assert (sent.tasks[1].frames[0], content) == (b"at hand", b"3456")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    sent.answers[1].set_result([])
    assert queue.clients == []


def test_closing_ends_what_waits(sent):
    queue = FairQueue(1, 5)
    _, waiting = (queue.submit("a", task_of(), sent) for _ in range(2))
    queue.close()
    assert waiting.cancelled()


def test_many_threads(sent):
    """Whatever happens at the same time, each task has one outcome and no place is lost."""
    queue, lock, done = FairQueue(3, 10_000), threading.Lock(), []

    def send(given):
        answer = ManualAnswer()
        threading.Thread(target=answer.set_result, args=([given.pixels],)).start()
        return answer

    def client(name):
        for number in range(50):
            answer = queue.submit(name, task_of(number), send)
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
        self.sent, self.killed = SentTasks(), []

    def submit(self, work, frames, *arguments, deadline, here=False):
        return self.sent(deadline)

    def cancel(self, answer):
        self.killed.append(answer)
        answer.set_exception(StoreError("stopped"))

    def call_soon(self, function):
        function()

    def close(self):
        pass


@pytest.fixture
def pool():
    made = PixelPool(2)
    made._pool, made._slow_pool = ManualProcesses(), ManualProcesses()
    return made


def test_long_work_has_processes_of_its_own(pool):
    pool.submit(task_of(QUICK))
    pool.submit(task_of(QUICK + 1))
    assert len(pool._pool.sent.tasks) == len(pool._slow_pool.sent.tasks) == 1


@pytest.mark.parametrize("pixels", [QUICK, QUICK + 1, WORTH_A_PROCESS + 1])
@pytest.mark.parametrize("waits", [False, True])
def test_what_is_stopped(pool, pixels, waits):
    """An task that waits leaves the queue. One that has begun is stopped if it is long."""
    if waits:
        for _ in range(3):
            pool.submit(task_of(pixels))
    answer = pool.submit(task_of(pixels))
    processes = pool._slow_pool if pixels > QUICK else pool._pool
    if waits:
        assert len(processes.sent.answers) == 3
        processes.sent.answers[0].set_result([])
    processes.sent.answers[-1].begun = True
    is_long = pixels > WORTH_A_PROCESS
    assert pool.stop(answer, pixels) is is_long
    assert processes.killed == [processes.sent.answers[-1]] * is_long
    assert answer.done() is is_long


def test_long_work_that_has_begun_is_stopped_when_its_last_client_leaves(pool):
    job = FrameJob("key", lambda: task_of(WORTH_A_PROCESS + 1), lambda results: b"made")
    first, second = pool.frame(job), pool.frame(job)
    assert first is second
    (only,) = pool._slow_pool.sent.answers
    only.begun = True
    pool.leave(job, first)
    assert not pool._slow_pool.killed
    pool.leave(job, second)
    assert pool._slow_pool.killed == [only]
    assert first.cancelled()
    assert "key" not in pool.flights


@pytest.mark.parametrize("has_begun", [False, True])
def test_an_answer_of_many_orders_is_given_up_before_it_begins(pool, has_begun, monkeypatch):
    """A client that has shut its side and receives an answer gets the whole answer."""
    monkeypatch.setattr("streamsrv.pixels.pool.TURN", 0.01)
    requester = Requester("a")
    turns = pool.in_turn((number, task_of(1, requester)) for number in range(5))
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
