"""The pool of pixel processes as floor 3 uses it; without processes, but for the last tests."""

import gc
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from pixel_world import ManualAnswer

from framecodecs import errors as codec_errors
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import messages
from framecodecs.pool.pool import PoolLimits
from streamsrv.bounded_cache import SizedCache
from streamsrv.errors import BadRequest, NotAcceptable, Overloaded, StoreError, TooManyRequests
from streamsrv.pixels.pool import AHEAD, PixelPool
from streamsrv.pixels.tasks import FrameJob, PixelTask, translated
from streamsrv.wire.answers import Requester

LITTLE = "1.2.840.10008.1.2.1"


def task_of(number=0, pixels=1):
    return PixelTask(messages.decode_frames, [number], (), pixels)


def done():
    answer = Future()
    answer.set_result([])
    return answer


class FakePool:
    """Takes `room` tasks at a time; they are done at once, or when a test says so."""

    def __init__(self, room=100, idle=False):
        self.room = room
        self.idle = idle
        self.unfinished = 0
        self.taken = []
        self.cancelled = []

    def submit(self, work, frames, *arguments, deadline, here=False):
        if sum(not future.done() for future in self.taken) >= self.room:
            raise codec_errors.QueueFull("full")
        self.taken.append(ManualAnswer())
        if not self.idle:
            self.taken[-1].set_result([])
        return self.taken[-1]

    def cancel(self, future):
        self.cancelled.append(future)

    def call_soon(self, function):
        function()

    def close(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    pool = PixelPool(2)
    pool._pool = pool._slow_pool = FakePool()
    return pool


@pytest.fixture
def idle(fake, monkeypatch):
    """Nothing is ever done by itself, and a turn is short."""
    monkeypatch.setattr("streamsrv.pixels.pool.TURN", 0.01)
    fake._pool.idle = True
    return fake


def test_a_few_orders_are_ahead_and_no_more(fake):
    taken = fake._pool.taken
    turns = fake.in_turn((number, task_of(number)) for number in range(10))
    tag, first = next(turns)
    assert (tag, len(taken)) == (0, 3)
    assert first is taken[0]
    assert next(turns)[0] == 1
    assert len(taken) == 4
    assert [tag for tag, _ in turns] == list(range(2, 10))


def test_what_is_ahead_is_bounded_in_bytes_however_many_processes_there_are():
    pool = PixelPool(64)
    pool._pool = pool._slow_pool = FakePool()
    sizes, ahead = [30 << 20, 0, 50 << 20, 20 << 20, 60 << 20, 300 << 20, 1, 2] * 20, []
    turns = pool.in_turn((pixels, task_of(pixels=pixels)) for pixels in sizes)
    for number, _ in enumerate(turns, 1):
        ahead.append(sum(sizes[number : len(pool._pool.taken)]))
    assert len(ahead) == len(sizes)
    assert 100 << 20 < max(ahead) <= AHEAD
    assert len(pool._pool.taken) == len(sizes)  # what is larger than that goes alone


def test_tasks_without_orders_keep_their_place(fake):
    tasks = [(number, task_of() if number % 3 == 0 else None) for number in range(8)]
    found = list(fake.in_turn(tasks))
    assert [tag for tag, _ in found] == list(range(8))
    assert [future is not None for _, future in found] == [number % 3 == 0 for number in range(8)]


def test_who_leaves_cancels(idle):
    turns = idle.in_turn((number, task_of(pixels=number << 24)) for number in range(10))
    assert next(turns) is None
    first, *others = idle._pool.taken
    others[1].begun = True
    first.set_result([])
    assert next(turns)[0] == 0
    turns.close()
    assert not first.cancelled()
    assert others[0].cancelled()
    # One that is being worked on costs its process, if it is long.
    assert idle._pool.cancelled == [others[1]]


def test_a_short_order_that_is_being_worked_on_is_let_be(idle):
    future = idle.submit(task_of(pixels=5))
    future.begun = True
    assert not idle.stop(future, 5)
    assert idle._pool.cancelled == []
    assert not future.cancelled()


def test_nobody_holds_a_thread_while_nothing_is_ready(idle):
    turns = idle.in_turn((number, task_of()) for number in range(3))
    began = time.monotonic()
    assert [next(turns) for _ in range(5)] == [None] * 5
    assert time.monotonic() - began < 5
    for future in idle._pool.taken:
        future.set_result([])
    assert [turn[0] for turn in turns] == [0, 1, 2]


def test_a_full_queue_refuses_what_has_not_begun(fake):
    fake._pool.room = 0
    with pytest.raises(Overloaded) as refusal:
        next(fake.in_turn([(0, task_of())]))
    assert refusal.value.retry_after == 1


def begun(idle):
    """An answer that has begun, and whose next task finds the queue full."""
    idle._pool.room = 1
    turns = idle.in_turn((number, task_of()) for number in range(3))
    assert next(turns) is None
    idle._pool.taken[0].set_result([])
    assert next(turns)[0] == 0
    idle._pool.submit(None, [], deadline=1)  # somebody else's
    return turns


def test_what_has_begun_waits_for_a_place(idle):
    turns = begun(idle)
    assert [next(turns) for _ in range(5)] == [None] * 5
    idle._pool.taken[1].set_result([])
    assert next(turns) is None
    idle._pool.idle = False
    idle._pool.taken[2].set_result([])
    assert [turn[0] for turn in turns] == [1, 2]


def test_and_not_for_ever(idle, monkeypatch):
    monkeypatch.setattr("streamsrv.pixels.pool.PATIENCE", 0.05)
    with pytest.raises(Overloaded):
        list(begun(idle))


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (codec_errors.QueueFull("x"), Overloaded),
        (codec_errors.Unavailable("x"), Overloaded),
        (codec_errors.RenderingError("x"), BadRequest),
        (codec_errors.WorkCancelled("x"), StoreError),
        (codec_errors.WorkerCrashed("x"), NotAcceptable),
        (codec_errors.DeadlineExceeded("x"), NotAcceptable),
        (codec_errors.MemoryExceeded("x"), NotAcceptable),
        (codec_errors.Unsupported("x", "pip install y"), NotAcceptable),
        (codec_errors.GeometryError("x"), NotAcceptable),
    ],
)
def test_errors(fake, error, ours):
    assert type(translated(error)) is ours
    fake._pool.idle = True
    future = fake.submit(task_of())
    future.set_exception(error)
    with pytest.raises(ours):
        fake.results(future)


