"""Forwarding: the additions of complete studies to a peer that is a script, and to real servers."""

import json
import os
import random
import signal
import socket
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress

import pytest
import store_kinds
from events_world import World
from fake_service import item, response, running, uids_of
from kill_world import children, verb, waited
from live_server import start_server
from small_client import Client, file_of, key_of

from streamsrv.companions import forwarding
from streamsrv.companions.delivery import NotDelivered
from streamsrv.companions.forwarding import REFUSALS, DicomwebPeer, Forwarder
from streamsrv.errors import InstanceDamaged, SegmentGone
from streamsrv.events.hooks import Hook, hooks_of
from streamsrv.events.tail import SETTLED
from streamsrv.query.rules import rule_of
from streamsrv.store import InstanceKey

QUIET = 10.0
KEYS = [key_of(1, series, number) for series in (1, 2) for number in (1, 2, 3)]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "store")
    made.now = time.time()
    made.events = made.tail(QUIET, lambda: made.now)
    assert made.events.begin(None)
    yield made
    made.store.close()


def completed(world):
    """The completions since the last call."""
    world.now = max(world.now, time.time()) + QUIET + SETTLED + 1
    found = []
    while page := world.events.read():
        found += [each for each in page if each.name == "complete"]
    return found


@contextmanager
def forwarder(world, *script, view=None, **options):
    with running(*script) as service:
        hook = Hook("a", service.url, ("complete",), "", 0.0, True, forwards=True, **options)
        made = Forwarder(hook, view or world.store, DicomwebPeer(hook))
        made.service = service
        yield made
        made.close()


def sent(made):
    """The instances of each request, and its length."""
    return [uids_of(parts) for _, _, parts in made.service.requests]


def uids(keys):
    return [key[2] for key in keys]


def test_each_completion_brings_its_additions(world):
    with forwarder(world) as made:
        world.put(*KEYS[:4])
        (event,) = completed(world)
        assert made.deliver("", event)
        world.put(*KEYS[4:])
        world.put(KEYS[0], version=2)
        (event,) = completed(world)
        assert made.deliver("", event)
        assert sent(made) == [uids(KEYS[:4]), uids([KEYS[0], *KEYS[4:]])]
        assert made.service.requests[1][2][0] == file_of(KEYS[0], 2, 256)
        world.events.begin(world.events.position._replace(complete=0))  # a restart knows no beginning
        world.put(key_of(1, 3, 1))
        (event,) = completed(world)
        assert made.deliver("", event)
        assert len(sent(made)[2]) == 7


def test_a_query_and_a_rule_choose(world):
    world.put(*KEYS, key_of(2, 1, 1))
    one, two = completed(world)
    with forwarder(world, query=(("SeriesInstanceUID", "1.2.1.2"), ("Modality", "CT"))) as made:
        assert made.deliver("", one)
        assert not made.deliver("", two)
        assert sent(made) == [uids(KEYS[3:])]
    with forwarder(world, query=(("Modality", "MR"),)) as made:
        assert not made.deliver("", one)
    view = world.store.restricted(rule_of(["PatientID=ID 1.2.2"]))
    with forwarder(world, view=view) as made:
        assert not made.deliver("", one)
        assert made.deliver("", two)
    assert len(sent(made)) == 1


def test_a_duplicate_is_a_success_and_a_refusal_ends_as_a_dead_letter(world):
    def answer(parts):
        found = uids_of(parts)
        bad = [item(uid, 43264, "no") for uid in found if uid == KEYS[1][2]]
        bad += [item(uid, 45070) for uid in found if uid == KEYS[0][2]]
        return response([uid for uid in found if uid not in (KEYS[0][2], KEYS[1][2])], bad)

    world.put(*KEYS[:3])
    (event,) = completed(world)
    with forwarder(world, {"status": 202, "answer": answer}) as made:
        for _ in range(2):
            with pytest.raises(NotDelivered, match="1 instances are refused: reason 43264: no") as caught:
                made.deliver("", event)
        assert sent(made) == [uids(KEYS[:3]), uids(KEYS[1:2])]
        assert caught.value.most == REFUSALS
        letter = json.loads(caught.value.letter)
        assert (letter["studyInstanceUid"], letter["refused"]) == ("1.2.1", 1)
        assert letter["reasons"] == {KEYS[1][2]: "reason 43264: no"}
        made.service.script = [{}]
        assert made.deliver("", event)


