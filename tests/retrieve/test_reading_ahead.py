"""Frames made before they are asked for: by whom, for whom, and how many.

The pool is one that does its work at once in this process, and is idle when a test says so: nothing here
waits for anything.
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
from retrieve_world import SERIES, instance_path, keep

from framecodecs.errors import WorkerCrashed
from streamsrv import retrieve
from streamsrv.errors import NotAcceptable, WouldBlock
from streamsrv.pixels import access_pattern as reading_ahead
from streamsrv.pixels import coverage
from streamsrv.pixels import prefetch as pixelwishes
from streamsrv.pixels import series_order as series_orders
from streamsrv.pixels.access_pattern import following
from streamsrv.pixels.orders import SHORTEST_DEADLINE, SLOWEST
from streamsrv.pixels.pool import PixelPool
from streamsrv.wire.answers import Request
from streamsrv.wire.resources import parse_query, target_of

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
        self.pool.wishes.look()

    def submit(self, work, frames, *arguments, deadline):
        self.asked += 1
        return self._done(work(frames, *arguments))

    def submit_if_idle(self, work, frames, *arguments, deadline, kept):
        self.ahead += 1
        return self._done(None if self.broken else work(frames, *arguments))

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
    place, _, query = path.partition("?")
    request = Request("GET", f"/v2{place}", parse_query(query), {"accept": accept}, "http://h/v2", 2)
    answer = retrieve.answer(store, request, target_of(f"/v2{place}"), pool)
    text = b"".join(piece.payload for piece in answer.plan)
    answer.release()
    return text


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
def test_whoever_walks_finds_the_next_ones_made(both, pool, ask, numbers):
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
def test_whoever_jumps_causes_nothing(both, pool, ask, numbers):
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
    """A request that waits is looked at twice, and the other client's in between."""
    walks = reading_ahead.Walks()
    for number in range(3):
        for place in (number, 50 + number) * 2:
            before = walks.visit("walk", place)
    assert list(walks.walk("walk").visited) == [1, 51, 2, 52]
    assert following(52, before, 2) == [53]


@WAYS
def test_one_process_stays_free_while_others_are_about(both, pool, ask, monkeypatch):
    walked(both, pool, ask, UP[:3])
    assert pool._pool.kept == 0
    ask(both, pool, 0, frames_of_type("image/jp2", J2K))
    walked(both, pool, ask, UP[3:5])
    assert pool._pool.kept == 1
    monkeypatch.setattr(pixelwishes, "COMPANY", 0.0)  # that was long ago
    walked(both, pool, ask, UP[5:7])
    assert pool._pool.kept == 0


@WAYS
def test_nothing_is_made_ahead_while_no_process_is_idle(both, pool, ask):
    pool._pool.idle = False
    assert walked(both, pool, ask, UP[:6]) == (6, 0)
    pool._pool.idle = True
    pool.wishes.look()
    assert pool._pool.ahead == 2  # those behind the last one that was asked for
    assert walked(both, pool, ask, UP[6:8]) == (6, 4)


@WAYS
def test_a_jump_drops_what_was_wished_for(both, pool, ask):
    pool._pool.idle = False
    walked(both, pool, ask, [0, 1, 7])
    pool._pool.idle = True
    pool.wishes.look()
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
    pool._pool.submit = lambda *what, deadline: deadlines.append(deadline) or submit(*what, deadline=deadline)
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
    monkeypatch.setattr(series_orders, "LONGEST", COUNT - 1)
    assert walked(series, pool, of_series, UP) == (COUNT, 0)


def test_neighbours_that_cannot_be_made(store, pool):
    for number, kind in enumerate((KIND, KIND, Kind(allocated=32, stored=32), KIND)):
        dataset = image(kind, arrays_of(kind, 1), uid(number), InstanceNumber=number)
        keep(store, stored_as(dataset, LITTLE))
    assert walked(store, pool, of_series, [0, 1]) == (2, 0)
    with pytest.raises(NotAcceptable):
        of_series(store, pool, 2, LS)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(reading_ahead, "WALKS", 3)
    walks = reading_ahead.Walks()
    for number in range(10):
        walks.visit(number, "1")
        for place in range(30):
            walks.visit(number, place)
            walks.walk(number).wish(place)
    assert len(walks._visited) == 3
    assert len(walks.walk(9).visited) == reading_ahead.PLACES
    assert len(walks.walk(9).wished) == reading_ahead.WISHED


