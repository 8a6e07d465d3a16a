"""What a worker answers by itself, and how it ends."""

import asyncio
import json
import xml.etree.ElementTree as ElementTree
from concurrent.futures import Future

import pytest
from web_world import DEADLINE, Raw, eventually, settings_of

from streamsrv.metrics import RequestCounts, Way
from streamsrv.web.access_log import AccessLog
from streamsrv.wire.answers import Answer, ByteStream, Pending
from streamsrv.wire.resources import ROUTES


def message(line, *headers):
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


async def ask(port, line, *headers):
    raw = await Raw.connect(port)
    await raw.send(message(line, *headers))
    answer = await raw.answer(body=not line.startswith("HEAD"))
    await raw.close()
    return answer


async def test_health(port, http_server):
    assert (await ask(port, "GET /health/live"))[2] == b"alive\n"
    assert (await ask(port, "GET /health/ready"))[2] == b"ready\n"
    assert (await ask(port, "HEAD /health/ready"))[0] == 200
    http_server.app.store_open = False
    status, headers, payload = await ask(port, "GET /health/ready")
    assert (status, payload) == (503, b"the store is not open\n")
    assert int(headers["retry-after"]) > 0
    assert (await ask(port, "GET /health/live"))[0] == 200
    assert (await ask(port, "POST /health/live"))[0] == 405


async def test_an_unknown_version_is_told_which_there_are(port):
    for path in ("/v3/studies", "/studies", "/"):
        status, headers, payload = await ask(port, f"GET {path}")
        assert status == 404
        assert headers["api-supported-versions"] == "1, 2"
        assert "/v1 and /v2" in json.loads(payload)["detail"]


async def test_a_method_that_the_resource_does_not_have(port):
    status, headers, _ = await ask(port, "PUT /v2/studies/1.2")
    assert (status, headers["allow"]) == (405, "get, post, delete, head, options")


async def test_capabilities(port):
    status, headers, payload = await ask(port, "OPTIONS /v2/studies")
    assert (status, headers["allow"]) == (200, "get, post, head, options")
    assert headers["content-type"] == "application/vnd.sun.wadl+xml"
    document = ElementTree.fromstring(payload)
    space = "{http://wadl.dev.java.net/2009/02}"
    paths = [each.get("path") for each in document.iter(f"{space}resource")]
    assert "studies" in paths
    assert "series" not in paths
    assert document.find(f"{space}resources").get("base") == "http://localhost/v2"


async def test_the_whole_server_lists_every_route(port):
    status, headers, payload = await ask(port, "OPTIONS *")
    assert (status, "allow" in headers) == (200, False)
    paths = {
        each.get("path")
        for each in ElementTree.fromstring(payload).iter("{http://wadl.dev.java.net/2009/02}resource")
    }
    assert paths == {route.template.lstrip("/") for route in ROUTES if route.methods}


class TestMaxAge:
    @pytest.fixture
    def settings(self):
        return settings_of(cache_max_age=60)

    async def test_a_setting_lets_caches_trust_their_copy(self, port, world):
        world.answers["1"] = lambda: Answer(
            200, [("ETag", '"a"'), ("Cache-Control", "private, no-cache")], (), 0
        )
        world.answers["2"] = lambda: Answer(200, [("Cache-Control", "no-store")], (), 0)
        assert (await ask(port, "GET /v2/studies/1"))[1]["cache-control"] == "private, max-age=60"
        assert (await ask(port, "GET /v2/studies/2"))[1]["cache-control"] == "no-store"

    async def test_also_an_answer_that_was_waited_for(self, port, world):
        def pending():
            future = Future()
            future.set_result([("Cache-Control", "private, no-cache")])
            return Pending(future, lambda headers: Answer(200, headers, (), 0), future.cancel)

        world.answers["1.4"] = pending
        found = await ask(port, "GET /v2/studies/1.2/series/1.3/instances/1.4")
        assert found[1]["cache-control"] == "private, max-age=60"


# The end


async def test_draining_finishes_what_has_begun_and_closes_what_waits(port, http_server, world):
    idle, uploading, downloading = [await Raw.connect(port) for _ in range(3)]
    await idle.send(message("GET /v2/studies/1.2"))
    await idle.answer()
    await uploading.send(
        message("POST /v2/studies", "Content-Type: application/dicom", "Content-Length: 10") + b"begin"
    )
    await eventually(lambda: world.recorders)
    world.answers["1"] = lambda: Answer(
        200, [], (ByteStream(lambda a, b: iter([b"x" * 10**6] * 20), 2 * 10**7),), 2 * 10**7
    )
    await downloading.send(message("GET /v2/studies/1"))
    await downloading.head()
    draining = asyncio.ensure_future(http_server.app.drain(DEADLINE))
    assert await idle.rest() == b""
    assert not draining.done()
    await uploading.send(b"later")
    status, headers, payload = await uploading.answer()
    assert (status, headers["connection"], payload) == (200, "close", b"stored 10")
    assert len(await asyncio.wait_for(downloading.reader.readexactly(2 * 10**7), DEADLINE)) == 2 * 10**7
    assert await draining is True
    for raw in (idle, uploading, downloading):
        await raw.close()


async def test_draining_gives_up_after_its_time(port, http_server, world):
    raw = await Raw.connect(port)
    await raw.send(
        message("POST /v2/studies", "Content-Type: application/dicom", "Content-Length: 10") + b"begin"
    )
    await eventually(lambda: world.recorders)
    assert await http_server.app.drain(0.05) is False
    await raw.close()
    await eventually(lambda: world.aborted)


async def test_while_draining_ready_says_so(port, http_server):
    http_server.app.draining = True
    status, headers, payload = await ask(port, "GET /health/ready")
    assert (status, headers["connection"], payload) == (503, "close", b"draining\n")


# The log


async def test_lines_are_written_together(http_server, lines):
    log = AccessLog(lines, json=True, counts=RequestCounts())
    for number in range(3):
        log.add("::1", "GET", '/a"b\u00e9', 200, number, 0.12345, "id")
    assert lines.text == ""
    await eventually(lambda: lines.text)
    each = [json.loads(line) for line in lines.text.splitlines()]
    assert [line["bytes"] for line in each] == [0, 1, 2]
    assert each[0] | {"at": ""} == {
        "at": "",
        "client": "::1",
        "method": "GET",
        "path": '/a"b\u00e9',
        "status": 200,
        "bytes": 0,
        "seconds": 0.1235,
        "request_id": "id",
        "way": "plain",
    }
    assert each[0]["at"].endswith("Z")


async def test_a_text_line_cannot_be_forged(http_server, lines):
    log = AccessLog(lines, json=False, counts=RequestCounts())
    log.add('a"b', "GET", '/a"b\u0085\n', 200, 1, 0.5, "id")
    log.flush()
    log.flush()
    assert lines.text.count("\n") == 1
    assert '"GET /a%22b\\x85\\n" 200 1 0.5000 id plain\n' in lines.text


async def test_a_log_that_is_off_keeps_nothing(http_server, lines):
    counts = RequestCounts()
    log = AccessLog(lines, json=False, counts=counts, enabled=False)
    log.add("a", "GET", "/", 200, 1, 0.5, "id")
    assert counts.by_way() == {Way.PLAIN: 1}
    log.flush()
    assert lines.text == ""
