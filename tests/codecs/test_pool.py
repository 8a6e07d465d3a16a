"""The pool of processes: for any fault of a worker its caller gets an answer, and others do not notice."""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pool_works
import pytest
from frame_makers import GREY_12, J2K, LITTLE, RPCL, picture_like
from hypothesis import given
from hypothesis import strategies as st
from waiting import waited

from framecodecs.errors import (
    CodestreamError,
    DeadlineExceeded,
    DecodeError,
    FrameCodecError,
    FrameUnread,
    MemoryExceeded,
    PoolError,
    QueueFull,
    Unavailable,
    Unsupported,
    WorkCancelled,
    WorkerCrashed,
)
from framecodecs.frameinfo import FrameInfo
from framecodecs.pool import messages, pipes, processes
from framecodecs.pool.messages import (
    HEAD,
    LONGEST_DETAIL,
    LONGEST_TEXT,
    SHORT,
    AnswerReader,
    TaskMessage,
    arguments_from_json,
)
from framecodecs.pool.pipes import MOST_ROOM, StoredFrame
from framecodecs.pool.pool import FramePool, PoolLimits
from framecodecs.pool.processes import ABSENT, END, IDLE, PixelProcesses
from framecodecs.rendering.lettering import Notes
from framecodecs.rendering.pictures import PictureRequest, Viewport
from framecodecs.rendering.rendering import Lut, Palette, Rendering, Window

# The processes start without using each codec once, but those of `pool` do.
Limits = partial(PoolLimits, modules=("nothing_prepared", "pool_works"))
SMALL = Limits(waiting=8, deadline=10, memory=256 * 2**20, lifetime=1000)


@pytest.fixture(scope="module")
def pool():
    with FramePool(2, replace(SMALL, modules=("pool_works",))) as running:
        assert running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def single():
    """One worker, so that the next task meets the state that the last one left."""
    with FramePool(1, SMALL) as running:
        yield running


def still_works(pool):
    return pool.submit(pool_works.echo, [b"after"]).result(30) == [(b"after", None)]


def test_frames_come_back(pool):
    frames = [b"", b"a", bytes(range(256)) * 4096, memoryview(b"view")]
    assert pool.submit(pool_works.echo, frames).result(30) == [(bytes(frame), None) for frame in frames]


def test_large_frames_go_through_in_pieces(pool):
    frames = [bytes(8 * MOST_ROOM), b"tail"]
    assert pool.submit(pool_works.echo, frames).result(30)[1] == (b"tail", None)
    assert still_works(pool)


def test_infos_come_back(pool):
    assert pool.submit(pool_works.with_info, [b"x"], GREY_12).result(30) == [(b"x", GREY_12)]


def test_a_batch_is_transcoded(pool):
    frames = [picture_like(GREY_12, seed) for seed in range(4)]
    coded = pool.submit(messages.transcode_frames, frames, LITTLE, J2K, GREY_12).result(30)
    other = pool.submit(
        messages.transcode_frames, [frame for frame, _ in coded], J2K, RPCL, coded[0][1]
    ).result(30)
    back = pool.submit(messages.decode_frames, [frame for frame, _ in other], RPCL, other[0][1]).result(30)
    assert back == [(frame, GREY_12) for frame in frames]


def test_pictures_are_made(pool):
    request = PictureRequest()
    frames = [picture_like(GREY_12, seed) for seed in range(2)]
    results = pool.submit(messages.render_frames, frames, LITTLE, GREY_12, request).result(30)
    assert [frame[:3] for frame, _ in results] == [b"\xff\xd8\xff"] * 2
    request = PictureRequest(media_type="image/gif")
    blocks = pool.submit(messages.animate_frames, frames, LITTLE, GREY_12, request).result(30)
    assert [block[:2] for block, _ in blocks] == [b"\x21\xf9"] * 2


@pytest.mark.parametrize("job", [pool_works.crash, pool_works.abort, pool_works.leave])
def test_a_crash_costs_one_answer(single, job):
    with pytest.raises(WorkerCrashed):
        single.submit(job, [b"x"]).result(30)
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


def test_a_loop_costs_its_processor_time(single, monkeypatch):
    monkeypatch.setattr(processes, "BUSY_MACHINE", 30)  # a busy machine gives it a tenth of a core
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"0\.3 s of processor time"):
        single.submit(pool_works.spin, [], deadline=0.3).result(30)
    assert time.monotonic() - begun < 8
    assert still_works(single)