def test_each_order_is_looked_up_once(store, pool, monkeypatch):
    """However many walk through as many series by turns."""
    orders, series = [], range(12)
    order_of = series_orders.order_of
    monkeypatch.setattr(series_orders, "order_of", lambda *key: orders.append(key) or order_of(*key))
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


# In any order

JUMPS = [0, 6, 2, 10]  # no neighbours, no steps of one length


@pytest.fixture
def soon(monkeypatch):
    """Evidence is enough as soon as there is some."""
    monkeypatch.setattr(coverage, "ENOUGH", 3)


def are_ahead(pool):
    """The places that were made and not asked for, of each series and instance."""
    known = pool.kept[reading_ahead.Walks].coverages._coverages.values()
    return [{place for place in range(COUNT) if one.ahead >> place & 1} for one in known]


@WAYS
def test_whoever_takes_many_in_any_order_finds_others_made(both, pool, ask, soon):
    assert walked(both, pool, ask, JUMPS[:2]) == (2, 0)
    assert walked(both, pool, ask, JUMPS[2:3]) == (3, 3)
    assert are_ahead(pool) == [{1, 3, 4}]
    assert walked(both, pool, ask, JUMPS[3:]) == (4, 4)
    assert are_ahead(pool) == [{1, 3, 4, 11}]
    assert walked(both, pool, ask, [8, 4, 11, 1]) == (5, 7)  # and all that are left by then


@WAYS
def test_what_was_made_is_what_would_have_been_made(both, pool, ask, soon):
    other = pool_of(read_ahead=0)
    for number in [5, 0, 10, 3, 8, 1, 6, 11, 4, 9, 2, 7]:
        assert ask(both, pool, number) == ask(both, other, number)
    assert pool._pool.asked + pool._pool.ahead == other._pool.asked == COUNT
    assert are_ahead(pool) == [set()]


@WAYS
def test_in_any_order_it_can_be_switched_off_too(both, ask, soon):
    pool = pool_of(read_ahead=0)
    assert walked(both, pool, ask, JUMPS) == (4, 0)


@WAYS
def test_in_any_order_nothing_is_made_while_no_process_is_idle(both, pool, ask, soon):
    walked(both, pool, ask, JUMPS[:2])  # that there is an order is known
    pool._pool.idle = False
    assert walked(both, pool, ask, JUMPS[2:]) == (4, 0)
    pool._pool.idle = True
    pool.wishes.look()
    assert are_ahead(pool) == [{11, 9, 8, 7}]  # about the last one


@WAYS
def test_a_walk_goes_first(both, pool, ask, soon):
    walked(both, pool, ask, JUMPS[:2])
    pool._pool.idle = False
    walked(both, pool, ask, JUMPS[2:])
    get(both, pool, f"{LOOP}/frames/1", frames_of_type("image/jp2", J2K))
    get(both, pool, f"{LOOP}/frames/2", frames_of_type("image/jp2", J2K))
    made = []
    pool.wishes._fulfil = lambda making: made.append(making.key[1:])
    pool._pool.idle = True
    pool.wishes.look()
    assert made[0] == (2, J2K)
    assert {target for _, target in made[1:]} == {JPEG_LS}


@WAYS
def test_whoever_begins_to_walk_is_only_a_walker(both, pool, ask, soon):
    pool._pool.idle = False
    walked(both, pool, ask, [*JUMPS, 5, 6, 7])
    pool._pool.idle = True
    pool.wishes.look()
    assert pool._pool.ahead == 2  # 8 and 9


@WAYS
def test_several_walkers_are_walkers(both, pool, ask, soon):
    """Each with a place of its own; what one has made is not made again for another one."""
    asked, ahead = walked(both, pool, ask, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11])
    assert asked + ahead == COUNT
    assert ahead >= 6


