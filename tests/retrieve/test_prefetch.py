"""Prefetch: which frames are made ahead, for which clients, and how many.

The pool does its work at once in this process, and is idle when a test says so.
"""

import threading
from concurrent.futures import Future

import pytest
from pixel_world import (
    J2K,
    JPEG_LS,
    KINDS,
    LITTLE,
    Kind,
    arrays_of,
    frames_of_type,
    image,
    of_syntax,
    stored_as,
)
from retrieve_world import SERIES, ask, instance_path, keep

from framecodecs.errors import WorkerCrashed
from framecodecs.pool.messages import FrameBatch
from streamsrv.errors import NotAcceptable, StoreError
from streamsrv.pixels import prefetch
from streamsrv.pixels.pool import PixelPool
from streamsrv.pixels.prefetch import QUEUED, AccessPattern, Prefetch, PrefetchThread, following
from streamsrv.pixels.tasks import SHORTEST_DEADLINE, SLOWEST

KIND = KINDS["12 in 16"]
LS = frames_of_type("image/jls", JPEG_LS)
COUNT = 12
OTHER = "1.2.3.5"  # series of the multi-frame instance
LOOP = instance_path("1.2.3.4.1", OTHER)


class Processes:
    """As FramePool. `asked` and `ahead` count what was made because it was asked for, and ahead of that; what
    is made ahead crashes if it is `broken`."""

    def __init__(self, pool):
        self.pool = pool
        self.idle = True
        self.most = 2
        self.unfinished = 0
        self.asked = 0
        self.ahead = 0
        self.broken = False
        self.kept = None

    @property
    def is_idle(self):
        return self.idle

    def is_idle_but(self, kept):
        self.kept = kept
        return self.idle

    def look(self):
        self.pool._prefetch_thread.run()

    def submit(self, work, frames, *arguments, deadline, here=False):
        self.asked += 1
        return self._done(work(FrameBatch(frames), *arguments))

    def submit_if_idle(self, work, frames, *arguments, deadline, kept):
        self.ahead += 1
        return self._done(None if self.broken else work(FrameBatch(frames), *arguments))

    def _done(self, results):
        future = Future()
        if results is None:
            future.set_exception(WorkerCrashed("it died"))
        else:
            future.set_result(results)
        return future

    def close(self):
        pass


def pool_of(**keywords):
    pool = PixelPool(2, **{"read_ahead": 2, **keywords})
    pool._pool = Processes(pool)
    return pool


@pytest.fixture
def pool():
    return pool_of()


@pytest.fixture
def series(store):
    """Single-frame instances whose Instance Numbers run against their UIDs."""
    for number in range(COUNT):
        dataset = image(KIND, arrays_of(KIND, 1, seed=number), uid(number), InstanceNumber=number + 1)
        keep(store, stored_as(dataset, LITTLE))
    return store


@pytest.fixture
def loop(store):
    """One instance of many frames."""
    keep(store, stored_as(image(KIND, arrays_of(KIND, COUNT), SeriesInstanceUID=OTHER), LITTLE))
    return store


def uid(number):
    return f"1.2.3.4.{90 - number}"


def get(store, pool, path, accept=LS):
    answer = ask(store, path, pool=pool, accept=accept)
    return b"".join(piece.payload for piece in answer.plan)


def of_series(store, pool, number, accept=LS):
    return get(store, pool, f"{instance_path(uid(number))}/frames/1", accept)


def of_loop(store, pool, number, accept=LS):
    return get(store, pool, f"{LOOP}/frames/{number + 1}", accept)


def walked(store, pool, ask, numbers):
    """How many frames had to be made when they were asked for, and how many were made ahead in all."""
    for number in numbers:
        ask(store, pool, number)
    return pool._pool.asked, pool._pool.ahead


WAYS = pytest.mark.parametrize("ask", [of_series, of_loop])
UP, DOWN = range(COUNT), range(COUNT - 1, -1, -1)


@pytest.fixture
def both(series, loop):
    return series


@WAYS
@pytest.mark.parametrize("numbers", [UP, DOWN])
def test_the_frames_ahead_of_a_client_are_made(both, pool, ask, numbers):
    """The first step shows where to; the third frame is there when it is asked for, and all behind it."""
    assert walked(both, pool, ask, numbers[:2]) == (2, 1)
    assert walked(both, pool, ask, numbers[2:3]) == (2, 3)
    assert walked(both, pool, ask, numbers[3:]) == (2, COUNT - 2)


@WAYS
def test_what_was_made_ahead_is_what_is_made_when_it_is_asked_for(both, pool, ask):
    other = pool_of(read_ahead=0)
    for number in UP:
        assert ask(both, pool, number) == ask(both, other, number)
    assert (pool._pool.asked, other._pool.asked) == (2, COUNT)


