"""The verb `streamsrv store` against a fake service whose answers are a script, and against the real
server."""

import argparse
import contextlib
import io
import json
import os
import socket
import threading
import time
import urllib.request
from email.utils import formatdate
from pathlib import Path

import pytest
from fake_service import item, response, running, uids_of, write_instance

from streamsrv import client
from streamsrv.client import verb
from streamsrv.client.connection import Reply, ReplyError, StoreConnection
from streamsrv.client.files import FoundFile, Limit, batches, examine
from streamsrv.client.verb import Tally, Verdict, judge, succeeded
from streamsrv.errors import NotDicom


@pytest.fixture
def fake():
    with contextlib.ExitStack() as services:
        yield lambda *script: services.enter_context(running(*script))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small tree: seven instances, and three files that are none."""
    top = tmp_path_factory.mktemp("files")
    for number in range(7):
        below = top / f"series{number % 2}"
        below.mkdir(exist_ok=True)
        write_instance(below / f"{number}.dcm", f"1.2.3.{number}")
    (top / "notes.txt").write_text("no DICOM")
    (top / "empty").write_bytes(b"")
    (top / "series0" / "DICOMDIR.bak").write_bytes(bytes(200))
    return top


def arguments(*words):
    parser = argparse.ArgumentParser()
    client.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def store(*words):
    return client.run(arguments(*words))


# --- what is sent ---


def test_everything_is_sent_and_what_is_none_is_said(fake, folder, capsys):
    service = fake()
    assert store(folder, "--url", service.url + "/") == 0
    sent = [part for _, _, parts in service.requests for part in parts]
    assert sorted(sent) == sorted(path.read_bytes() for path in folder.rglob("*.dcm"))
    output = capsys.readouterr()
    assert output.out == "7 stored, 0 already stored, 0 failed, 3 skipped\n"
    assert [line.split(":")[0] for line in output.err.splitlines()] == [
        f"skipped {folder / name}" for name in ("empty", "notes.txt", "series0/DICOMDIR.bak")
    ]
    path, headers, _ = service.requests[0]
    assert path == "/v2/studies"
    assert headers["Accept"] == "application/dicom+json"
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert headers["Expect"] == "100-continue"


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [("3", [3, 3, 1]), ("1", [1] * 7), ("4kB", [2, 2, 2, 1]), ("1kB", [1] * 7), ("9", [7])],
)
def test_batches_by_number_or_by_size(fake, folder, batch, sizes):
    service = fake()
    assert store(folder, "--url", service.url, "--batch", batch, "--parallel", 1, "--quiet") == 0
    assert [len(parts) for _, _, parts in service.requests] == sizes


def test_many_connections_send_each_file_once(fake, folder):
    service = fake()
    assert store(folder, "--url", service.url, "--batch", 1, "--parallel", 5, "--quiet") == 0
    sent = [uid for _, _, parts in service.requests for uid in uids_of(parts)]
    assert sorted(sent) == [f"1.2.3.{number}" for number in range(7)]


def test_the_walk_is_lazy():
    taken = []

    def files():
        for number in range(10**9):
            taken.append(number)
            yield FoundFile(Path(str(number)), 10, str(number))

    assert len(next(batches(files(), Limit(5, 1000)))) == 5
    assert len(taken) == 6


def test_nothing_to_send_is_no_success(fake, tmp_path, capsys):
    service = fake()
    assert store(tmp_path, "--url", service.url) == 1
    assert service.requests == []
    assert capsys.readouterr().out == "0 stored, 0 already stored, 0 failed, 0 skipped\n"


def test_a_file_that_was_named_must_be_dicom(fake, folder, capsys):
    service = fake()
    missing = folder / "not there"
    assert store(folder / "notes.txt", missing, folder / "series0" / "0.dcm", "--url", service.url) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"failed  {folder / 'notes.txt'}: no DICM prefix at byte 128: not a DICOM Part 10 file",
        f"failed  {missing}: No such file or directory",
        "1 stored, 0 already stored, 2 failed, 0 skipped",
    ]


def test_the_uid_of_a_file_that_is_cut(tmp_path):
    path = write_instance(tmp_path / "a", "1.2.3.44")
    assert examine(path) == FoundFile(path, path.stat().st_size, "1.2.3.44")
    raw = path.read_bytes()
    for length in range(300):
        path.write_bytes(raw[:length])
        if length < 132:
            with pytest.raises(NotDicom):
                examine(path)
        else:
            assert "1.2.3.44".startswith(examine(path).uid)


# --- what comes back ---


def test_refusals_are_told_with_their_reason(fake, folder, capsys):
    def answer(parts):
        uids = sorted(uids_of(parts))
        refused = [
            item(uids[0], 43264, "bad UID"),
            item(uids[1], 45070),
            item(uids[2], 272),
            item(uids[3], 51234),
        ]
        return response(uids[4:], refused)

    service = fake({"status": 202, "answer": answer})
    assert store(folder, "--url", service.url) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"failed  {folder / 'series0' / '0.dcm'}: 43264 (0xA900) "
        "not a DICOM file, or one of its UIDs is missing or malformed: bad UID",
        f"failed  {folder / 'series0' / '2.dcm'}: 272 (0x0110) processing failure",
        f"failed  {folder / 'series1' / '3.dcm'}: 51234 (0xC822) refused",
        "3 stored, 1 already stored, 3 failed, 3 skipped",
    ]


def test_failures_without_a_uid_belong_to_the_files_that_nobody_named(tmp_path):
    uids = {"a": "", "b": "1.2", "c": "1.3", "d": "1.4"}
    batch = [FoundFile(tmp_path / name, 1, uid) for name, uid in uids.items()]
    tally = Tally()
    failed = [item("", 43264, "first"), item("", 272, "second")]
    judge(batch, Reply(202, {}, response(["1.2"], failed)), tally)
    assert {failure.path.name: failure.text.split(": ")[-1] for failure in tally.failures} == {
        "a": "first",
        "c": "second",
        "d": "the response (status 202) does not name it",
    }
    assert tally.counts == {Verdict.STORED: 1, Verdict.FAILED: 3}


def test_the_same_uid_twice_in_a_batch_was_stored_once(tmp_path):
    batch = [FoundFile(tmp_path / name, 1, "1.2") for name in "ab"]
    tally = Tally()
    judge(batch, Reply(202, {}, response(["1.2"], [item("1.2", 45070)])), tally)
    assert tally.counts == {Verdict.STORED: 1, Verdict.ALREADY: 1}


def test_already_stored_is_a_success(fake, folder):
    def answer(parts):
        return response(failed=[item(uid, 45070) for uid in uids_of(parts)])

    service = fake({"status": 409, "answer": answer})
    assert store(folder, "--url", service.url, "--quiet") == 0
    assert not succeeded(Tally())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff"])
def test_an_answer_that_is_no_dataset(fake, folder, body, capsys):
    service = fake({"answer": body})
    assert store(folder, "--url", service.url) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("status 200, but the body is not a DICOM JSON dataset")
    assert lines[-1] == "0 stored, 0 already stored, 7 failed, 3 skipped"


# --- refused, busy, gone ---


def test_a_batch_refused_as_a_whole_is_sent_file_by_file(fake, folder, capsys):
    problem = json.dumps({"title": "Content Too Large", "detail": "the limit is 1 MB"}).encode()
    script = [{"status": 413, "answer": problem}] * 2 + [{}]
    service = fake(*script)
    assert store(folder / "series0", "--url", service.url, "--parallel", 1) == 1
    assert [len(parts) for _, _, parts in service.requests] == [4, 1, 1, 1, 1]
    assert capsys.readouterr().out.splitlines() == [
        f"failed  {folder / 'series0' / '0.dcm'}: HTTP status 413 {phrase(413)}: the limit is 1 MB",
        "3 stored, 0 already stored, 1 failed, 1 skipped",
    ]


def phrase(status):
    return Reply(status, {}, b"").explanation().split(" ", 3)[3]


@pytest.mark.parametrize("early", [True, False])
def test_a_busy_service_is_asked_again(fake, folder, early):
    service = fake({"status": 503, "headers": {"Retry-After": "0"}, "answer": b"busy", "early": early}, {})
    assert store(folder, "--url", service.url, "--quiet", "--parallel", 1) == 0
    assert [len(parts) for _, _, parts in service.requests] == [0 if early else 7, 7]


def test_patience_ends(fake, folder, capsys):
    service = fake({"status": 503, "headers": {"Retry-After": "0"}, "answer": b"busy", "early": True})
    path = folder / "series0" / "0.dcm"
    assert store(path, "--url", service.url, "--retries", 2) == 1
    assert len(service.requests) == 3
    assert (
        capsys.readouterr().out.splitlines()[0]
        == f"failed  {path}: HTTP status 503 Service Unavailable: busy"
    )


def test_a_lost_connection_is_opened_again(fake, folder, monkeypatch):
    monkeypatch.setattr(verb.time, "sleep", lambda seconds: None)
    service = fake({"cut": True}, {"cut": True}, {})
    assert store(folder, "--url", service.url, "--quiet", "--parallel", 1) == 0
    assert len(service.requests) == 3


def test_an_idle_connection_that_was_closed_costs_nothing(fake, folder):
    service = fake({}, {"cut": True}, {})
    words = [
        folder / "series0",
        "--url",
        service.url,
        "--quiet",
        "--parallel",
        1,
        "--batch",
        2,
        "--retries",
        0,
    ]
    assert store(*words) == 0
    assert [len(parts) for _, _, parts in service.requests] == [2, 2, 2]


def test_nobody_listens(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert store(folder / "series0", "--url", f"http://127.0.0.1:{port}/v2", "--retries", 0) == 1
    assert "Connection refused" in capsys.readouterr().out


def test_who_listens_is_no_http_service(folder, capsys):
    def greet(listener):
        with listener.accept()[0] as connection:
            connection.recv(10)
            connection.sendall(b"220 mail.example ESMTP ready\r\n\r\n")
            connection.recv(100_000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert store(folder / "series0" / "0.dcm", "--url", url, "--retries", 0) == 1
        thread.join()
    assert "failed" in capsys.readouterr().out


def test_a_silent_service_times_out(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        words = [folder / "series0" / "0.dcm", "--url", url, "--retries", 0, "--timeout", 0.2]
        assert store(*words) == 1
    assert "timed out" in capsys.readouterr().out


def test_a_file_that_changed_meanwhile_is_not_sent(fake, tmp_path):
    service = fake()
    path = write_instance(tmp_path / "a", "1.2")
    found = examine(path)
    path.write_bytes(path.read_bytes()[:-1])
    connection = StoreConnection(service.url, 5, lambda sent: None)
    with pytest.raises(ReplyError, match="changed while it was being sent"):
        connection.store([found])
    assert service.requests == []


def test_a_file_that_becomes_shorter_while_it_is_sent(fake, tmp_path):
    service = fake()
    path = write_instance(tmp_path / "a", "1.2", size=12 << 20)
    found = examine(path)

    def cut(sent):
        os.truncate(path, 5 << 20)

    connection = StoreConnection(service.url, 5, cut)
    with pytest.raises(ReplyError, match="became shorter"):
        connection.store([found])


def test_a_status_line_in_two_packets(folder):
    path = folder / "series0" / "0.dcm"

    def answer(listener):
        with listener.accept()[0] as connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1")
            time.sleep(0.05)
            connection.sendall(b" 507 Insufficient Storage\r\nContent-Length: 0\r\n\r\n")
            connection.recv(10_000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        connection = StoreConnection(f"http://127.0.0.1:{listener.getsockname()[1]}/v2", 5, lambda sent: None)
        assert connection.store([examine(path)]).status == 507
        thread.join()


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("soon", 1), (formatdate(0, usegmt=True), 0)])
def test_retry_after_is_a_number_or_a_date(value, seconds):
    assert Reply(503, {"retry-after": value}, b"").retry_after() == seconds
    later = formatdate(time.time() + 100, usegmt=True)
    assert 90 < Reply(503, {"retry-after": later}, b"").retry_after() <= 100
    assert Reply(503, {}, b"").retry_after() == 1


# --- the terminal ---


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_progress_bar_on_a_terminal_only(fake, folder, monkeypatch):
    service = fake()
    terminal = Terminal()
    monkeypatch.setattr(verb.sys, "stderr", terminal)
    assert store(folder, "--url", service.url) == 0
    last = terminal.getvalue().rsplit("\r", 1)[1]
    assert last.startswith(f"[{'#' * 30}] 100%")
    assert "7 stored, 0 failed" in last
    terminal.truncate(0)
    assert store(folder, "--url", service.url, "--quiet") == 0
    assert "[" not in terminal.getvalue()


def test_quiet_still_tells_failures(fake, folder, capsys):
    service = fake({"status": 500, "answer": b""})
    assert store(folder / "series0" / "0.dcm", "--url", service.url, "--quiet") == 1
    assert "HTTP status 500 Internal Server Error" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["x"],
        ["--url", "http://h/v2"],
        ["x", "--url", "ftp://h"],
        ["x", "--url", "h:1/v2"],
        ["x", "--url", "http://h", "--batch", "0"],
        ["x", "--url", "http://h", "--batch", "10 MB"],
        ["x", "--url", "http://h", "--parallel", "0"],
    ],
)
def test_arguments_that_make_no_sense(words, capsys):
    with pytest.raises(SystemExit) as refusal:
        arguments(*words)
    assert refusal.value.code == 2
    assert "error" in capsys.readouterr().err


# --- the real server ---


def test_the_real_server_takes_them(server, folder, tmp_path, capsys):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(bytes(128) + b"DICM" + b"nothing of use")
    assert store(folder, "--url", server.url, "--batch", 3) == 0
    assert capsys.readouterr().out == "7 stored, 0 already stored, 0 failed, 3 skipped\n"
    assert store(folder, broken, "--url", server.url) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"failed  {broken}: 43264 (0xA900)")
    assert lines[-1] == "0 stored, 7 already stored, 1 failed, 3 skipped"
    with urllib.request.urlopen(f"{server.url}/instances") as answer:
        assert len(json.load(answer)) == 7
