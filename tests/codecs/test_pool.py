"""The pool of processes: whatever a worker does, its caller gets an answer, and others do not notice."""

import errno
import os
import queue
import signal
import subprocess
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pool_works
import pytest
from frame_makers import GREY_12, J2K, LITTLE, RPCL, picture_like

from framecodecs import work
from framecodecs.errors import (
    CodestreamError,
    DeadlineExceeded,
    FrameCodecError,
    MemoryExceeded,
    PoolError,
    QueueFull,
    Unsupported,
    WorkCancelled,
    WorkerCrashed,
)
from framecodecs.pictures import PictureRequest
from framecodecs.pool import FramePool, PoolLimits, _Slot
from framecodecs.process import WorkerProcess
from framecodecs.wireform import KEPT_BYTES, read_answer

SMALL = PoolLimits(waiting=8, deadline=10, memory=256 * 2**20, lifetime=1000)


@pytest.fixture(scope="module")
def pool():
    with FramePool(2, SMALL) as running:
        assert running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def single():
    """One worker, so that the next order meets what the last one left."""
    with FramePool(1, SMALL) as running:
        yield running


def still_works(pool):
    return pool.submit(pool_works.echo, [b"after"]).result(30) == [(b"after", None)]


def test_frames_come_back(pool):
    frames = [b"", b"a", bytes(range(256)) * 4096, memoryview(b"view")]
    assert pool.submit(pool_works.echo, frames).result(30) == [(bytes(frame), None) for frame in frames]


def test_large_frames_do_not_stay_in_memory(pool):
    frames = [bytes(KEPT_BYTES), b"tail"]
    assert pool.submit(pool_works.echo, frames).result(30)[1] == (b"tail", None)
    assert still_works(pool)


def test_infos_come_back(pool):
    assert pool.submit(pool_works.with_info, [b"x"], GREY_12).result(30) == [(b"x", GREY_12)]


def test_a_batch_is_transcoded(pool):
    frames = [picture_like(GREY_12, seed) for seed in range(4)]
    coded = pool.submit(work.encode_frames, frames, J2K, GREY_12).result(30)
    other = pool.submit(work.transcode_frames, [frame for frame, _ in coded], J2K, RPCL, coded[0][1]).result(
        30
    )
    back = pool.submit(work.decode_frames, [frame for frame, _ in other], RPCL, other[0][1]).result(30)
    assert back == [(frame, GREY_12) for frame in frames]


def test_pictures_are_made(pool):
    request = PictureRequest()
    frames = [picture_like(GREY_12, seed) for seed in range(2)]
    results = pool.submit(work.render_frames, frames, LITTLE, GREY_12, request).result(30)
    assert [frame[:3] for frame, _ in results] == [b"\xff\xd8\xff"] * 2
    requests = [PictureRequest(media_type="image/gif")] * len(frames)
    ((gif, _),) = pool.submit(work.animate_frames, frames, LITTLE, GREY_12, requests).result(30)
    assert gif[:6] == b"GIF89a"


@pytest.mark.parametrize(
    ("job", "code"),
    [(pool_works.crash, -signal.SIGSEGV), (pool_works.abort, -signal.SIGABRT), (pool_works.leave, 3)],
)
def test_a_crash_costs_one_answer(single, job, code):
    with pytest.raises(WorkerCrashed) as caught:
        single.submit(job, [b"x"]).result(30)
    assert caught.value.exit_code == code
    assert still_works(single)


def test_a_crash_is_not_noticed_by_others(pool):
    good = [pool.submit(pool_works.nap, [b"x"], 0.05) for _ in range(3)]
    bad = [pool.submit(pool_works.abort, []) for _ in range(3)]
    assert all(future.result(30) == [(b"x", None)] for future in good)
    assert all(isinstance(future.exception(30), WorkerCrashed) for future in bad)


def test_a_hang_costs_its_deadline(single):
    assert still_works(single)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        single.submit(pool_works.hang, [], deadline=0.3).result(30)
    assert time.monotonic() - begun < 3
    assert still_works(single)


def test_memory_is_limited_in_python_and_in_c(single):
    with pytest.raises(MemoryExceeded):
        single.submit(pool_works.grow, [], 300 * 2**20).result(30)
    assert single.submit(pool_works.grow_in_c, [], 300 * 2**20).result(30) == [(b"refused", None)]
    assert len(single.submit(pool_works.grow, [], 10 * 2**20).result(30)[0][0]) == 10 * 2**20


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (pool_works.refuse, CodestreamError, "in words"),
        (pool_works.surprise, FrameCodecError, "KeyError"),
        (pool_works.hint, Unsupported, "no library (pip install it)"),
    ],
)
def test_errors_come_back_as_they_were(pool, job, kind, words):
    error = pool.submit(job, [b"x"]).exception(30)
    assert type(error) is kind
    assert words in str(error)


def test_an_install_hint_comes_back(pool):
    assert pool.submit(pool_works.hint, []).exception(30).hint == "pip install it"