@WAYS
@pytest.mark.parametrize("numbers", [[0, 6, 2, 10, 4, 8], [3, 3, 3], [8]])
def test_requests_in_random_order_cause_nothing(both, pool, ask, numbers):
    assert walked(both, pool, ask, numbers) == (len(set(numbers)), 0)


@WAYS
def test_turning_round_is_a_walk_too(both, pool, ask):
    walked(both, pool, ask, [4, 5])  # and so 6
    assert pool._pool.ahead == 1
    walked(both, pool, ask, [4])
    assert pool._pool.ahead == 2  # 3
    assert walked(both, pool, ask, [3, 2])[0] == 2


@WAYS
def test_two_clients_walk_through_the_same(both, pool, ask):
    assert walked(both, pool, ask, [0, 8, 1, 9, 2, 10]) == (4, 5)  # 2 to 4 and 10 to 11


def test_two_clients_have_a_place_each():
    """A request that waits may be looked at twice, and that of the other client in between."""
    pattern = AccessPattern()
    for number in range(3):
        for place in (number, 50 + number) * 2:
            before = pattern.request(place)
    assert list(pattern.requested) == [1, 51, 2, 52]
    assert following(52, before, 2) == [53]


@WAYS
def test_one_process_stays_free_while_others_are_about(both, pool, ask, monkeypatch):
    walked(both, pool, ask, UP[:3])
    assert pool._pool.kept == 0
    ask(both, pool, 0, frames_of_type("image/jp2", J2K))
    walked(both, pool, ask, UP[3:5])
    assert pool._pool.kept == 1
    monkeypatch.setattr(prefetch, "ALONE", 0.0)  # that was long ago
    walked(both, pool, ask, UP[5:7])
    assert pool._pool.kept == 0


@WAYS
def test_nothing_is_made_ahead_while_no_process_is_idle(both, pool, ask):
    pool._pool.idle = False
    assert walked(both, pool, ask, UP[:6]) == (6, 0)
    pool._pool.idle = True
    pool._prefetch_thread.run()
    assert pool._pool.ahead == 2  # those behind the last one that was asked for
    assert walked(both, pool, ask, UP[6:8]) == (6, 4)


@WAYS
def test_a_jump_drops_the_prefetches(both, pool, ask):
    pool._pool.idle = False
    walked(both, pool, ask, [0, 1, 7])
    pool._pool.idle = True
    pool._prefetch_thread.run()
    assert pool._pool.ahead == 0


@WAYS
def test_it_can_be_switched_off(both, ask):
    pool = pool_of(read_ahead=0)
    assert walked(both, pool, ask, UP) == (COUNT, 0)


@WAYS
def test_nothing_is_made_that_would_not_be_kept(both, ask):
    pool = pool_of(cached=4 * (KIND.rows * KIND.columns * 2 - 1))
    assert walked(both, pool, ask, UP[:4]) == (4, 0)


@WAYS
def test_the_end_is_the_end(both, pool, ask):
    assert walked(both, pool, ask, [COUNT - 2, COUNT - 1]) == (2, 0)


@WAYS
def test_each_representation_is_a_walk_of_its_own(both, pool, ask):
    ask(both, pool, 0)
    ask(both, pool, 1, frames_of_type("image/jp2", J2K))
    assert pool._pool.ahead == 0


@WAYS
def test_a_crash_ahead_harms_nobody(both, pool, ask):
    """It is forgotten: the frame is made when it is asked for."""
    pool._pool.broken = True
    assert walked(both, pool, ask, UP[:6]) == (6, 6)
    pool._pool.broken = False
    assert walked(both, pool, ask, UP[6:])[0] == 8  # two more that had been tried


def test_pictures_are_made_ahead_as_they_were_asked_for(both, pool):
    for query in ("", "?window=300,600,linear"):
        before = pool._pool.asked
        for number in UP:
            path = f"{LOOP}/frames/{number + 1}/rendered{query}"
            assert get(both, pool, path, "image/png").startswith(b"\x89PNG")
        for number in UP:
            get(both, pool, f"{instance_path(uid(number))}/rendered{query}", "image/png")
        assert pool._pool.asked - before == 4