def test_time_in_which_others_have_the_cores_is_no_work(pool):
    """As of a process that waits for a core: it has not used the processor time of its deadline."""
    assert pool.submit(pool_works.nap, [b"x"], 0.6, deadline=0.3).result(30) == [(b"x", None)]


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


SAID = [
    b"",
    b"{}",
    b"[]",
    b"5000\n[null]",
    b"4000000000000\n[null]",
    b"-1\n[null]",
    b"0\n[null, null]",
    b"0\n[" + b"null," * SHORT + b"null]",
    b'0\n[["x"]]',
    b"0\n[[0, 0]]",
    b"0\n[7]",
    b"0\n{}",
    b"x\n[null]",
    b"0",
    b"0\n" + b"[" * 100_000,
    b'0\n[[1, 1, 1, 8, 8, 7, 0, 0, "MONOCHROME2", [0]]]',
    b"9" * 5000 + b"\n[null]",
    b"\xff",
]


def read(sent, frames=2, size=1 << 20):
    """Returns the answer of a process that sends these bytes and ends."""
    receiving, sending = os.pipe2(os.O_NONBLOCK)
    try:
        with suppress(BlockingIOError):
            os.write(sending, sent)
        os.close(sending)
        return AnswerReader(frames, size).read(receiving)
    finally:
        os.close(receiving)


def answer(said, frames=b""):
    return HEAD.pack(len(said)) + said + frames


@pytest.mark.parametrize("said", SAID)
def test_answers_that_cannot_be_read(said):
    with pytest.raises((FrameCodecError, EOFError)):
        read(answer(said, b"x" * 100))


@pytest.mark.parametrize("sent", [b"", b"x", HEAD.pack(5) + b"5000", HEAD.pack(LONGEST_TEXT + 1), bytes(4)])
def test_messages_that_lead_nowhere(sent):
    with pytest.raises((WorkerCrashed, EOFError)):
        read(sent)


def test_more_frames_or_bytes_than_were_asked_for():
    assert read(answer(b"1 1\n[null,null]", b"ab")) == [(b"a", None), (b"b", None)]
    for said in (b"1 1 1\n[null,null,null]", b"500 600\n[null,null]", b"-1 2\n[null,null]"):
        with pytest.raises(WorkerCrashed, match="more frames or bytes"):
            read(answer(said, bytes(2000)), size=1000)


@pytest.mark.parametrize("values", ["1.5, 1", "true, 1", '"1", 1', "1", "0, 1", "[], {}"])
def test_descriptions_of_frames_are_checked(values):
    rest = '1, 8, 8, 7, 0, 0, "MONOCHROME2", false'
    assert read(answer(f"1\n[[1, 1, {rest}]]".encode(), b"x"))[0][1] == FrameInfo(1, 1)
    with pytest.raises(FrameCodecError):
        read(answer(f"1\n[[{values}, {rest}]]".encode(), b"x"))


def test_an_answer_that_comes_byte_by_byte():
    receiving, sending = os.pipe2(os.O_NONBLOCK)
    reader, found = AnswerReader(2, 100), None
    for number in answer(b"3 0\n[null,null]", b"abc"):
        assert found is None
        os.write(sending, bytes([number]))
        found = reader.read(receiving)
    assert found == [(b"abc", None), (b"", None)]
    os.close(receiving)
    os.close(sending)


@pytest.mark.parametrize("size", [0, SHORT, SHORT + 1])
def test_details_are_short_and_printable(size):
    detail = "x" * size + "\n"
    said = json.dumps({"error": "DecodeError", "detail": detail, "hint": ""}).encode()
    with pytest.raises(DecodeError) as caught:
        read(answer(said))
    assert caught.value.detail == ("x" * size + "?")[:LONGEST_DETAIL]


@pytest.mark.parametrize("name", ["SystemExit", "FrameUnread", "QueueFull"])
def test_error_names_that_a_process_may_not_say(name):
    said = json.dumps({"error": name, "detail": "x", "hint": ""}).encode()
    with pytest.raises(FrameCodecError) as caught:
        read(answer(said))
    assert type(caught.value) is FrameCodecError


def test_long_arguments_are_sent(single):
    assert single.submit(pool_works.echo, [b"x"], bytes(10 * SHORT)).result(30) == [(b"x", None)]


