"""A worker that has no file descriptor left, over HTTP: stores and retrieves are refused with 503, and all
goes on when there are some."""

import contextlib
import http.client
import os
import resource
import socket

import pytest
from kill_world import children, has_the_index_open, verb
from small_client import Client, file_of, key_of, path_of


@pytest.fixture
def world(server_factory):
    server = server_factory(workers=1)
    client = Client(server.origin)
    key = key_of(1, 1, 1)
    body = file_of(key, 1, 100_000)
    assert client.store([body]).status == 200
    (worker,) = (each for each in children(server.process.pid) if has_the_index_open(each, server.data))
    yield server, client, worker, key, body
    client.close()
    assert "Traceback" not in server.log.read_text()
    assert "unexpected" not in server.log.read_text()


@contextlib.contextmanager
def no_descriptor_left(worker):
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    lowest = min(set(range(1024)) - set(map(int, os.listdir(f"/proc/{worker}/fd"))))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (lowest, before[1]))
    yield
    resource.prlimit(worker, resource.RLIMIT_NOFILE, before)


def test_an_answer_that_cannot_be_sent_to_its_end(world):
    """Its segment is open still, but the copy of the socket by which the rest would go out cannot be had: the
    connection ends, so that the client knows."""
    server, client, worker, *_ = world
    key = key_of(3, 1, 1)
    body = file_of(key, 1, 8_000_000)
    assert client.store([body]).status == 200
    assert client.read(key) == body
    with no_descriptor_left(worker), pytest.raises(http.client.IncompleteRead):
        client.read(key)
    assert client.read(key) == body
    assert "the answer was cut short after" in server.log.read_text()


@pytest.mark.embedded("a node deletes without a file")
def test_without_descriptors_requests_are_refused_for_a_moment(world):
    server, client, worker, key, body = world
    other = key_of(1, 1, 2)
    large = file_of(key_of(1, 1, 3), 1, 3_000_000)
    many = [file_of(key_of(2, 1, number), 1, 1_000) for number in range(3)]
    uploading = Client(server.origin)
    assert uploading.search("/studies")
    with no_descriptor_left(worker):
        replies = [
            client.store([file_of(other, 1, 1_000)]),
            client.store(many),
            client.ask("GET", path_of(key), Accept="application/dicom; transfer-syntax=*"),
            client.ask("GET", f"{path_of(key)}/frames/1", Accept="application/octet-stream"),
            client.ask("GET", f"{path_of(key)}/rendered"),
            client.ask("DELETE", path_of(key)),
            uploading.store([large]),  # the last one, because it ends its connection
        ]
        assert {reply.status for reply in replies} == {503}
        assert all(reply.headers["Retry-After"] for reply in replies)
        assert all("file descriptor" in reply.json()["detail"] for reply in replies)
        client.close()
        # A newcomer gets the descriptor of a connection that has ended, or is idle.
        newcomer = socket.create_connection(("127.0.0.1", int(server.origin.rpartition(":")[2])), 10)
        newcomer.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert newcomer.recv(1000).startswith(b"HTTP/1.1 200 ")  # it is accepted now
    newcomer.close()
    assert client.read(key) == body
    client.close()  # an idle connection may have made room for the newcomer
    assert client.store([large]).status == 200
    assert client.store(many).status == 200
    assert client.store([file_of(other, 1, 1_000)]).status == 200
    assert client.delete(key)
    assert verb("check", "--data", str(server.data)) == (0, "all is well\n")
    code, said = verb("info", "--data", str(server.data))
    assert (code, "sealed: 0" in said) == (0, True)  # a store that failed seals no segment