@pytest.mark.parametrize("job", [pool_works.nonsense, pool_works.write_rubbish])
def test_a_worker_that_speaks_nonsense_is_replaced(single, job):
    assert isinstance(single.submit(job, [b"x"]).exception(30), FrameCodecError)
    assert still_works(single)


def test_half_a_message_ends_too(monkeypatch):
    monkeypatch.setattr("framecodecs.process.HALF_A_MESSAGE", 1)
    with FramePool(1, SMALL) as pool:
        assert isinstance(pool.submit(pool_works.half_a_message, []).exception(30), WorkerCrashed)
        assert still_works(pool)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b'{"sizes": [5], "infos": [null]}',
        b'{"sizes": [4000000000000], "infos": [null]}',
        b'{"sizes": [0], "infos": [["x"]]}',
        b'{"sizes": [0], "infos": [7]}',
        b"\xff",
    ],
)
def test_answers_that_cannot_be_read(answer, tmp_path):
    with open(tmp_path / "frames", "wb+") as file, pytest.raises(FrameCodecError):
        read_answer(answer, file.fileno())


def test_error_names_that_nobody_knows(tmp_path):
    said = b'{"error": "SystemExit", "detail": "x", "hint": ""}'
    with open(tmp_path / "frames", "wb+") as file, pytest.raises(FrameCodecError) as caught:
        read_answer(said, file.fileno())
    assert type(caught.value) is FrameCodecError


def test_arguments_that_cannot_be_sent(single):
    assert single.submit(pool_works.echo, [], lambda: None).exception(30) is not None
    assert still_works(single)


def test_workers_know_nothing_of_the_server_and_are_silent(single, capfd):
    modules = single.submit(pool_works.environment, []).result(30)[0][0].decode().split(",")
    assert {name.partition(".")[0] for name in modules}.isdisjoint({"tornado", "lmdb", "streamsrv", "pytest"})
    single.submit(pool_works.noisy, []).result(30)
    assert capfd.readouterr() == ("", "")


def test_terminating_the_group_is_left_to_the_pool(single):
    assert single.submit(pool_works.ignore_terminate, [b"x"]).result(30) == [(b"x", None)]


def test_nobody_waits_for_a_new_process_while_another_one_is_ready():
    with FramePool(2, SMALL) as pool:
        assert eventually(lambda: len(pool._idle) == 2)
        before = {slot.worker.process.pid for slot in pool._slots}
        assert pool.submit(pool_works.crash, [b"x"]).exception(30) is not None
        assert eventually(lambda: len(pool._idle) == 2)
        (pid, _), *_ = pool.submit(pool_works.who, []).result(30)
        assert int(pid) in before
        naps = [pool.submit(pool_works.nap, [b"x"], 0.1) for _ in range(2)]
        assert [nap.result(30) for nap in naps] == [[(b"x", None)]] * 2