def test_frames_are_read_where_they_are_stored(single, tmp_path):
    """The caller may close and remove the files at once."""
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode() * 5000 + b"0123456789")
    busy = single.submit(pool_works.nap_and_say_who, [], 0.2)
    files = [os.open(path, os.O_RDONLY) for path in paths]
    frames = [
        StoredFrame(files[1], 5000, 10),
        b"between",
        StoredFrame(files[0], 4999, 3),
        StoredFrame(files[1], 0, 1),
    ]
    order = single.submit(pool_works.echo, frames)
    for file, path in zip(files, paths, strict=True):
        os.close(file)
        path.unlink()
    assert [frame for frame, _ in order.result(30)] == [b"0123456789", b"between", b"a01", b"b"]
    assert busy.result(30)


def test_frames_that_are_not_there_as_a_whole(single, tmp_path):
    (tmp_path / "cut").write_bytes(b"12345")
    for path, complaint in ((tmp_path / "cut", "2 bytes of a stored frame"), (tmp_path, "cannot be read")):
        file = os.open(path, os.O_RDONLY)
        with pytest.raises(FrameUnread, match=complaint):
            single.submit(pool_works.echo, [StoredFrame(file, 1, 6)]).result(30)
        os.close(file)
    assert single.unfinished == 0
    assert still_works(single)


