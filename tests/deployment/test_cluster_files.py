"""The files of conf/ for two nodes of one store: HAProxy in front of real nodes, and the compose file."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import yaml
from kill_world import children, waited
from live_server import ROOT, free_port, start_server
from obstore import put
from seaweed import ADMIN, BUCKET, program, variables
from small_client import LOST, Client, NotSent, file_of, key_of

from streamsrv import config

CONF = ROOT / "conf"


@pytest.fixture
def balancer(tmp_path):
    """conf/haproxy-nodes.cfg on this machine, for nodes on these ports: its log and its origin."""
    processes = []

    def start(*ports):
        text, port = (CONF / "haproxy-nodes.cfg").read_text(), free_port()
        for name, number in zip(("node-one", "node-two"), ports, strict=True):
            text = text.replace(f"{name}:8943", f"127.0.0.1:{number}")
        file, log = tmp_path / "haproxy.cfg", tmp_path / "haproxy.log"
        file.write_text(text.replace("bind :8943", f"bind 127.0.0.1:{port}"))
        with log.open("wb") as said:
            processes.append(subprocess.Popen(["haproxy", "-db", "-f", str(file)], stderr=said))
        return log, f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.terminate()
        process.wait()


def test_a_balancer_leaves_a_node_that_was_killed(tmp_path, database_server, object_store, balancer):
    """Under load: a client that repeats what had no answer loses nothing. Then the bucket is gone, too: no
    node is ready, and searches go on."""
    flags = ("--index", database_server.url("balanced"), "--segments", f"s3://{BUCKET}/balanced")
    flags += ("--on-duplicate", "accept-identical", "--trusted-proxies", "127.0.0.1", "--allowed-hosts", "*")
    gateway, endpoint = object_store.gateway()
    named = variables(endpoint)
    nodes = [start_server(tmp_path / name, *flags, workers=1, variables=named) for name in "ab"]
    log, origin = balancer(*(urlsplit(node.origin).port for node in nodes))
    files = {key_of(1, 1, number): file_of(key_of(1, 1, number), 1, 5_000) for number in range(40)}
    try:
        client = Client(origin)
        waited(lambda: answered(client, "/studies") in (200, 204), "the balancer")
        for number, body in enumerate(files.values()):
            if number == 10:
                used = next(node for node in nodes if "/v2/studies" in node.log.read_text())
                for victim in (used.process.pid, *children(used.process.pid)):
                    os.kill(victim, signal.SIGKILL)
            waited(lambda body=body: stored(client, body), "a store")
        assert {key: client.read(key) for key in files} == files
        gateway.kill()
        waited(lambda: "0 active" in log.read_text(), "a node that is not ready")
        assert answered(client, "/studies") == 200
        client.close()
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.end()


class FakeNode(BaseHTTPRequestHandler):
    """A node that dies when it is asked to, and has an error for all other requests."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/v2/dies":
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.answer(200 if self.path == "/health/ready" else 500)

    def answer(self, status):
        self.wfile.write(b"HTTP/1.1 %d Said\r\nContent-Length: 4\r\n\r\nnode" % status)


@pytest.fixture
def fake_node():
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeNode)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_balancer_tells_when_to_try_again(balancer, fake_node):
    """If the node of a request has failed, and if no node answers. Errors of a node stay as they are."""
    port = fake_node.server_address[1]
    _, origin = balancer(port, port)

    def ask(path, said):
        replies = []

        def answers():
            with contextlib.closing(Client(origin)) as client, contextlib.suppress(*LOST, NotSent):
                replies.append(client.ask("GET", path))
            return replies and replies[-1].body.startswith(said)

        waited(answers, path)
        return replies[-1].status, replies[-1].headers["Retry-After"]

    assert ask("/error", b"node") == (500, None)
    assert ask("/dies", b"the node has failed") == (503, "2")
    fake_node.shutdown()
    fake_node.server_close()
    assert ask("/error", b"no node answers") == (503, "2")


def answered(client, path):
    try:
        return client.ask("GET", path).status
    except (*LOST, NotSent):
        return 0


def stored(client, body):
    try:
        return client.store([body]).status == 200
    except (*LOST, NotSent):
        return False


def test_the_compose_file_of_a_cluster():
    parts = yaml.safe_load((CONF / "compose-cluster.yaml").read_text())
    services = parts["services"]
    one, two = services["node-one"], services["node-two"]
    assert {**one, "volumes": 0} == {**two, "volumes": 0}
    assert "image" not in one  # two builds of one image fail
    named = {name: value for name, value in one["environment"].items() if name.startswith("STREAMSRV_")}
    settings = config.load(environment=named)
    assert settings.segments == "s3://archive/store"
    assert settings.index.startswith("postgresql://streamsrv@database/")
    (identity,) = json.loads((CONF / "seaweedfs-s3.json").read_text())["identities"]
    (pair,) = identity["credentials"]
    assert pair["accessKey"] == one["environment"]["AWS_ACCESS_KEY_ID"]
    assert pair["secretKey"] == one["environment"]["AWS_SECRET_ACCESS_KEY"]
    assert services["database"]["environment"]["POSTGRES_PASSWORD"] == one["environment"]["PGPASSWORD"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (CONF / source).exists() if source.startswith(".") else source in parts["volumes"]


def test_the_bucket_is_made_as_in_the_compose_file(object_store, tmp_path):
    """By `weed shell`, also if it is there; then the rights of a node are enough."""
    services = yaml.safe_load((CONF / "compose-cluster.yaml").read_text())["services"]
    (command,) = services["make-bucket"]["command"]
    (tmp_path / "weed").symlink_to(program())
    command = command.replace("archive", "made-by-shell")
    command = command.replace("bucket:9333", f"127.0.0.1:{object_store.master}")
    for said in ("created bucket", "already exists"):
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert said in done.stdout
    put(object_store.store(ADMIN, "made-by-shell"), "one", b"content")