@pytest.mark.parametrize(
    ("row", "reason", "most"),
    [
        ({"status": 503, "headers": {"Retry-After": "7"}}, "503", 0),
        ({"status": 401, "early": True}, "401", 0),
        ({"status": 404}, "404", 0),
        ({"status": 500}, "500", forwarding.ATTEMPTS),
        ({"status": 302, "headers": {"Location": "http://10.1.1.1/"}}, "redirects to http://10.1.1.1/", 0),
        ({"cut": True}, "Remote end closed", 0),
        ({"answer": b"<html>"}, "not a DICOM JSON dataset", 0),
        ({"status": 409, "answer": response(failed=[item(KEYS[0][2], 0xA700)])}, "out of resources", 0),
    ],
)
def test_a_peer_that_cannot_take_it_now(world, row, reason, most):
    world.put(KEYS[0])
    (event,) = completed(world)
    with forwarder(world, row) as made:
        with pytest.raises(NotDelivered, match=reason) as caught:
            made.deliver("", event)
        assert (caught.value.most, caught.value.progress) == (most, False)
        assert caught.value.after == (7.0 if row.get("headers", {}).get("Retry-After") else 0.0)


def test_the_next_attempt_goes_on_behind_the_last_answer(world, monkeypatch):
    monkeypatch.setattr(forwarding, "REQUEST", forwarding.REQUEST._replace(instances=2))
    world.put(*KEYS)
    (event,) = completed(world)
    bad = {"status": 400, "answer": b"{}"}
    with forwarder(world, {}, {"status": 503}, {}, bad, {}) as made:
        with pytest.raises(NotDelivered, match="503") as caught:
            made.deliver("", event)
        assert caught.value.progress
        assert made.deliver("", event)  # two that are refused together are stored one by one
    pairs = [uids(KEYS[at : at + 2]) for at in (0, 2, 4)]
    assert sent(made) == [pairs[0], pairs[1], pairs[1], pairs[2], *([uid] for uid in pairs[2])]


def gone(segments):
    raise SegmentGone("an object is gone")


def test_instances_that_change_or_are_damaged_meanwhile(world, monkeypatch):
    world.put(*KEYS[:3])
    (event,) = completed(world)
    row = world.store.instance(InstanceKey(*KEYS[1]))[0]
    with forwarder(world) as made:
        found = list(made._instances(made._query, event))
        world.store.delete(*KEYS[0])
        with pytest.raises(NotDelivered, match=r"1.2.1.1.1 was deleted or replaced"):
            made._peer.send(found)
        path = world.store.layout.segment(row.location.segment)
        with path.open("r+b") as segment:
            segment.seek(row.location.offset + row.location.length - 3)
            segment.write(b"abc")
        with pytest.raises(NotDelivered, match="damaged"):
            made.deliver("", event)
        assert sent(made) == [uids(KEYS[2:3])]
        monkeypatch.setattr(world.store, "open_segments", gone)
        with pytest.raises(InstanceDamaged, match="the file of its segment is missing"):
            found[2].send(None, None)


def test_a_long_study_takes_little_memory(world):
    size = 8_000_000
    world.put(*KEYS[:3], size=size)
    (event,) = completed(world)
    lengths = []

    class Sink:
        def sendall(self, data):
            lengths.append(len(data))

    class Taking:
        def send(self, batch):
            for each in batch:
                each.send(Sink(), lambda sent: None)
            return []

        def close(self):
            pass

    hook = Hook("a", "", ("complete",), "", 0.0, forwards=True)
    tracemalloc.start()
    try:
        assert Forwarder(hook, world.store, Taking()).deliver("", event)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert sum(lengths) >= 3 * size - 3 * 128
    assert max(lengths) <= 1 << 20


