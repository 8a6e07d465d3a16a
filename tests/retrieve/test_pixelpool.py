"""The pool of pixel processes as floor 3 uses it; without processes, but for the last tests."""

import gc
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
from pixel_world import ManualAnswer

from framecodecs import errors as codec_errors
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import work
from framecodecs.pool.pool import PoolLimits
from streamsrv.errors import BadRequest, NotAcceptable, Overloaded, StoreError, WouldBlock
from streamsrv.pixels.pool import Making, Order, PixelPool, SizedCache, translated
from streamsrv.pixels.single_flight import OUTCOMES
from streamsrv.pixels.turns import AHEAD

LITTLE = "1.2.840.10008.1.2.1"


def order(number=0, pixels=1):
    return Order(work.decode_frames, [number], (), pixels)


def done():
    answer = Future()
    answer.set_result([])
    return answer


class FakePool:
    """Takes `room` orders at a time; they are done at once, or when a test says so."""

    def __init__(self, room=100, idle=False):
        self.room = room
        self.idle = idle
        self.unfinished = 0
        self.taken = []
        self.cancelled = []

    def submit(self, work, frames, *arguments, deadline):
        if sum(not future.done() for future in self.taken) >= self.room:
            raise codec_errors.QueueFull("full")
        self.taken.append(ManualAnswer())
        if not self.idle:
            self.taken[-1].set_result([])
        return self.taken[-1]

    def cancel(self, future):
        self.cancelled.append(future)

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
    monkeypatch.setattr("streamsrv.pixels.turns.TURN", 0.01)
    fake._pool.idle = True
    return fake


def test_a_few_orders_are_ahead_and_no_more(fake):
    taken = fake._pool.taken
    turns = fake.in_turn((number, order(number)) for number in range(10))
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
    turns = pool.in_turn((pixels, order(pixels=pixels)) for pixels in sizes)
    for number, _ in enumerate(turns, 1):
        ahead.append(sum(sizes[number : len(pool._pool.taken)]))
    assert len(ahead) == len(sizes)
    assert 100 << 20 < max(ahead) <= AHEAD
    assert len(pool._pool.taken) == len(sizes)  # what is larger than that goes alone


def test_tasks_without_orders_keep_their_place(fake):
    tasks = [(number, order() if number % 3 == 0 else None) for number in range(8)]
    found = list(fake.in_turn(tasks))
    assert [tag for tag, _ in found] == list(range(8))
    assert [future is not None for _, future in found] == [number % 3 == 0 for number in range(8)]


def test_who_leaves_cancels(idle):
    turns = idle.in_turn((number, order(pixels=number << 24)) for number in range(10))
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
    future = idle.submit(order(pixels=5))
    future.begun = True
    assert not idle.stop(future, 5)
    assert idle._pool.cancelled == []
    assert not future.cancelled()


def test_nobody_holds_a_thread_while_nothing_is_ready(idle):
    turns = idle.in_turn((number, order()) for number in range(3))
    began = time.monotonic()
    assert [next(turns) for _ in range(5)] == [None] * 5
    assert time.monotonic() - began < 5
    for future in idle._pool.taken:
        future.set_result([])
    assert [turn[0] for turn in turns] == [0, 1, 2]


def test_a_full_queue_refuses_what_has_not_begun(fake):
    fake._pool.room = 0
    with pytest.raises(Overloaded) as refusal:
        next(fake.in_turn([(0, order())]))
    assert refusal.value.retry_after == 1


def begun(idle):
    """An answer that has begun, and whose next order finds the queue full."""
    idle._pool.room = 1
    turns = idle.in_turn((number, order()) for number in range(3))
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
    monkeypatch.setattr("streamsrv.pixels.turns.PATIENCE", 0.05)
    with pytest.raises(Overloaded):
        list(begun(idle))


def test_the_loop_never_waits():
    pool = PixelPool(1, loop=threading.get_ident())
    in_turn = pool.in_turn([(0, order())])
    for wait in (pool.must_not_block, lambda: next(in_turn)):
        with pytest.raises(WouldBlock):
            wait()
    raised = []
    thread = threading.Thread(target=lambda: raised.append(pool.must_not_block()))
    thread.start()
    thread.join()
    assert raised == [None]


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
    future = fake.submit(order())
    future.set_exception(error)
    with pytest.raises(ours):
        fake.results(future)


def test_cancelled_work_is_an_error_of_ours(idle):
    future = idle.submit(order())
    future.cancel()
    with pytest.raises(StoreError):
        idle.results(future)


def test_what_cannot_be_begun_is_told_and_forgotten(fake, monkeypatch):
    """Whoever has found it meanwhile is told too, and the next one tries again."""
    making = Making("key", order, lambda results: b"made")
    found = []

    def failing(*arguments, deadline):
        found.append(fake.makings.find("key"))
        raise RuntimeError("no thread can be started")

    monkeypatch.setattr(fake._pool, "submit", failing)
    with pytest.raises(RuntimeError):
        fake.made(making)
    assert isinstance(found[0].exception(0), RuntimeError)
    monkeypatch.undo()
    assert fake.made(making) == b"made"


def test_one_making_for_all_who_ask(idle):
    making = Making("key", order, lambda results: b"made")
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(idle.made, making) for _ in range(4)]
        while not idle._pool.taken:
            time.sleep(0.001)
        idle._pool.taken[0].set_result([])
        assert [one.result(10) for one in asked] == [b"made"] * 4
    assert len(idle._pool.taken) == 1


@pytest.fixture
def looping(idle):
    """As the thread of the loop sees it."""
    idle._loop = threading.get_ident()
    return idle


def told_to_wait(pool, making, times=1):
    for _ in range(times):
        with pytest.raises(WouldBlock):
            pool.made(making)


