"""Hooks of two nodes: one of them sends, and the other goes on with its cursor when it is stopped, dies or
ends."""

import contextlib
import json
import os
import signal
from unittest import mock

import pytest
from fake_service import running as serving
from kill_world import children, verb, waited
from live_server import start_server
from seaweed import BUCKET, variables
from small_client import Client, file_of, key_of
from webhook_receiver import Receiver

SCHEMA = "node_hooks"
NAMES = ("told", "sent")


class Senders:
    """Two nodes, a receiver and an archive."""

    def __init__(self, folder, database, environment, service):
        self.database, self.service = database, service
        self.receiver, self.numbers = Receiver(), iter(range(1, 1000))
        flags = ("--hooks", "--study-quiet", "0.5")
        self.nodes = [start_server(folder / each, *flags, workers=1, variables=environment) for each in "ab"]
        self.clients = [Client(node.origin) for node in self.nodes]
        self._place = ("--data", str(folder / "verbs"))

    def hook(self, *words):
        code, said = verb("hook", *words, *self._place)
        assert code == 0, said
        return said

    def states(self):
        return {row["name"]: row for row in json.loads(self.hook("list", "--json"))}

    def process(self):
        """The process that sends, and its node."""
        holder = self.database.sql(f"SELECT holder FROM {SCHEMA}.leases WHERE name = 'hooks'")
        if not holder:
            return 0, None
        process = int(holder.split(":")[1])
        return process, next(node for node in self.nodes if process in children(node.process.pid))

    def store(self, client, count=4):
        """Instances of a study each. Returns their files."""
        files = []
        for number in [next(self.numbers) for _ in range(count)]:
            files.append(file_of(key_of(number, 1, 1), 1, 500))
            assert client.store(files[-1:]).status == 200
        return files

    def arrived(self, files):
        """Waits until the studies are complete, and the archive has them."""
        waited(lambda: len(self.receiver.told("complete")) >= len(files), "events")
        waited(lambda: self.forwarded() >= set(files), "studies")

    def forwarded(self):
        return {part for _, _, parts in self.service.requests for part in parts}

    def close(self):
        self.receiver.close()
        for client in self.clients:
            client.close()
        for node in self.nodes:
            if node.process.poll() is None:
                node.end()


@pytest.fixture
def senders(tmp_path, database_server, object_store):
    named = {"STREAMSRV_INDEX": database_server.url(SCHEMA), "STREAMSRV_SEGMENTS": f"s3://{BUCKET}/{SCHEMA}"}
    named |= variables(object_store.endpoint)
    with serving() as service, mock.patch.dict(os.environ, named):
        made = Senders(tmp_path, database_server, named, service)
        with contextlib.closing(made):
            yield made


def test_a_node_goes_on_with_the_hooks_of_another_one(senders):
    """Its sender is stopped, and wakes up; then the other node is killed."""
    senders.hook("add", senders.receiver.url, "--name", "told", "--allow-local")
    senders.hook("forward", senders.service.url, "--name", "sent", "--allow-local")
    waited(lambda: all(row["sequence"] is not None for row in senders.states().values()), "the begin")
    files = [each for client in senders.clients for each in senders.store(client)]
    senders.arrived(files)
    first, node = senders.process()
    os.kill(first, signal.SIGSTOP)
    files += senders.store(senders.clients[0])
    waited(lambda: senders.process()[0] not in (0, first), "the other node")
    files += senders.store(senders.clients[1])
    senders.arrived(files)
    os.kill(first, signal.SIGCONT)
    waited(lambda: "sends the hooks now" in node.log.read_text(), "the end of the first one")
    second, other = senders.process()
    assert other is not node
    before = len(senders.receiver.taken)
    files += senders.store(senders.clients[0])
    senders.arrived(files)
    told = [event for event, _ in senders.receiver.taken[before:]]
    assert len(told) == len(set(told)) >= 8  # by one node
    files += senders.store(senders.clients[0])
    for victim in (other.process.pid, second, *children(other.process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    other.process.wait()
    files += senders.store(senders.clients[senders.nodes.index(node)])
    senders.arrived(files)
    assert senders.process()[1] is node
    assert senders.states()["told"]["sender"].endswith(f":{senders.process()[0]}")
    once = dict(senders.receiver.taken)  # by webhook-id, the first of each
    changes = [data["sequence"] for data in once.values() if data["action"] == "create"]
    assert changes == list(range(1, len(files) + 1))
    assert len(senders.receiver.told("complete")) == len(files)
    waited(lambda: senders.states()["told"]["sequence"] == len(files), "the cursor")
    assert {row["state"] for row in senders.states().values()} == {"good"}
    for name in NAMES:
        senders.hook("remove", name)
    assert senders.states() == {}
    assert node.end() == 0
    assert senders.process() == (0, None)  # it has given the lease back