def test_cancelled_work_is_an_error_of_ours(idle):
    future = idle.submit(task_of())
    future.cancel()
    with pytest.raises(StoreError):
        idle.results(future)


# Single flight


def job(made=b"made", key="key"):
    return FrameJob(key, task_of, lambda results: made)


def test_a_failed_submit_is_the_error_of_all_and_the_next_request_tries_again(fake, monkeypatch):
    found = []

    def failing(*arguments, deadline, here):
        found.append(fake.flights.join("key"))
        raise RuntimeError("no thread can be started")

    monkeypatch.setattr(fake._pool, "submit", failing)
    with pytest.raises(RuntimeError):
        fake.frame(job())
    assert isinstance(found[0].exception(0), RuntimeError)
    monkeypatch.undo()
    assert fake.frame(job()).result(0) == b"made"
    assert fake.frame(job()) == b"made"


def test_a_frame_is_made_once_for_all_clients(idle):
    with ThreadPoolExecutor(4) as threads:
        flights = [one.result(10) for one in [threads.submit(idle.frame, job()) for _ in range(4)]]
    (only,) = idle._pool.taken
    only.set_result([])
    assert [flight.result(0) for flight in flights] == [b"made"] * 4


@pytest.mark.parametrize("fails", [True, False])
def test_all_clients_have_a_failure_and_a_frame_that_is_too_large_for_the_cache(idle, fails):
    """A later request has the frame made again."""
    idle.cache = SizedCache(0, len)
    flights = [idle.frame(job()) for _ in range(5)]
    (only,) = idle._pool.taken
    if fails:
        only.set_exception(codec_errors.WorkerCrashed("it died"))
    else:
        only.set_result([])
    for flight in flights:
        if fails:
            with pytest.raises(NotAcceptable):
                flight.result(0)
        else:
            assert flight.result(0) == b"made"
    assert "key" not in idle.flights
    idle.frame(job())
    assert len(idle._pool.taken) == 2


