"""streamsrv/web/connection/loop.py: who works, in which order, and the end."""

import asyncio
import threading

import pytest

from streamsrv.web.connection.loop import Threads, from_thread

PATIENCE = 30.0


@pytest.fixture
def threads():
    pool = Threads(3, "working")
    yield pool
    pool.shutdown()


def idle(threads, count):
    """Has so many of them started, and waits until all are idle; the last of them became it last."""
    gates = [threading.Event() for _ in range(count)]
    futures = [threads.submit(gate.wait, PATIENCE) for gate in gates]
    for number, (gate, future) in enumerate(zip(gates, futures, strict=True), 1):
        gate.set()
        assert future.result(PATIENCE)
        while len(threads._idle) < number:
            pass


def test_results_and_errors_come_back(threads):
    assert threads.submit(divmod, 7, 2).result(PATIENCE) == (3, 1)
    assert threads.submit(dict, a=1).result(PATIENCE) == {"a": 1}
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(PATIENCE)


def test_who_became_idle_last_works_next(threads):
    idle(threads, 3)
    names = {threads.submit(lambda: threading.current_thread().name).result(PATIENCE)}
    for _ in range(20):
        while len(threads._idle) < 3:
            pass
        names.add(threads.submit(lambda: threading.current_thread().name).result(PATIENCE))
    assert names == {"working-2"}


def test_no_more_than_so_many_and_the_others_wait_in_their_order(threads):
    gate, done = threading.Event(), []
    first = [threads.submit(gate.wait, PATIENCE) for _ in range(3)]
    rest = [threads.submit(done.append, number) for number in range(50)]
    cancelled = rest[10].cancel()
    assert (done, len(threads._started), cancelled) == ([], 3, True)
    gate.set()
    assert [future.result(PATIENCE) for future in first] == [True] * 3
    for number, future in enumerate(rest):
        if number != 10:
            future.result(PATIENCE)
    assert sorted(done) == [number for number in range(50) if number != 10]
    assert len(threads._started) == 3


def test_at_the_end_what_was_submitted_is_done(threads):
    gate, done = threading.Event(), []
    idle(threads, 2)
    for number in range(6):
        threads.submit(lambda number=number: (gate.wait(PATIENCE), done.append(number)))
    threads.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        threads.submit(print)
    gate.set()
    threads.shutdown()
    threads.shutdown()
    assert sorted(done) == list(range(6))
    assert not any(thread.is_alive() for thread in threads._started)


def test_the_loop_hears_what_a_thread_has_made(threads):
    async def asked():
        heard = asyncio.get_running_loop().create_future()
        from_thread(
            threads, threading.get_ident, lambda made: heard.set_result((made, threading.get_ident()))
        )
        return await asyncio.wait_for(heard, PATIENCE)

    maker, hearer = asyncio.run(asked())
    assert maker != hearer == threading.get_ident()


def test_nobody_hears_it_when_the_loop_has_ended(threads):
    gate, heard = threading.Event(), []

    async def ask():
        from_thread(threads, lambda: gate.wait(PATIENCE), heard.append)

    asyncio.run(ask())
    gate.set()
    threads.shutdown()
    assert heard == []


def test_where_no_more_threads_can_be_started_those_that_there_are_do_it(threads, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            threads.submit(divmod, 7, 2)
    gate = threading.Event()
    first = threads.submit(gate.wait, PATIENCE)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        second = threads.submit(divmod, 7, 2)
    gate.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == (3, 1)
    assert len(threads._started) == 1
