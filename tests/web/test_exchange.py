"""One request and its answer on a connection: receiving, answering, and what else lies in the buffer."""

from web_world import Raw

HEAD = "{} HTTP/1.1\r\nHost: localhost\r\n{}\r\n"


def request(line, *headers, body=b""):
    return HEAD.format(line, "".join(f"{header}\r\n" for header in headers)).encode() + body


def post(body, *headers, line="POST /v2/studies"):
    return request(
        line, "Content-Type: application/dicom", f"Content-Length: {len(body)}", *headers, body=body
    )


async def test_a_small_answer(http_server_client):
    answer = await http_server_client.fetch("/v2/studies/1.2")
    assert answer.code == 200
    assert answer.body == b"hello"
    assert answer.headers["Server"] == "streamsrv"
    assert answer.headers["api-supported-versions"] == "1, 2"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_upload_and_the_next_request_on_its_connection(port, world):
    raw = await Raw.connect(port)
    body = bytes(range(256)) * 20_000
    await raw.send(post(body))
    status, _, payload = await raw.answer()
    assert (status, payload) == (200, b"stored %d" % len(body))
    assert world.stored == [body]
    await raw.send(request("GET /v2/studies/1.2"))
    assert (await raw.answer())[2] == b"hello"
    await raw.close()