def test_the_last_client_that_leaves_cancels_the_task(idle):
    one, other = idle.frame(job()), idle.frame(job())
    (only,) = idle._pool.taken
    idle.leave(job(), one)
    assert not only.cancelled()
    idle.leave(job(), other)
    assert only.cancelled()
    assert one.cancelled()
    assert "key" not in idle.flights
    again = idle.frame(job())
    idle._pool.taken[1].set_result([])
    assert again.result(0) == idle.frame(job()) == b"made"


def test_short_work_that_has_begun_is_kept_for_the_next_request(idle):
    flight = idle.frame(job())
    (only,) = idle._pool.taken
    only.begun = True
    idle.leave(job(), flight)
    assert not flight.cancelled()
    only.set_result([])
    assert idle.frame(job()) == b"made"


def test_a_client_may_leave_after_the_end(idle):
    flight = idle.frame(job())
    idle._pool.taken[0].set_result([])
    again = FrameJob("key", lambda: task_of(1), lambda results: b"again")
    idle.cache = SizedCache(0, len)
    other = idle.frame(again)
    idle.leave(job(), flight)
    assert not other.cancelled()
    assert "key" in idle.flights


def test_a_result_that_cannot_be_finished_is_a_failure(idle):
    def failing(results):
        raise codec_errors.WorkerCrashed("it died")

    idle._pool.idle = False
    for number in range(3):
        flight = idle.frame(FrameJob("key", task_of, failing))
        assert isinstance(flight.exception(0), codec_errors.WorkerCrashed)
        assert len(idle._pool.taken) == number + 1
    assert "key" not in idle.flights


def test_nothing_is_in_flight_if_the_stored_frame_has_to_be_read(idle):
    assert idle.frame(FrameJob("key", lambda: None, lambda results: b"made")) is None
    assert "key" not in idle.flights


@pytest.mark.parametrize("joins", [False, True])
def test_a_prefetch_without_an_idle_process_is_made_only_for_a_request(idle, joins):
    """A request may come just before the process is taken by another task."""
    flights = []

    def taken(*arguments, deadline, kept):
        if joins:
            flights.append(idle.frame(job()))

    idle._pool.submit_if_idle = taken
    idle._begin_prefetch(job())
    assert len(idle._pool.taken) == joins
    if joins:
        idle._pool.taken[0].set_result([])
        assert flights[0].result(0) == b"made"
    else:
        assert "key" not in idle.flights


def test_processes_start_before_they_are_needed():
    pool = PixelPool(1)
    try:
        pool.warm()
        pool.warm()
        end = time.monotonic() + 30
        while pool._pool is None and time.monotonic() < end:
            time.sleep(0.01)
        assert pool._pool.wait_until_ready(30)
    finally:
        pool.close()
    with pytest.raises(StoreError):
        pool.submit(task_of())


def test_a_request_does_not_wait_for_the_look_up_of_a_prefetch():
    """The one process is idle, and the next prefetch is looked up slowly."""
    pool = PixelPool(1, read_ahead=2)
    looking, found = threading.Event(), threading.Event()

    def jobs():
        looking.set()
        found.wait(30)
        yield from ()

    try:
        info = FrameInfo(4, 4)
        asked = PixelTask(messages.decode_frames, [bytes(16)], (LITTLE, info), 16)
        pool.results(pool.submit(asked))
        pool._prefetch_thread.put("sequence", jobs())
        pool._look()
        assert looking.wait(30)
        assert pool.submit(asked).result(10) == [(bytes(16), info)]
        assert not found.is_set()
    finally:
        found.set()
        pool.close()
    assert not pool._prefetch_thread