@WAYS
def test_a_crash_in_any_order_is_tried_once(both, pool, ask, soon):
    pool._pool.broken = True
    assert walked(both, pool, ask, JUMPS) == (4, 2)  # for each request one
    assert are_ahead(pool) == [set()]
    pool._pool.broken = False
    assert walked(both, pool, ask, [8, 3, 11]) == (7, 7)  # 3 and 11 had been tried


@WAYS
def test_it_stays_within_a_share_of_the_cache(both, ask, soon, monkeypatch):
    pool, lengths = pool_of(), []
    finish = reading_ahead._Asked._finish

    def measured(*what):
        made = finish(*what)
        lengths.append(len(made))
        return made

    monkeypatch.setattr(reading_ahead._Asked, "_finish", measured)
    monkeypatch.setattr(pool.cache, "largest", 2 * len(ask(both, pool_of(), 0)) + 100)
    walked(both, pool, ask, JUMPS)
    assert len(are_ahead(pool)[0]) == 2
    assert sum(lengths) <= pool.cache.largest


def test_one_that_was_deleted_is_passed_over(series, pool, soon):
    walked(series, pool, of_series, JUMPS[:2])
    series.delete("1.2.3", SERIES, uid(3))
    walked(series, pool, of_series, JUMPS[2:])
    assert 3 not in are_ahead(pool)[0]
    assert pool._pool.ahead == 4


def test_a_series_that_is_too_long_has_no_coverage(series, pool, soon, monkeypatch):
    monkeypatch.setattr(series_orders, "LONGEST", COUNT - 1)
    assert walked(series, pool, of_series, JUMPS) == (4, 0)


def test_a_loop_that_is_too_long_has_no_coverage(loop, pool, soon, monkeypatch):
    monkeypatch.setattr(coverage, "LONGEST", COUNT - 1)
    assert walked(loop, pool, of_loop, JUMPS) == (4, 0)


def test_a_frame_that_has_to_be_read_from_the_disk_is_not_made(series, pool, soon, monkeypatch):
    monkeypatch.setattr("streamsrv.pixels.transcoding._is_warm", lambda selection, piece: False)
    assert walked(series, pool, of_series, JUMPS) == (4, 0)
    assert are_ahead(pool) == [set()]


def test_instances_as_a_whole_are_no_walk(series, pool):
    for number in UP[:3]:
        path = instance_path(uid(number))
        request = Request("GET", f"/v2{path}", (), {"accept": of_syntax(JPEG_LS)}, "http://h/v2", 2)
        retrieve.answer(series, request, target_of(f"/v2{path}"), pool).release()
    assert pool._pool.ahead == 0


def test_the_loop_waits_for_what_is_being_made(series):
    """One making for all who ask; the loop is told what to wait for, asks again, and gets it or the error."""
    pool = pool_of(loop=threading.get_ident())
    waiting = []

    def submit(work, frames, *arguments, deadline):
        waiting.append((Future(), lambda: work(frames, *arguments)))
        return waiting[-1][0]

    pool._pool.submit = submit
    held = []
    for _ in range(3):
        with pytest.raises(WouldBlock) as blocked:
            of_series(series, pool, 0)
        held.append(blocked.value.until)
    assert len(waiting) == 1
    assert held[0] is held[1] is held[2]
    pool.cache = type(pool.cache)(0, len)  # nothing is kept, and yet it is there for who waits
    future, work = waiting[0]
    future.set_result(work())
    for _ in range(3):
        assert len(of_series(series, pool, 0)) > 100
    assert len(waiting) == 1
    with pytest.raises(WouldBlock):
        of_series(series, pool, 0)
    assert len(waiting) == 2
    waiting[1][0].set_exception(WorkerCrashed("it died"))
    with pytest.raises(NotAcceptable):
        of_series(series, pool, 0)
    with pytest.raises(WouldBlock):
        of_series(series, pool, 0)
    assert len(waiting) == 3


def test_the_loop_reads_nothing_from_the_disk(series, monkeypatch):
    pool = pool_of(loop=threading.get_ident())
    monkeypatch.setattr("streamsrv.pixels.transcoding._is_warm", lambda selection, piece: False)
    with pytest.raises(WouldBlock) as blocked:
        of_series(series, pool, 0)
    assert blocked.value.until is None
    assert pool._pool.asked == 0