@pytest.mark.parametrize(("viewport", "ahead"), [("200,200", 4), ("400,400", 0), ("200,800", 4)])
def test_a_small_frame_that_is_enlarged_is_no_short_work(both, viewport, ahead):
    """A picture that is too large for the cache is not made ahead. The deadline grows with the picture. Its
    size is that of the frame, scaled to fit into the viewport."""
    pool = pool_of(cached=400_000)
    deadlines = []
    submit = pool._pool.submit
    pool._pool.submit = lambda *what, deadline, **_: (
        deadlines.append(deadline) or submit(*what, deadline=deadline)
    )
    for number in range(4):
        get(both, pool, f"{LOOP}/frames/{number + 1}/rendered?viewport={viewport}", "image/jpeg")
    assert pool._pool.ahead == ahead
    width, height = map(int, viewport.split(","))
    scale = min(width / KIND.columns, height / KIND.rows)
    picture = round(KIND.columns * scale) * round(KIND.rows * scale)
    assert deadlines[0] == SHORTEST_DEADLINE + picture / SLOWEST


def test_a_walk_over_an_instance_that_is_gone(series, pool):
    walked(series, pool, of_series, [0])
    series.delete("1.2.3", SERIES, uid(2))
    assert walked(series, pool, of_series, [1, 3]) == (2, 3)  # 3 and 4 are its neighbours now


def test_one_that_is_deleted_while_it_is_in_the_order(series, pool):
    walked(series, pool, of_series, [0, 1])
    series.delete("1.2.3", SERIES, uid(4))
    assert walked(series, pool, of_series, [2, 3]) == (2, 3)  # not 4, and 5 behind it
    assert walked(series, pool, of_series, [5])[0] == 2


def test_one_that_came_later_finds_its_place(series, pool):
    walked(series, pool, of_series, [0, 1])
    late = image(KIND, arrays_of(KIND, 1), uid(COUNT), InstanceNumber=COUNT + 1)
    keep(series, stored_as(late, LITTLE))
    walked(series, pool, of_series, [COUNT])
    before = pool._pool.ahead
    walked(series, pool, of_series, [COUNT - 1])
    assert pool._pool.ahead == before + 1


def test_a_series_that_is_too_long_has_no_order(series, pool, monkeypatch):
    monkeypatch.setattr(prefetch, "LONGEST", COUNT - 1)
    assert walked(series, pool, of_series, UP) == (COUNT, 0)


def test_neighbours_that_cannot_be_made(store, pool):
    for number, kind in enumerate((KIND, KIND, Kind(allocated=32, stored=32), KIND)):
        dataset = image(kind, arrays_of(kind, 1), uid(number), InstanceNumber=number)
        keep(store, stored_as(dataset, LITTLE))
    assert walked(store, pool, of_series, [0, 1]) == (2, 0)
    with pytest.raises(NotAcceptable):
        of_series(store, pool, 2, LS)


def test_memory_is_bounded(series, pool, monkeypatch):
    monkeypatch.setattr(prefetch, "SEQUENCES", 3)
    row = series.lookup("1.2.3")[0]
    for number in range(10):
        for _ in range(2):
            pool.prefetch.requested(series, row, 0, number, None)
    assert len(pool.prefetch._patterns) == 3
    pattern = AccessPattern()
    for place in range(30):
        pattern.request(place)
        pattern.prefetched.append(place)
    assert len(pattern.requested) == prefetch.PLACES
    assert len(pattern.prefetched) == prefetch.PREFETCHED


def test_each_order_is_looked_up_once(store, pool, monkeypatch):
    """However many walk through as many series by turns."""
    orders, series = [], range(12)
    series_order = prefetch.series_order
    monkeypatch.setattr(prefetch, "series_order", lambda *key: orders.append(key) or series_order(*key))
    for one in series:
        for number in range(4):
            uids = {"SeriesInstanceUID": f"1.2.9.{one}", "InstanceNumber": number}
            keep(store, stored_as(image(KIND, arrays_of(KIND, 1), f"1.2.9.{one}.{number}", **uids), LITTLE))
    for number in range(4):
        for one in series:
            get(store, pool, f"{instance_path(f'1.2.9.{one}.{number}', f'1.2.9.{one}')}/frames/1")
    assert len(orders) == len(series)


def test_as_many_follow_as_were_visited_in_a_row():
    assert following(5, [4], 2) == [6]
    assert following(5, [4, 3], 2) == [6, 7]
    assert following(5, [4, 3, 2, 1], 2) == [6, 7]
    assert following(5, [4, 2, 3], 3) == [6, 7, 8]
    assert following(5, [6], 2) == [4]
    assert following(5, [9, 6, 4], 2) == [4]
    assert following(5, [5, 7, 3], 2) == []
    assert following(5, [], 2) == []


def test_whole_instances_are_no_sequence(series, pool):
    for number in UP[:3]:
        ask(series, instance_path(uid(number)), pool=pool, accept=of_syntax(JPEG_LS)).release()
    assert pool._pool.ahead == 0