def test_an_answer_that_was_never_released_is_collected_while_its_own_task_is_read(monkeypatch):
    """The garbage collector runs in any thread: here in one that holds the lock of this task."""
    reading, collected = threading.Event(), []
    read = messages.AnswerReader.read

    def read_later(self, pipe):
        if not collected:
            reading.wait(30)
            collected.append(gc.collect())
        return read(self, pipe)

    monkeypatch.setattr(messages.AnswerReader, "read", read_later)
    pool, asked = PixelPool(1), PixelTask(messages.decode_frames, [bytes(16)], (LITTLE, FrameInfo(4, 4)), 16)
    gc.disable()
    try:
        answer = [pool.in_turn((number, asked) for number in range(9))]
        assert next(answer[0]) is None
        answer.append(answer)
        ended = weakref.ref(answer[0])
        del answer
        reading.set()
        assert pool.submit(asked).result(20) == [(bytes(16), FrameInfo(4, 4))]
    finally:
        gc.enable()
    assert collected
    assert ended() is None
    pool.close()  # a pool that hangs would not end


def test_the_cache_is_limited_in_bytes():
    cache = SizedCache(100, len)
    for number in range(10):
        cache.put(number, bytes(20))
    assert [number for number in range(10) if cache.get(number)] == [5, 6, 7, 8, 9]
    cache.put(5, bytes(10))  # replaced, and used last
    cache.put(11, bytes(25))
    cache.put(12, bytes(26))  # more than a quarter: never kept
    assert cache.get(12) is None
    assert [number for number in (5, 6, 7, 8, 9, 11) if cache.get(number)] == [5, 7, 8, 9, 11]


def test_deadlines_grow_with_pixels_up_to_a_limit(monkeypatch):
    info = FrameInfo(4, 4)
    pool = PixelPool(1, PoolLimits(deadline=30.0))
    asked = []
    try:
        ((frame, now),) = pool.results(
            pool.submit(PixelTask(messages.decode_frames, [bytes(range(16))], (LITTLE, info), 16))
        )
        assert (frame, now) == (bytes(range(16)), info)
        pool._slow_pool, slow = pool._pool, pool._slow_pool
        monkeypatch.setattr(pool._pool, "submit", lambda *a, deadline, **_: asked.append(deadline) or done())
        for pixels in (0, 2 << 20, 4 << 20, 5 << 20, 768_000_000):
            pool.submit(task_of(pixels=pixels))
        assert asked == [3.0, 4.0, 5.0, 30.0, 30.0]
    finally:
        pool._slow_pool = slow
        pool.close()
    pool.close()


def test_a_failed_submit_leaves_nothing_to_the_garbage_collector():
    """Its error has the frames of the call in its traceback."""
    pool, held = PixelPool(1), threading.Event()
    pool._pool = FakePool(room=0)
    there = weakref.ref(held)
    one = FrameJob("key", lambda held=held: task_of(), lambda results: b"")
    gc.collect()
    gc.disable()
    try:
        with suppress(Overloaded):
            pool.frame(one)
        del held, one
        assert there() is None
    finally:
        gc.enable()
        pool.close()


def test_the_pixels_of_a_client_have_a_rate():
    pool = PixelPool(2, rate=100)
    pool._pool = FakePool()

    def submit(client, pixels):
        return pool.submit(replace(task_of(pixels=pixels), requester=Requester(client)))

    submit("greedy", 900)
    submit("greedy", 400)
    with pytest.raises(TooManyRequests, match="too many pixels") as refused:
        submit("greedy", 1)
    assert 3 <= refused.value.retry_after <= 4
    with pytest.raises(TooManyRequests):  # an answer that has not begun
        list(pool.in_turn([(0, replace(task_of(), requester=Requester("greedy")))]))
    submit("modest", 900)
    assert len(pool._pool.taken) == 3