def test_a_long_stored_frame_follows_as_it_is_read(single, tmp_path):
    """Longer than any pipe; the file that it lies in may be closed and gone by then."""
    frame = os.urandom(1000) * 33_000
    (tmp_path / "long").write_bytes(b"before" + frame)
    file = os.open(tmp_path / "long", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    order = single.submit(pool_works.echo, [StoredFrame(file, 6, len(frame)), b"after"])
    os.close(file)
    (tmp_path / "long").unlink()
    assert [found for found, _ in order.result(30)] == [frame, b"after"]
    assert waited(lambda: len(os.listdir("/proc/self/fd")) < before)
    file = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    os.close(file)


def test_a_long_stored_frame_that_ends_early(single, tmp_path):
    (tmp_path / "cut").write_bytes(bytes(30 << 20))
    file = os.open(tmp_path / "cut", os.O_RDONLY)
    order = single.submit(pool_works.echo, [StoredFrame(file, 0, 31 << 20)])
    with pytest.raises(FrameUnread, match="1048576 bytes of a stored frame are not there"):
        order.result(30)
    os.close(file)
    assert still_works(single)


def test_where_the_system_lends_no_pages(single, monkeypatch, tmp_path):
    """As if vmsplice were forbidden, and the file system could not splice."""

    def refuse(*arguments, **keywords):
        raise OSError(errno.EINVAL, "Invalid argument")

    class Refusing:
        def vmsplice(self, *arguments):
            ctypes.set_errno(errno.ENOSYS)
            return -1

    monkeypatch.setattr(pipes, "LIBC", Refusing())
    monkeypatch.setattr(os, "splice", refuse)
    (tmp_path / "stored").write_bytes(bytes(range(256)) * 20_000)
    file = os.open(tmp_path / "stored", os.O_RDONLY)
    frames = [b"a" * 100_000, StoredFrame(file, 1, 5_000_000), b"b" * 3_000_000]
    results = single.submit(pool_works.echo, frames).result(30)
    assert results[1][0] == (bytes(range(256)) * 20_000)[1:5_000_001]
    assert [len(frame) for frame, _ in results] == [100_000, 5_000_000, 3_000_000]
    os.close(file)


def test_arguments_that_cannot_be_sent(single):
    with pytest.raises(TypeError, match="function is no argument"):
        single.submit(pool_works.echo, [], lambda: None)
    assert single.unfinished == 0
    assert still_works(single)


LUT = Lut(-5, bytes(range(16)), 12)
EVERYTHING = PictureRequest(
    Rendering(2.5, -1.0, LUT, Window(1.5, 2.0, "SIGMOID"), LUT, Palette(LUT, LUT, LUT), (1, 2), True),
    Viewport(5, 6, (1, 2, -3, 4), False),
    "image/png",
    50,
    b"\0profile",
    True,
    12.5,
    Notes(("Müller",), ("a", "b")),
)
words = st.one_of(
    st.integers(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.just(EVERYTHING),
)
orders = st.builds(
    TaskMessage,
    st.sampled_from([pool_works.echo, pool_works.who]),
    st.lists(words | st.lists(words, max_size=3).map(tuple), max_size=4).map(tuple),
    st.lists(st.integers(0, 2**31), max_size=4).map(tuple),
    st.floats(0.0, 1e9),
    st.integers(1, 2**31),
)


@given(orders)
def test_an_order_is_read_as_it_was_written(order):
    assert TaskMessage.from_text(order.to_text()) == order


def test_arguments_of_the_same_words_are_read_once():
    message = TaskMessage(pool_works.echo, ("a" * 99, [1]), (), 1.0, 1.0)
    one, other = (TaskMessage.from_text(message.to_text()) for _ in range(2))
    assert one.arguments is other.arguments
    assert one.arguments == ("a" * 99, (1,))


@pytest.mark.parametrize(
    "text", ['{"Unknown":[]}', '{"FrameInfo":[1],"Lut":[]}', '{"bytes":"*"}', "7", "[", "{}"]
)
def test_arguments_that_cannot_be_read(text):
    with pytest.raises(ValueError):
        arguments_from_json(text)


def test_an_order_that_finds_no_pipe_when_it_is_sent_anew_fails_alone(single, monkeypatch):
    """As if a process had ended just before it began it."""
    order = single.submit(pool_works.nap_and_say_who, [], 0.3)
    usual = os.pipe2

    def refuse(flags):
        raise OSError(errno.EMFILE, "Too many open files")

    def ended(order):
        raise EOFError

    waited(lambda: order.begun() is not None)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pipe2", refuse)
    monkeypatch.setattr(type(order), "received", ended)
    monkeypatch.setattr(type(order), "may_be_resent", lambda order: True)
    single._receive(order.descriptor)
    with pytest.raises(Unavailable, match="no pipe"):
        order.result(30)
    monkeypatch.undo()
    assert os.pipe2 is usual
    assert single.unfinished == 0
    assert len(os.listdir("/proc/self/fd")) < before
    assert still_works(single)


def test_workers_know_nothing_of_the_server_and_are_silent(single, capfd):
    modules = single.submit(pool_works.environment, []).result(30)[0][0].decode().split(",")
    assert {name.partition(".")[0] for name in modules}.isdisjoint({"tornado", "lmdb", "streamsrv", "pytest"})
    single.submit(pool_works.noisy, []).result(30)
    assert capfd.readouterr() == ("", "")


def test_terminating_the_group_is_left_to_the_pool(single):
    assert single.submit(pool_works.ignore_terminate, [b"x"]).result(30) == [(b"x", None)]


def test_no_task_waits_for_a_new_process_while_another_one_is_ready():
    with FramePool(2, SMALL) as pool:
        assert pool.wait_until_ready()
        naps = [pool.submit(pool_works.nap_and_say_who, [], 0.2) for _ in range(2)]
        before = {nap.result(30)[0][0] for nap in naps}
        assert len(before) == 2
        assert pool.submit(pool_works.crash, [b"x"]).exception(30) is not None
        assert pool.submit(pool_works.who, []).result(30)[0][0] in before
        naps = [pool.submit(pool_works.nap, [b"x"], 0.1) for _ in range(2)]
        assert [nap.result(30) for nap in naps] == [[(b"x", None)]] * 2


def test_a_process_that_died_while_idle_costs_nothing(single):
    pid = int(single.submit(pool_works.who, []).result(30)[0][0])
    os.kill(pid, signal.SIGKILL)
    assert still_works(single)


def test_processes_are_replaced_after_their_lifetime():
    with FramePool(1, Limits(lifetime=2)) as pool:
        pids = [pool.submit(pool_works.who, []).result(30)[0][0] for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_the_queue_is_bounded(single):
    assert still_works(single)
    futures = [single.submit(pool_works.nap, [], 0.05) for _ in range(9)]
    with pytest.raises(QueueFull):
        single.submit(pool_works.echo, [])
    assert [future.exception(30) for future in futures] == [None] * 9
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


class Full:
    """An epoll that takes no more."""

    def __init__(self, epoll):
        self._epoll = epoll

    def __getattr__(self, name):
        return getattr(self._epoll, name)

    def register(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_order_whose_answer_cannot_be_awaited_fails_alone(single, monkeypatch):
    assert single.submit(pool_works.echo, [b"x"]).result(30)
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(single, "_answers", Full(single._answers))
        with pytest.raises(Unavailable, match="No space"):
            single.submit(pool_works.echo, [b"x"])
    assert single.unfinished == 0
    assert len(os.listdir("/proc/self/fd")) <= before
    assert still_works(single)


def test_only_the_order_that_a_process_reads_has_begun(single):
    for answer in [single.submit(pool_works.echo, [b"x"]) for _ in range(3)]:
        assert answer.result(30)
    busy = single.submit(pool_works.nap, [], 0.2)
    waiting = [single.submit(pool_works.echo, [b"y"]) for _ in range(2)]
    assert waited(busy.running)
    assert [order.begun() for order in waiting] == [None, None]
    assert waiting[0].cancel()
    assert not busy.cancel()
    assert waiting[1].result(30) == [(b"y", None)]


def test_running_work_can_be_cancelled(single):
    assert still_works(single)
    running = single.submit(pool_works.hang, [])
    assert waited(running.running)
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


def test_cancelling_at_any_moment_does_no_harm():
    """Cancels after every possible delay; the next task always works."""
    with FramePool(1, SMALL) as pool:
        assert pool.wait_until_ready()
        for step in range(6):
            future = pool.submit(pool_works.nap, [], 0.005)
            time.sleep(step * 0.0016)
            pool.cancel(future)
            assert still_works(pool)


def test_many_threads_share_a_pool():
    with FramePool(2, Limits(waiting=100)) as pool, ThreadPoolExecutor(8) as threads:
        frames = [str(number).encode() * 1000 for number in range(200)]
        answers = threads.map(lambda frame: pool.submit(pool_works.echo, [frame]).result(30), frames)
        assert list(answers) == [[(frame, None)] for frame in frames]


def test_closing_ends_everything():
    pool = FramePool(1, SMALL)
    pid = int(pool.submit(pool_works.who, []).result(30)[0][0])
    running = pool.submit(pool_works.hang, [])
    assert waited(running.running)
    waiting = pool.submit(pool_works.echo, [])
    pool.close()
    assert isinstance(running.exception(1), PoolError)
    with pytest.raises((CancelledError, PoolError)):
        waiting.result(1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Unavailable, match="closed"):
        pool.submit(pool_works.echo, [])
    pool.close()


def test_closing_leaves_no_descriptor_open():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with FramePool(1, SMALL) as pool:
            assert still_works(pool)
            pool.submit(pool_works.hang, [])
            pool.submit(pool_works.echo, [b"x"])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def failing(monkeypatch):
    def fail(*arguments, **keywords):
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", fail)


def test_a_pool_that_cannot_start_says_so(failing):
    with FramePool(1, Limits(starting=0.3)) as pool:
        assert not pool.wait_until_ready(0.1)
        assert isinstance(pool.submit(pool_works.echo, []).exception(10), Unavailable)


def test_a_process_that_ends_while_it_starts_is_not_tried_all_the_time(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho >> {tmp_path}/started\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr("framecodecs.pool.processes.sys.executable", str(script))
    with FramePool(1, Limits(starting=0.5)) as pool:
        assert isinstance(pool.submit(pool_works.echo, []).exception(10), Unavailable)
    assert (tmp_path / "started").read_text().count("\n") <= 2


def test_a_process_that_starts_for_ever_is_killed(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr("framecodecs.pool.processes.sys.executable", str(script))
        pool = FramePool(1, Limits(starting=2.0))
        assert isinstance(pool.submit(pool_works.echo, []).exception(10), Unavailable)
    with pool:
        assert still_works_in_the_end(pool)


def still_works_in_the_end(pool):
    for _ in range(50):
        with suppress(Unavailable):
            return still_works(pool)
    return False


def test_a_process_that_cannot_be_started_leaves_nothing_open(failing):
    processes = PixelProcesses(2)
    before = os.listdir("/proc/self/fd")
    processes.start(2)
    assert os.listdir("/proc/self/fd") == before
    processes.close()


def processes_of(pool):
    return len(pool._status.states().strip(ABSENT))


def test_processes_are_started_when_there_is_work_for_them():
    with FramePool(3, SMALL, first=1) as pool:
        assert still_works(pool)
        assert still_works(pool)
        assert processes_of(pool) == 1  # one after the other
        naps = [pool.submit(pool_works.nap, [b"x"], 0.5) for _ in range(2)]
        assert waited(lambda: processes_of(pool) == 2)
        assert [nap.result(30) for nap in naps] == [[(b"x", None)]] * 2
        assert processes_of(pool) == 2


def test_one_is_started_when_orders_will_come():
    with FramePool(2, SMALL, first=0) as pool:
        time.sleep(0.05)
        assert processes_of(pool) == 0
        pool.warm()
        pool.warm()
        assert waited(lambda: IDLE in pool._status.states())
        assert processes_of(pool) == 1


def test_an_order_for_idle_processes_only():
    told = threading.Event()
    with FramePool(1, SMALL, idle=told.set) as pool:
        assert pool.wait_until_ready()
        assert pool.is_idle
        nap = pool.submit(pool_works.nap, [b"x"], 1.0)
        assert waited(nap.running)  # it says whose order it has, and then that it is busy
        assert waited(lambda: not pool.is_idle)
        assert pool.submit_if_idle(pool_works.echo, [b"y"]) is None
        assert pool.unfinished == 1
        assert nap.result(30) == [(b"x", None)]
        assert told.wait(30)
        assert pool.submit_if_idle(pool_works.echo, [b"y"]).result(30) == [(b"y", None)]


def test_tasks_that_were_sent_ahead_do_not_fill_the_queue():
    with FramePool(2, Limits(waiting=1)) as pool:
        assert pool.wait_until_ready()
        ahead = [pool.submit_if_idle(pool_works.nap, [b"x"], 1.0) for _ in range(2)]
        asked = [pool.submit(pool_works.echo, [b"y"]) for _ in range(3)]
        with pytest.raises(QueueFull):
            pool.submit(pool_works.echo, [b"y"])
        assert [order.result(30) for order in (*ahead, *asked)] == [[(b"x", None)]] * 2 + [[(b"y", None)]] * 3


def test_as_many_as_are_kept_stay_idle(shared):
    with FramePool(endpoints=shared) as one, FramePool(endpoints=shared) as other:
        assert one.wait_until_ready()
        ahead = one.submit_if_idle(pool_works.nap, [b"x"], 1.0, kept=1)
        assert ahead is not None
        assert one.submit_if_idle(pool_works.echo, [], kept=1) is None
        assert waited(ahead.running)
        assert one.is_idle
        assert not other.is_idle  # the last one stays free for tasks of other pools
        assert other.submit_if_idle(pool_works.echo, []) is None
        assert still_works(other)


def test_look_calls_idle():
    looked = threading.Semaphore(0)
    with FramePool(2, SMALL, first=1, idle=looked.release) as pool:
        assert waited(lambda: pool.is_idle)
        pool.look()
        assert looked.acquire(timeout=30)
        hanging = pool.submit(pool_works.hang, [], deadline=60)
        pool.look()  # another one is started
        assert looked.acquire(timeout=30)
        assert processes_of(pool) == 2
        assert not hanging.done()


def test_answers_come_to_the_loop_that_watches():
    with FramePool(1, SMALL) as pool, select.epoll() as loop:
        loop.register(pool.arrivals.fileno(), select.EPOLLIN)
        answer = pool.submit(pool_works.echo, [b"x"], here=True)
        assert loop.poll(30)
        assert not answer.done()
        pool.receive()
        assert answer.result(0) == [(b"x", None)]
        assert not loop.poll(0)


def test_a_cancelled_task_frees_its_place_in_the_queue(single):
    busy = single.submit(pool_works.nap, [], 0.2)
    assert waited(busy.running)
    for _ in range(50):  # more than may wait
        assert single.submit(pool_works.echo, []).cancel()
    assert single.unfinished == 1
    assert busy.result(30) == []
    assert still_works(single)


def test_a_queue_that_is_full_of_orders_of_others():
    processes = PixelProcesses(1, SMALL)  # no process takes any
    with FramePool(endpoints=processes.endpoints) as pool:
        waiting = pool.submit(pool_works.echo, [])
        with suppress(BlockingIOError):
            while True:
                pool._queue.send(b"of somebody else", socket.MSG_DONTWAIT)
        with pytest.raises(QueueFull):
            pool.submit(pool_works.echo, [])
        assert pool.unfinished == 1
    assert waiting.cancelled()
    processes.close()


# Shared by several pools


@pytest.fixture
def shared():
    """Processes whose owner sends no tasks."""
    processes = PixelProcesses(2, SMALL)
    processes.start(2)
    thread = threading.Thread(target=processes.serve)
    thread.start()
    yield processes.endpoints
    os.write(processes.endpoints.requests, END)
    thread.join()


def test_any_process_takes_the_next_order_of_any_pool(shared):
    with FramePool(endpoints=shared) as one, FramePool(endpoints=shared) as other:
        assert one.wait_until_ready()
        pids = pids_of(one)
        assert len(pids) == 2  # both of them work for one pool
        assert other.submit(pool_works.who, []).result(30)[0][0] in pids
        assert processes_of(one) == processes_of(other) == 2
        busy = [one.submit(pool_works.nap, [], 1.0) for _ in range(2)]
        assert waited(lambda: all(nap.running() for nap in busy))
        assert not other.is_idle
        assert other.submit_if_idle(pool_works.echo, []) is None
        assert still_works(other)


def test_tasks_are_taken_although_the_woken_process_dies(shared):
    with FramePool(endpoints=shared) as pool:
        assert pool.wait_until_ready()
        for pid in [int(pid) for pid in pids_of(pool)]:
            answers = [pool.submit(pool_works.echo, [b"x"]) for _ in range(4)]
            os.kill(pid, signal.SIGKILL)
            for answer in answers:
                assert answer.exception(30) is None or isinstance(answer.exception(), WorkerCrashed)
            assert still_works(pool)


def test_a_crash_costs_no_answer_of_another_pool(shared):
    with FramePool(endpoints=shared) as one, FramePool(endpoints=shared) as other:
        bad = [one.submit(job, []) for job in (pool_works.crash, pool_works.abort) * 3]
        good = [other.submit(pool_works.nap, [b"x"], 0.01) for _ in range(6)]
        assert all(nap.result(30) == [(b"x", None)] for nap in good)
        assert all(isinstance(future.exception(30), WorkerCrashed) for future in bad)


def pids_of(pool):
    naps = [pool.submit(pool_works.nap_and_say_who, [], 0.3) for _ in range(2)]
    return {nap.result(30)[0][0] for nap in naps}


ANOTHER = """
import json, os, sys, pool_works
from framecodecs.pool.pool import FramePool
from framecodecs.pool.processes import PoolEndpoints
pool = FramePool(endpoints=PoolEndpoints(*json.loads(sys.argv[1])))
pool.wait_until_ready()
orders = [pool.submit(pool_works.nap, [b"x"], 1.0) for _ in range(8)]
while not any(order.running() for order in orders):
    pass
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_pool_that_dies_does_no_harm(shared):
    """Two of its orders are being worked on and six are waiting."""
    with FramePool(endpoints=shared) as pool:
        assert pool.wait_until_ready()
        before = pids_of(pool)
        command = [sys.executable, "-c", ANOTHER, json.dumps(shared)]
        other = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=shared.descriptors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert other.stdout.readline() == b"begun\n"
        other.kill()
        other.wait()
        began = time.monotonic()
        assert still_works(pool)
        assert time.monotonic() - began < 3.5  # the eight naps of the dead would take 4 s
        assert waited(lambda: pids_of(pool) == before)
        other.stdin.close()
        other.stdout.close()


def test_killing_is_exact(shared):
    """Cancelling at any moment kills no process that works on another task."""
    with FramePool(endpoints=shared) as one, FramePool(endpoints=shared) as other:
        for step in range(10):
            doomed = one.submit(pool_works.nap, [], 0.005)
            good = [other.submit(pool_works.nap, [b"x"], 0.005) for _ in range(3)]
            time.sleep(step * 0.001)
            one.cancel(doomed)
            assert [nap.result(30) for nap in good] == [[(b"x", None)]] * 3


def test_processes_end_with_their_queue():
    processes = PixelProcesses(1, SMALL)
    processes.start()
    ((process, _, _),) = processes._running.values()
    pool = FramePool(endpoints=processes.endpoints)
    assert still_works(pool)
    os.close(processes.endpoints.tasks)  # as if the owner were gone
    assert still_works(pool)
    pool.close()
    process.wait(30)
    processes.endpoints = processes.endpoints._replace(tasks=os.dup(0))
    processes.close()


def test_orders_are_told_when_the_processes_are_gone():
    processes = PixelProcesses(1, SMALL)
    with FramePool(endpoints=processes.endpoints) as pool:
        processes.start()
        running = pool.submit(pool_works.hang, [])
        assert waited(running.running)
        waiting = pool.submit(pool_works.echo, [])
        processes.close()
        assert isinstance(running.exception(10), WorkerCrashed)
        assert isinstance(waiting.exception(10), Unavailable)
        with pytest.raises(Unavailable):
            pool.submit(pool_works.echo, [])