@pytest.mark.parametrize("fails", [True, False])
def test_one_making_for_all_who_wait_in_the_loop(looping, fails):
    """A failure, or what the cache has no room for; whoever comes later has it made anew."""
    looping.cache = SizedCache(0, len)
    making = Making("key", order, lambda results: b"made")
    told_to_wait(looping, making, 5)
    (only,) = looping._pool.taken
    if fails:
        only.set_exception(codec_errors.WorkerCrashed("it died"))
    else:
        only.set_result([])
    for _ in range(5):
        if fails:
            with pytest.raises(NotAcceptable):
                looping.made(making)
        else:
            assert looping.made(making) == b"made"
    assert len(looping._pool.taken) == 1
    assert not looping.makings.outcomes
    told_to_wait(looping, making)
    assert len(looping._pool.taken) == 2


def blocked_by(pool, making):
    with pytest.raises(WouldBlock) as blocked:
        pool.made(making)
    return blocked.value


def test_what_nobody_wants_any_more_is_never_begun(looping):
    making = Making("key", order, lambda results: b"made")
    one, other = blocked_by(looping, making), blocked_by(looping, making)
    (only,) = looping._pool.taken
    assert not one.leave()
    assert not only.cancelled()
    assert other.leave()
    assert only.cancelled()
    assert isinstance(other.until.exception(10), StoreError)
    assert "key" not in looping.makings
    assert not looping.makings.outcomes
    again = blocked_by(looping, making)
    looping._pool.taken[1].set_result([])
    assert again.until.result(10) == looping.made(making) == b"made"


def test_what_was_begun_or_is_wanted_by_a_thread_is_made(looping):
    making = Making("key", order, lambda results: b"made")
    blocked = blocked_by(looping, making)
    (only,) = looping._pool.taken
    with looping.makings.wanted(blocked.until):
        assert not blocked.leave()
    blocked = blocked_by(looping, making)
    only.begun = True
    assert not blocked.leave()
    only.set_result([])
    assert looping.made(making) == b"made"


def test_a_failure_that_came_at_once_is_not_kept(looping):
    def failing(results):
        raise codec_errors.WorkerCrashed("it died")

    looping._pool.idle = False
    for number in range(3):
        with pytest.raises(codec_errors.WorkerCrashed):
            looping.made(Making("key", order, failing))
        assert len(looping._pool.taken) == number + 1
    assert not looping.makings.outcomes
    assert "key" not in looping.makings


def abandoned(pool, count, made):
    """Waited for, and never fetched: deleted meanwhile."""
    for number in range(count):
        told_to_wait(pool, Making(number, order, lambda results: made))
        pool._pool.taken[-1].set_result([])


def test_outcomes_that_nobody_fetches_are_few(looping, monkeypatch):
    looping.cache = SizedCache(0, len)
    abandoned(looping, OUTCOMES + 5, b"made")
    assert len(looping.makings.outcomes) == OUTCOMES
    monkeypatch.setattr("streamsrv.pixels.single_flight.OUTCOMES_BYTES", 20)
    abandoned(looping, 5, b"a larger one")
    assert looping.makings.outcomes == [4]  # the last one always


def test_what_nobody_was_idle_for_is_made_for_who_has_found_it(idle):
    """It was about to be made ahead when somebody asked, and the process was taken by somebody else."""
    making = Making("key", order, lambda results: b"made")
    with ThreadPoolExecutor(1) as threads:

        def nobody(*arguments, deadline, kept):
            asked.append(threads.submit(idle.made, making))
            while not asked[0].running():
                time.sleep(0.001)
            time.sleep(0.02)  # until it has found what is about to begin

        asked = []
        idle._pool.idle = False
        idle._pool.submit_if_idle = nobody
        with pytest.raises(Overloaded):
            idle._make_ahead(making)
        assert asked[0].result(10) == b"made"


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
        pool.submit(order())


def test_who_asks_does_not_wait_for_what_is_looked_up_ahead():
    """The one process is idle, and what it could do next takes long to be found."""
    pool = PixelPool(1, read_ahead=2)
    looking, found = threading.Event(), threading.Event()

    def wish():
        looking.set()
        found.wait(30)
        yield from ()

    try:
        info = FrameInfo(4, 4)
        asked = Order(work.decode_frames, [bytes(16)], (LITTLE, info), 16)
        pool.results(pool.submit(asked))
        pool.wishes.put("walk", wish())
        assert looking.wait(30)
        assert pool.submit(asked).result(10) == [(bytes(16), info)]
        assert not found.is_set()
    finally:
        found.set()
        pool.close()
    assert not pool.wishes


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
            pool.submit(Order(work.decode_frames, [bytes(range(16))], (LITTLE, info), 16))
        )
        assert (frame, now) == (bytes(range(16)), info)
        pool._slow_pool, slow = pool._pool, pool._slow_pool
        monkeypatch.setattr(pool._pool, "submit", lambda *a, deadline: asked.append(deadline) or done())
        for pixels in (0, 2 << 20, 4 << 20, 5 << 20, 768_000_000):
            pool.submit(order(pixels=pixels))
        assert asked == [3.0, 4.0, 5.0, 30.0, 30.0]
    finally:
        pool._slow_pool = slow
        pool.close()
    pool.close()


def test_what_could_not_be_begun_is_held_by_nobody():
    """The error of it holds the frames that it passed."""
    pool, held = PixelPool(1), threading.Event()
    pool._pool = FakePool(room=0)
    there = weakref.ref(held)
    making = Making("key", lambda held=held: order(), lambda results: b"")
    gc.collect()
    gc.disable()
    try:
        with suppress(Overloaded):
            pool.made(making)
        del held, making
        assert there() is None
    finally:
        gc.enable()
        pool.close()