def test_loopback_is_refused(world):
    world.put(KEYS[0])
    (event,) = completed(world)
    with running() as service:
        hook = Hook("a", service.url.replace("127.0.0.1", "localhost"), ("complete",), "", 0.0, forwards=True)
        with pytest.raises(NotDelivered, match="not allowed"):
            Forwarder(hook, world.store, DicomwebPeer(hook)).deliver("", event)
        assert service.requests == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--query", "Nothing=1"), "Nothing"),
        (("--query", "limit=1"), "limit"),
        (("--header", "Authorization: Bearer secret-word"), "--header @FILE"),
        (("--user", "a:secret-word"), "--password-file"),
        (("--user", "a"), "--password-file"),
        (("--token-file", "/nowhere"), "/nowhere"),
        (("--token-file", "-"), "a file"),
        (("--netrc",), "--netrc-file"),
        (("--where", "PatientName=A*"), "PatientName"),
    ],
)
def test_wrong_rules(tmp_path, words, said):
    World(tmp_path / "s").store.close()
    url = ("https://peer.example/v2", "--name", "a", "--data", str(tmp_path / "s"))
    code, text = verb("hook", "forward", *url, *words)
    assert (code, said in text, "secret-word" in text) == (2, True, False)
    assert not (tmp_path / "s" / "hooks").exists()


# -- real servers


class Relay:
    """Forwards connections to a port; ends some at once, and is slow."""

    def __init__(self, port, failing=0.0):
        self.failing = failing
        self.connections = 0
        self._port = port
        self._chance = random.Random(3)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                self.connections += 1
                if self._chance.random() < self.failing:
                    one.close()
                    continue
                other = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((one, other), (other, one)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source, target):
        with suppress(OSError):
            while data := source.recv(30_000):
                time.sleep(0.001)
                target.sendall(data)
                if self._chance.random() < self.failing / 30:
                    break
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def sender_of(server):
    for each in children(server.process.pid):
        with suppress(OSError), open(f"/proc/{each}/cmdline", "rb") as words:
            if b"hook_sender" in words.read():
                return each
    return None


def test_each_study_arrives_at_another_server(server_factory, tmp_path):
    """The peer needs a key, is away three of ten times, and slow. The sender is killed within a study."""
    peer = start_server(tmp_path / "peer", "--auth", "required", workers=1)
    relay = Relay(int(peer.origin.rpartition(":")[2]), failing=0.3)
    code, key = verb("key", "add", "sender", "--rights", "store", "--data", str(peer.data))
    token = tmp_path / "token"
    token.write_text(key)
    source = server_factory("--hooks", "--study-quiet", "0.3", "--audit", "on", workers=1)
    url = f"http://127.0.0.1:{relay.port}/v2"
    words = ("--name", "pacs", "--allow-local", "--data", str(source.data))
    words += ("--query", "Modality=CT", "--token-file", str(token))
    assert verb("hook", "forward", url, *words)[0] == code == 0
    waited(
        lambda: hooks_of(store_kinds.settings_for(source.data)).state("pacs").last_id, "the begin of the hook"
    )
    keys = [key_of(study, 1, number) for study in range(1, 5) for number in range(1, 16)]
    client = Client(source.origin)
    for study in range(4):
        files = [file_of(key, 1, 30_000) for key in keys[15 * study : 15 * study + 15]]
        assert client.store(files).status == 200
    waited(lambda: relay.connections > 1, "the first attempt")
    os.kill(sender_of(source), signal.SIGKILL)
    late = key_of(1, 2, 1)
    assert client.store([file_of(late, 1, 30_000)]).status == 200
    client.close()
    _, key = verb("key", "add", "reader", "--rights", "search,read", "--data", str(peer.data))
    reader = Client(peer.origin)
    try:
        waited(lambda: keys_of(reader, key.strip()) == {*keys, late}, "all instances")
        waited(lambda: row_of(source)["state"] == "good" and not row_of(source)["waiting"], "the cursor")
        assert row_of(source)["query"] == "Modality=CT"
        assert row_of(source)["delivered"] >= 4
        assert row_of(source)["dead"] == 0
        assert key.strip() not in source.log.read_text()
    finally:
        reader.close()
        relay.close()
        peer.end()
    assert source.end() == 0
    trail = [json.loads(line) for line in verb("audit", "--data", str(source.data))[1].splitlines()]
    sent = [each for each in trail if each["event"] == "instances-sent"]
    assert {(each["user"], each["study"]) for each in sent} == {("hook:pacs", key[0]) for key in keys}


def keys_of(client, key):
    found = client.ask("GET", "/instances?limit=500", Authorization=f"Bearer {key}")
    tags = ("0020000D", "0020000E", "00080018")
    return {tuple(each[tag]["Value"][0] for tag in tags) for each in found.json()}


def row_of(server):
    (row,) = json.loads(verb("hook", "list", "--json", "--data", str(server.data))[1])
    return row
