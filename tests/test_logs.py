"""The logs of a real server as JSON lines, and the formatter of the server log."""

import json
import logging
import os
import signal
import sys
import time

import pytest
from kill_world import children, has_the_index_open
from small_client import WHOLE, Client, file_of, key_of, path_of

from streamsrv.options import JsonLine


def lines_of(server):
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def until(server, true):
    deadline = time.monotonic() + 30
    while not (found := [line for line in lines_of(server) if true(line)]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.embedded("it removes segment files")
def test_every_line_of_a_server_is_json(server_factory):
    server = server_factory("--log-format", "json", workers=1)
    client, key = Client(server.origin), key_of(1, 1, 1)
    client.store([file_of(key, 1, 20_000)])
    for path in (server.data / "segments").iterdir():
        path.rename(path.with_suffix(".away"))
    assert client.ask("GET", path_of(key), Accept=WHOLE, **{"X-Request-ID": "abc"}).status == 500
    client.close()
    found = until(server, lambda line: line.get("request_id") == "abc" and "way" in line)
    assert [(line["path"], line["status"]) for line in found] == [(f"/v2{path_of(key)}", 500)]
    (error,) = (line for line in lines_of(server) if line.get("request_id") == "abc" and "message" in line)
    assert (error["level"], error["logger"]) == ("error", "streamsrv.web")
    assert "[abc]" not in error["message"]
    (worker,) = (each for each in children(server.process.pid) if has_the_index_open(each, server.data))
    os.kill(worker, signal.SIGKILL)
    (died,) = until(server, lambda line: f"worker {worker} ended" in line.get("message", ""))
    assert (died["level"], died["logger"]) == ("error", "streamsrv.supervisor")
    assert all(line["at"].endswith("Z") for line in lines_of(server))


def record(text, *args, **options):
    return logging.LogRecord("a.b", logging.WARNING, "file.py", 1, text, args, **{"exc_info": None} | options)


def test_a_record_is_one_line():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        error = sys.exc_info()
    line = JsonLine().format(record("[%s] %d of\n%s", "id", 1, '"x"', exc_info=error))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("exception").startswith("Traceback")
    assert found.pop("at").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "a.b",
        "process": os.getpid(),
        "request_id": "id",
        "message": '1 of\n"x"',
    }


def test_records_without_request():
    cases = [("[%s] all", (), "[%s] all"), ("%d %%", (5,), "5 %"), ({"a": 1}, (), "{'a': 1}")]
    for text, args, message in [*cases, ("%s", ("/a\udcff",), "/a\udcff")]:
        found = json.loads(JsonLine().format(record(text, *args)))
        assert (found["message"], "request_id" in found) == (message, False)