def eventually(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_a_worker_that_died_while_idle_costs_nothing(single):
    pid = int(single.submit(pool_works.who, []).result(30)[0][0])
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert still_works(single)


def test_workers_are_replaced_after_their_lifetime():
    with FramePool(1, PoolLimits(lifetime=2)) as pool:
        pids = [pool.submit(pool_works.who, []).result(30)[0][0] for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_the_queue_is_bounded(single):
    assert still_works(single)
    futures = [single.submit(pool_works.nap, [], 0.05) for _ in range(9)]
    with pytest.raises(QueueFull):
        single.submit(pool_works.echo, [])
    wait(futures, 30)
    assert single.unfinished == 0
    assert still_works(single)


def test_waiting_work_can_be_cancelled(single):
    busy = single.submit(pool_works.nap, [], 0.2)
    waiting = single.submit(pool_works.echo, [])
    single.cancel(waiting)
    with pytest.raises(CancelledError):
        waiting.result(1)
    assert busy.result(30) == []
    assert still_works(single)


def test_running_work_can_be_cancelled(single):
    assert still_works(single)
    running = single.submit(pool_works.hang, [])
    while not running.running():
        time.sleep(0.01)
    time.sleep(0.1)
    begun = time.monotonic()
    single.cancel(running)
    with pytest.raises(WorkCancelled):
        running.result(5)
    assert time.monotonic() - begun < 2
    assert still_works(single)


def test_finished_work_can_be_cancelled_without_harm(single):
    done = single.submit(pool_works.echo, [b"x"])
    assert done.result(30) == [(b"x", None)]
    single.cancel(done)
    assert still_works(single)


def test_cancelling_at_any_moment_harms_nobody_else():
    """Cancels after every possible delay; what comes next always works."""
    with FramePool(1, SMALL) as pool:
        assert pool.wait_until_ready()
        for step in range(12):
            future = pool.submit(pool_works.nap, [], 0.005)
            time.sleep(step * 0.0008)
            pool.cancel(future)
            assert still_works(pool)


def test_many_threads_share_a_pool():
    with FramePool(2, PoolLimits(waiting=100)) as pool, ThreadPoolExecutor(8) as threads:
        frames = [str(number).encode() * 1000 for number in range(200)]
        answers = threads.map(lambda frame: pool.submit(pool_works.echo, [frame]).result(30), frames)
        assert list(answers) == [[(frame, None)] for frame in frames]


def test_closing_ends_everything():
    pool = FramePool(1, SMALL)
    pid = int(pool.submit(pool_works.who, []).result(30)[0][0])
    running, waiting = pool.submit(pool_works.hang, []), pool.submit(pool_works.echo, [])
    time.sleep(0.1)
    pool.close()
    assert isinstance(running.exception(1), PoolError)
    assert waiting.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(PoolError, match="closed"):
        pool.submit(pool_works.echo, [])


def test_a_pool_that_cannot_start_says_so():
    with FramePool(1, PoolLimits(starting=0.001)) as pool:
        assert not pool.wait_until_ready(0.5)
        assert isinstance(pool.submit(pool_works.echo, []).exception(10), DeadlineExceeded)


def test_processes_are_started_when_there_is_work_for_them():
    with FramePool(3, SMALL, first=1) as pool:
        assert len(pool._threads) == 1
        assert still_works(pool)
        assert still_works(pool)
        assert len(pool._threads) == 1  # one after the other
        naps = [pool.submit(pool_works.nap, [b"x"], 0.2) for _ in range(2)]
        assert len(pool._threads) == 2
        assert [nap.result(30) for nap in naps] == [[(b"x", None)]] * 2


def test_without_another_thread_those_that_are_there_do_it(monkeypatch):
    def failing(self):
        raise RuntimeError("can't start new thread")

    with FramePool(2, SMALL, first=1) as pool:
        nap = pool.submit(pool_works.nap, [b"x"], 0.1)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", failing)
            other = pool.submit(pool_works.nap, [b"y"], 0.1)
            pool.look()
        assert (nap.result(30), other.result(30)) == ([(b"x", None)], [(b"y", None)])
        assert still_works(pool)
        assert pool.unfinished == 0
        naps = [pool.submit(pool_works.nap, [b"x"], 0.1) for _ in range(2)]
        assert len(pool._threads) == 2
        assert [nap.result(30) for nap in naps] == [[(b"x", None)]] * 2


def test_a_process_that_cannot_be_started_leaves_nothing_open(monkeypatch):
    def failing(*arguments, **keywords):
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", failing)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            WorkerProcess(SMALL)
    assert os.listdir("/proc/self/fd") == before


def test_an_order_that_is_cancelled_while_it_is_submitted(single, monkeypatch):
    """As `close` does. The slot's thread goes on."""
    begin = _Slot.begin

    def cancelled(slot, job, cores):
        job.future.cancel()
        begin(slot, job, cores)

    assert still_works(single)
    with monkeypatch.context() as patched:
        patched.setattr(_Slot, "begin", cancelled)
        assert single.submit(pool_works.echo, [b"x"]).cancelled()
    assert still_works(single)


def test_an_order_for_idle_processes_only():
    told = threading.Event()
    with FramePool(1, SMALL, idle=told.set) as pool:
        assert told.wait(30)
        assert pool.is_idle
        nap = pool.submit(pool_works.nap, [b"x"], 0.2)
        assert not pool.is_idle
        told.clear()
        assert pool.submit_if_idle(pool_works.echo, [b"y"]) is None
        assert pool.unfinished == 1
        assert nap.result(30) == [(b"x", None)]
        assert told.wait(30)
        assert pool.submit_if_idle(pool_works.echo, [b"y"]).result(30) == [(b"y", None)]


def test_idle_is_called_when_somebody_asks_to_look():
    looked = threading.Semaphore(0)
    with FramePool(2, SMALL, first=1, idle=looked.release) as pool:
        assert looked.acquire(timeout=30)
        pool.look()
        assert looked.acquire(timeout=30)
        nap = pool.submit(pool_works.nap, [], 0.2)
        pool.look()  # another one is started
        assert len(pool._threads) == 2
        assert looked.acquire(timeout=30)
        assert nap.result(30) == []


def test_an_order_goes_out_at_once_to_a_process_that_is_ready():
    with FramePool(1, SMALL) as pool:
        assert still_works(pool)
        (slot,) = pool._slots
        held = slot.inbox
        slot.inbox = queue.SimpleQueue()  # the slot's thread hears nothing of it
        future = pool.submit(pool_works.echo, [b"x"])
        assert slot.worker.receive(30) == [(b"x", None)]
        future.set_exception(PoolError("taken by the test"))
        pool._give_back(slot)
        slot.inbox = held
        assert still_works(pool)


def test_who_leaves_gives_up_the_place_in_the_queue(single):
    busy = single.submit(pool_works.nap, [], 0.2)
    for _ in range(50):  # more than may wait
        assert single.submit(pool_works.echo, []).cancel()
    assert not single._waiting
    assert busy.result(30) == []
    assert still_works(single)
