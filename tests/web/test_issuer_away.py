"""Requests with tokens while no key of the issuer is known: the server cannot judge the tokens."""

import asyncio
import os
import socket
import struct
import threading
from types import SimpleNamespace

import pytest
from fake_issuer import AUDIENCE, fake_issuer
from tornado.httpclient import HTTPClientError
from web_world import Raw, eventually, settings_of

from streamsrv.audit.entries import Event
from streamsrv.oidc.key_board import KeyBoard
from streamsrv.web.access import issued_tokens
from streamsrv.web.access.issued_tokens import IssuedTokens
from streamsrv.web.auditing import MOST_REFUSED, RequestAudit
from streamsrv.web.head import Head
from streamsrv.web.hosts import Caller

RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def issuer():
    with fake_issuer() as issuer:
        yield issuer


@pytest.fixture
def settings(issuer, tmp_path):
    names = {"oidc_issuer": issuer.url, "oidc_audience": (AUDIENCE,), "failed_logins": 1}
    return settings_of(data=str(tmp_path), auth="required", **names)


@pytest.fixture
def board():
    board = KeyBoard.make()
    yield board
    for each in board.descriptors:
        os.close(each)


@pytest.fixture
def ways(settings, board):
    return (IssuedTokens(settings, board),)


async def asked(client, token, path="/v2/studies"):
    try:
        return await client.fetch(path, headers={"Authorization": f"Bearer {token}"})
    except HTTPClientError as error:
        return error.response


def a_fetch_fails(board):
    board.begin_fetch()
    board.end_fetch()


async def test_a_client_keeps_its_token(http_server_client, issuer, board):
    a_fetch_fails(board)
    token = issuer.token()
    for _ in range(3):  # each is no failed login
        answer = await asked(http_server_client, token)
        assert (answer.code, answer.headers["Retry-After"]) == (503, "5")
        assert "WWW-Authenticate" not in answer.headers
        assert b"no keys of the issuer" in answer.body
    assert (await asked(http_server_client, token, "/health/live")).code == 200
    assert (await asked(http_server_client, "eyJ.none.x")).code == 401  # no key would make it valid
    board.write({"issuer": document(issuer), "keys": issuer.key_set()["keys"]})
    assert (await asked(http_server_client, token)).code == 204
    unknown = issuer.token(header={"kid": "other"})
    assert (await asked(http_server_client, unknown)).code == 401


@pytest.mark.parametrize("gone", [False, True])
async def test_a_client_that_shuts_its_side_while_a_request_waits(
    http_server, port, board, issuer, lines, monkeypatch, gone
):
    """RFC 9112 9.6: it gets its answer. One that has gone leaves nothing behind."""
    waiting, done = asyncio.Event(), asyncio.Event()

    async def settled(pending):
        waiting.set()
        await done.wait()

    monkeypatch.setattr(http_server.app.access, "settled", settled)
    raw = await Raw.connect(port)
    lines_of_head = ("GET /v2/studies HTTP/1.1", "Host: localhost", f"Authorization: Bearer {issuer.token()}")
    await raw.send("\r\n".join((*lines_of_head, "", "")).encode())
    await asyncio.wait_for(waiting.wait(), 30)
    board.write({"issuer": document(issuer), "keys": issuer.key_set()["keys"]})
    if gone:
        raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await raw.close()
    else:
        raw.writer.write_eof()
    await asyncio.sleep(0.05)
    done.set()
    if not gone:
        assert (await raw.rest()).startswith(b"HTTP/1.1 204 ")
    await eventually(lambda: lines.text)
    assert f'"GET /v2/studies" {499 if gone else 204} 0 ' in lines.text


async def test_a_request_waits_for_the_first_fetch(http_server_client, issuer, board, monkeypatch):
    monkeypatch.setattr(issued_tokens, "WAIT", 10.0)

    def fetch():
        board.begin_fetch()
        board.write({"issuer": document(issuer), "keys": issuer.key_set()["keys"]})
        board.end_fetch()

    threading.Timer(0.05, fetch).start()
    assert (await asked(http_server_client, issuer.token())).code == 204


def document(issuer):
    names = ("jwks_uri", "authorization_endpoint", "token_endpoint", "end_session_endpoint")
    return {"name": issuer.url, "basic": True, **{name: issuer.metadata()[name] for name in names}}


def test_strangers_make_few_entries_in_the_audit_trail():
    noted = []
    recorder = SimpleNamespace(clock=lambda: 1e9, note=noted.append, require=None)
    audit, caller = RequestAudit(recorder), Caller("", "192.0.2.1", "192.0.2.1")
    for number in range(100):
        audit.ended(caller, Head("GET", f"/v2/studies/1.{number}/metadata", "HTTP/1.1", {}, ""), 503)
    assert {entry.event for entry in noted} == {Event.LOGIN}
    assert len({entry.key for entry in noted}) == MOST_REFUSED + 1