def test_nothing_is_prefetched_from_the_disk(series, pool, monkeypatch):
    monkeypatch.setattr("streamsrv.pixels.transcoding._is_warm", lambda selection, piece: False)
    assert walked(series, pool, of_series, UP[:6]) == (6, 0)


# The thread


class Workshop:
    """A thread whose jobs a test begins; `begun` are those that were."""

    def __init__(self):
        self.idle, self.begun = False, []
        self.thread = PrefetchThread(lambda: self.idle, self.begun.append)

    def run(self):
        self.idle = True
        self.thread.run()


@pytest.fixture
def workshop():
    return Workshop()


def test_jobs_of_the_latest_sequence_begin_first_and_only_while_a_process_is_idle(workshop):
    looked = []

    def jobs():
        looked.append("at")
        yield 1

    workshop.thread.put("one", jobs())
    workshop.thread.put("other", iter([2, 3]))
    workshop.thread.run()
    assert (looked, workshop.begun) == ([], [])
    workshop.run()
    assert (looked, workshop.begun) == (["at"], [2, 3, 1])


def test_new_jobs_of_a_sequence_replace_the_others(workshop):
    for number in range(5):
        workshop.thread.put("sequence", iter([number]))
    workshop.run()
    assert workshop.begun == [4]


def test_dropped_jobs_never_begin(workshop):
    workshop.thread.put("sequence", iter([1]))
    workshop.thread.drop("sequence")
    workshop.thread.drop("sequence")
    workshop.thread.put("other", iter([2]))
    workshop.run()
    assert workshop.begun == [2]


def test_few_sequences_are_queued(workshop):
    for number in range(3 * QUEUED):
        workshop.thread.put(number, iter([number]))
    workshop.run()
    assert workshop.begun == list(range(3 * QUEUED - 1, 2 * QUEUED - 1, -1))


def test_a_job_that_fails_is_dropped(workshop, monkeypatch):
    logged = []
    monkeypatch.setattr(prefetch.log, "exception", logged.append)

    def failing(error):
        yield 1
        raise error

    workshop.thread.put("next", iter([2]))
    workshop.thread.put("known", failing(StoreError("gone")))
    workshop.thread.put("unknown", failing(KeyError("bug")))
    workshop.run()
    assert workshop.begun == [1, 1, 2]
    assert len(logged) == 1


def test_nothing_begins_after_the_end(workshop):
    workshop.thread.put("sequence", iter([1]))
    workshop.thread.close()
    workshop.thread.put("sequence", iter([2]))
    workshop.run()
    assert workshop.begun == []


def test_one_thread_at_a_time_begins_jobs(workshop):
    """It looks again after each: a process that becomes idle meanwhile is not missed."""

    def jobs():
        workshop.thread.run()  # as another thread would
        yield 1
        workshop.thread.put("other", iter([2]))
        yield 3

    workshop.thread.put("sequence", jobs())
    workshop.run()
    assert workshop.begun == [1, 3, 2]


def test_jobs_begin_in_a_thread_of_their_own():
    names, begun = [], threading.Semaphore(0)

    def begin(job):
        names.append(threading.current_thread().name)
        begun.release()

    thread = PrefetchThread(lambda: True, begin)
    for number in range(2):
        thread.put(number, iter([number]))
        thread.wake()
        assert begun.acquire(timeout=30)
    assert names == ["pixels-prefetch"] * 2
    thread.close()
    thread.wake()
    thread.close()


def test_the_end_waits_for_the_job_that_is_being_begun():
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def begin(job):
        begun.set()
        go_on.wait(30)
        ended.append(job)

    thread = PrefetchThread(lambda: True, begin)
    thread.put("sequence", iter([1, 2]))
    thread.wake()
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    thread.close()
    assert ended == [1]


def test_without_a_thread_nothing_is_prefetched(monkeypatch):
    def failing(self):
        raise RuntimeError("can't start new thread")

    begun = threading.Event()
    thread = PrefetchThread(lambda: True, lambda job: begun.set())
    thread.put("sequence", iter([1]))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", failing)
        thread.wake()
        assert not begun.is_set()
    thread.wake()
    assert begun.wait(30)
    thread.close()


# The order of a series


def test_few_orders_are_kept(series, pool, monkeypatch):
    """The ones that were used last."""
    monkeypatch.setattr(prefetch, "INSTANCES", 4 * COUNT + 4)
    orders = Prefetch(2, PrefetchThread(lambda: False, lambda job: None), lambda: None)._orders
    uids = {f"1.{number}": number for number in range(COUNT)}
    for number in range(6):
        orders.put(("1.2", f"1.3.{number}"), uids)
    assert [number for number in range(6) if orders.get(("1.2", f"1.3.{number}"))] == [2, 3, 4, 5]
