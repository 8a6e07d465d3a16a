"""Pixel processes that were taken over do not harm the pool, the other orders, or the other processes."""

import os
import re
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pool_works
import pytest
import taken_over_works
from waiting import waited

from framecodecs.errors import FrameCodecError, WorkCancelled, WorkerCrashed
from framecodecs.pool import tasks
from framecodecs.pool.pipes import WITHOUT_WAITING, PipeWriter, StoredFrame, make_room
from framecodecs.pool.pool import FramePool, PoolLimits
from framecodecs.pool.processes import ABSENT, BUSY, IDLE, STARTING

LIMITS = PoolLimits(modules=("pool_works", "taken_over_works"))


@pytest.fixture
def pool():
    with FramePool(1, LIMITS) as running:
        assert running.wait_until_ready()
        yield running


def pid_of(pool):
    return int(pool.submit(pool_works.who, []).result(30)[0][0])


def still_works(pool):
    return pool.submit(pool_works.echo, [b"after"]).result(30) == [(b"after", None)]


def test_a_process_has_the_pipes_of_its_task_and_no_file(pool, tmp_path):
    """Not the segment that a frame lies in, and no memory that another process has had."""
    if os.geteuid() != 0:
        pytest.skip("only root sees the descriptors of a process that is not dumpable")
    pid = pid_of(pool)
    (tmp_path / "segment").write_bytes(b"another patient" * 10_000)
    file = os.open(tmp_path / "segment", os.O_RDONLY)
    order = pool.submit(pool_works.nap, [StoredFrame(file, 0, 100_000), b"x" * 10], 0.5)
    os.close(file)
    assert waited(order.running)
    held = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert {re.sub(r"\[\d+\]", "", name) for name in held} == {
        "/dev/null",
        "/memfd:status (deleted)",
        "socket:",
        "pipe:",
    }
    assert len(order.result(30)[0][0]) == 100_000


@pytest.mark.parametrize("size", [100, 60_000, 400_000])
def test_a_pool_lends_none_of_its_memory(size):
    """A process that reads late would see the next use of the memory."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    make_room(writing, size)
    memory = bytearray(b"x" * size)
    outgoing = PipeWriter((b"text", memory))
    assert outgoing.send(writing, WITHOUT_WAITING)
    memory[:] = b"y" * size
    assert os.read(reading, 4 + size) == b"text" + b"x" * size
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("work", [taken_over_works.hide, taken_over_works.refuse_to_be_killed])
def test_a_process_cannot_evade_its_end(pool, work):
    pid = pid_of(pool)
    order = pool.submit(work, [], 60.0)
    assert waited(order.running)
    time.sleep(0.2)
    pool.cancel(order)
    with pytest.raises((WorkCancelled, CancelledError)):
        order.result(1)
    assert still_works(pool)
    assert pid_of(pool) != pid


def test_a_task_that_a_process_hides_is_noticed(monkeypatch):
    monkeypatch.setattr(tasks, "HIDDEN", 0.5)
    with FramePool(2, LIMITS) as pool:
        assert pool.wait_until_ready()
        thief = pool.submit(taken_over_works.steal, [], 60.0)
        assert waited(thief.running)
        naps = [pool.submit(pool_works.nap, [b"x"], 0.05) for _ in range(3)]
        outcomes = [nap.exception(20) for nap in naps]
        assert sorted(map(type, outcomes), key=str) == sorted(
            [WorkerCrashed, type(None), type(None)], key=str
        )
        with pytest.raises(FrameCodecError):
            thief.result(20)  # all processes are replaced, because nothing says which one it was
        assert still_works(pool)


@pytest.mark.parametrize("state", [ABSENT, STARTING, IDLE, BUSY])
def test_a_process_can_lie_about_itself_alone(state):
    with FramePool(2, LIMITS) as pool:
        assert pool.wait_until_ready()
        liar = int(pool.submit(taken_over_works.lie, [], state).result(30)[0][0])
        for _ in range(20):
            pool.look()
            assert still_works(pool)
        states = pool._status.states()
        assert len(states) == 2
        assert states.strip(IDLE + BUSY + state) == b""
        naps = [pool.submit(pool_works.nap_and_say_who, [], 0.2) for _ in range(4)]
        assert len({nap.result(30)[0][0] for nap in naps}) <= 2
        with suppress(ProcessLookupError):
            os.kill(liar, 0)
