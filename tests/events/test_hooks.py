"""Hooks: signed events to a receiver that fails now and then, its addresses, dead letters."""

import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import random
import signal
import threading
import time

import pytest
import store_kinds
from events_world import World
from kill_world import children, verb, waited
from small_client import Client, file_of, key_of
from webhook_receiver import Receiver

from streamsrv.companions import hook_sender
from streamsrv.companions.delivery import NotDelivered, Webhook, is_allowed
from streamsrv.companions.hook_sender import HookSender, HookThreads
from streamsrv.events import EventPosition, ToldEvent
from streamsrv.events.hooks import Hook, HookState, hooks_in, hooks_of, new_secret, signature
from streamsrv.events.messages import message_id
from streamsrv.settings import Settings
from streamsrv.store import FolderLease, LeaseLost

OFF = "streamsrv: the setting `hooks` is off: serve with --hooks\n"


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


def hook_process(server):
    for each in children(server.process.pid):
        with contextlib.suppress(OSError), open(f"/proc/{each}/cmdline", "rb") as words:
            if b"hook_sender" in words.read():
                return each
    return None


def test_each_event_arrives_in_order(server_factory, receiver):
    """The receiver fails three of ten times, and the sending process is killed."""
    chance = random.Random(5)
    receiver.status = lambda number: 500 if chance.random() < 0.3 else 200
    server = server_factory("--hooks", "--study-quiet", "0.5", workers=2)
    data = ("--data", str(server.data))
    code, said = verb("hook", "add", f"{receiver.url}/in?a=1", "--name", "ris", "--allow-local", *data)
    secret = said.splitlines()[0]
    assert (code, secret[:6]) == (0, "whsec_")
    waited(
        lambda: hooks_of(store_kinds.settings_for(server.data)).state("ris").last_id, "the begin of the hook"
    )
    client = Client(server.origin)
    for number in range(1, 13):
        keys = [key_of(number % 3, 1, 2 * number + each) for each in range(2)]
        assert client.store([file_of(key, 1, 128) for key in keys]).status == 200
        if number == 6:
            waited(lambda: receiver.taken, "the first event")
            os.kill(hook_process(server), signal.SIGKILL)
    assert client.delete(keys[0])
    client.close()
    waited(
        lambda: receiver.told("delete") and receiver.told("complete") == {"1.2.0", "1.2.1", "1.2.2"}, "all"
    )
    once = dict(receiver.taken)
    changes = [data["sequence"] for data in once.values() if data["action"] != "complete"]
    assert changes == list(range(1, 26))
    assert len(receiver.requests) > len(receiver.taken)
    for headers, body in receiver.requests:
        named = {name.lower(): value for name, value in headers.items()}
        message = f"{named['webhook-id']}.{named['webhook-timestamp']}.".encode() + body
        digest = hmac.digest(base64.b64decode(secret[6:]), message, hashlib.sha256)
        assert named["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
        assert abs(int(named["webhook-timestamp"]) - time.time()) < 60
    waited(lambda: [state_of(data)[each] for each in ("sequence", "state")] == [25, "good"], "the cursor")
    assert state_of(data)["delivered"] >= len(once)
    assert verb("hook", "remove", "ris", *data)[0] == 0
    assert verb("hook", "list", *data) == (0, "")
    assert server.end() == 0
    assert verb("check", *data)[0] == verb("info", *data)[0] == 0


def state_of(data):
    (row,) = json.loads(verb("hook", "list", "--json", *data)[1])
    return row


@pytest.mark.embedded("it has a folder without a server")
def test_events_that_are_refused_are_dead_letters(tmp_path, receiver):
    world, waits = World(tmp_path / "store"), []
    hooks = hooks_in(tmp_path / "store")
    hooks.add(Hook("a", receiver.url, ("create",), new_secret(), 0.0, local=True))

    def run(rounds):
        """Ends after so many looks without an event."""
        looks = itertools.count()

        def ended(seconds):
            waits.append(seconds)
            return seconds == hook_sender.LOOK and next(looks) >= rounds

        tail = world.tail(0, time.time)
        hook = hooks.named("a")
        sender = HookSender(
            *(hook, hooks, tail, Webhook(hook, attempts=3), "e0", lambda seconds: ended(seconds) or stop),
            FolderLease(),
        )
        stop, ends = False, itertools.count()
        original = tail.read

        def read():
            nonlocal stop
            events = original()
            stop = stop or (not events and next(ends) >= rounds)
            return events

        tail.read = read
        sender.run()

    run(0)
    world.put(key_of(1, 1, 1), key_of(1, 1, 2))
    receiver.status = lambda number: 302 if number <= 3 else 200
    run(1)
    assert len(receiver.requests) == 4  # no redirect is followed
    assert [each for each in waits if 0 < each < hook_sender.LOOK] == [0.01, 0.02]
    (letter,) = hooks.dead("a")
    assert json.loads(letter)["sequence"] == 1
    assert [data["sequence"] for _, data in receiver.taken] == [2]
    state = hooks.state("a")
    assert (state.dead, state.delivered, state.attempts) == (1, 1, 0)
    data = ("--data", str(tmp_path / "store"))
    assert letter in verb("hook", "list", "--dead", *data)[1]
    assert verb("hook", "retry", "a", *data) == (0, "1 dead letters are sent again\n" + OFF)
    run(1)
    assert receiver.taken[-1] == ("e0.1.0", json.loads(letter))
    assert (hooks.state("a").dead, hooks.state("a").last_id) == (0, "e0.2.2")
    assert verb("hook", "retry", "a", *data) == (0, "0 dead letters are sent again\n" + OFF)
    hooks.save(hooks.named("a"), state._replace(last_id="e9.1.0"))  # of another epoch
    run(0)
    assert receiver.taken[-1][1] == {"action": "reset", "sequence": 2}
    world.store.close()


@pytest.mark.embedded("it has a folder without a server")
def test_a_hook_tells_what_its_rule_shows(tmp_path, receiver):
    world = World(tmp_path / "s")
    world.put(key_of(2, 1, 1))
    data = ("--data", str(tmp_path / "s"))
    rule = ("--where", "PatientID=ID 1.2.1", "--where", "ModalitiesInStudy=CT")
    assert verb("hook", "add", receiver.url, "--name", "a", "--allow-local", *rule, *data)[0] == 0
    (row,) = json.loads(verb("hook", "list", "--json", *data)[1])
    assert row["rule"] == [{"ModalitiesInStudy": "CT", "PatientID": "ID 1.2.1"}]
    settings = Settings(data=str(tmp_path / "s"), study_quiet=0.2)
    threads = HookThreads(settings, world.store, hooks_in(tmp_path / "s"), FolderLease())
    threads.look()
    waited(lambda: hooks_in(tmp_path / "s").state("a").last_id, "the begin of the hook")
    world.put(key_of(1, 1, 1), key_of(2, 1, 2), key_of(1, 1, 2), key_of(3, 1, 1))
    world.store.delete(*key_of(1, 1, 1))
    waited(lambda: receiver.told("complete"), "completion")
    waited(lambda: hooks_in(tmp_path / "s").state("a").last_id.split(".")[1] == "6", "the end of the log")
    told = [(data["action"], data["studyInstanceUid"]) for _, data in receiver.taken]
    assert told == [(action, "1.2.1") for action in ("create", "create", "delete", "complete")]
    assert verb("hook", "remove", "a", *data)[0] == 0
    threads.look()
    world.put(key_of(1, 1, 3))
    waited(lambda: "a" not in {each.name for each in threading.enumerate()}, "the end of the thread")
    assert len(receiver.taken) == 4
    world.store.close()


def test_one_process_sends(tmp_path):
    hooks = hooks_in(tmp_path)
    with hooks.sending() as one, hooks_in(tmp_path).sending() as other:
        assert (one is not None, other) == (True, None)
    with hooks.sending() as again:
        assert again is not None


class Lost:
    """A lease that holds for the first `looks` looks."""

    def __init__(self, looks):
        self.looks = looks

    def holds(self):
        self.looks -= 1
        return self.looks >= 0


def test_nothing_is_sent_without_the_lease(tmp_path, receiver):
    """As by a node that was stopped, and wakes up between two events."""
    world, hooks = World(tmp_path / "s"), hooks_in(tmp_path / "s")
    hook = Hook("a", receiver.url, ("create",), new_secret(), 0.0, local=True)
    hooks.add(hook)
    hooks.save(hook, HookState("e0.0.0"))
    world.put(key_of(1, 1, 1), key_of(1, 1, 2))
    sender = HookSender(
        *(hook, hooks, world.tail(0, time.time), Webhook(hook), "e0", lambda seconds: False), Lost(1)
    )
    with pytest.raises(LeaseLost):
        sender.run()
    assert [data["sequence"] for _, data in receiver.taken] == [1]
    world.store.close()


def test_each_reader_gives_an_event_the_same_id(tmp_path):
    """One that goes on after a crash, too. Its position may be another one, because it reads later."""
    world, now = World(tmp_path / "s"), time.time()
    first = world.tail(0.5, lambda: now)
    assert first.begin(None)
    told, begun = [], first.position
    for number, later in enumerate((0, 0, 1.3, 1.3), 1):
        time.sleep(0.3 if number == 3 else 0)
        world.put(key_of(1, 1, number))
        now = world.store.latest_change().at / 1e6 + later
        told += first.read()
    second = world.tail(0.5, lambda: now)
    assert second.begin(begun)
    again = second.read()
    assert [each.position for each in told] != [each.position for each in again]
    assert [message_id("e", each) for each in told] == [message_id("e", each) for each in again]
    world.store.close()


def test_a_sender_that_ends_saves_its_cursor(tmp_path, receiver):
    world, hooks = World(tmp_path / "s"), hooks_in(tmp_path / "s")
    hook = Hook("a", receiver.url, ("create",), new_secret(), 0.0, local=True)
    hooks.add(hook)
    hooks.save(hook, HookState("e0.0.0"))
    world.put(*(key_of(1, 1, number) for number in (1, 2, 3)))
    HookSender(
        *(hook, hooks, world.tail(0, time.time), Webhook(hook), "e0"),
        lambda seconds: len(receiver.taken) == 2,
        FolderLease(),
    ).run()
    assert (hooks.state("a").last_id, hooks.state("a").waiting) == ("e0.2.0", 1)
    world.store.close()


def test_a_hook_that_was_removed_keeps_no_state(tmp_path, receiver):
    hooks = hooks_in(tmp_path)
    hook = Hook("a", receiver.url, ("create",), new_secret(), 0.0)
    hooks.add(hook)
    hooks.remove("a")
    hooks.save(hook, HookState("e0.1.0"))
    assert hooks.documents.names() == []


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        *(("127.0.0.1", False), ("127.9.9.9", False), ("169.254.169.254", False), ("0.0.0.0", False)),
        *(("::1", False), ("fe80::1%lo", False), ("::ffff:127.0.0.1", False), ("224.0.0.1", False)),
        *(("10.1.2.3", True), ("192.168.1.1", True), ("8.8.8.8", True)),
        *(("2001:4860:4860::8888", True), ("::", False), ("240.0.0.1", False)),
    ],
)
def test_addresses(address, allowed):
    assert is_allowed(address) is allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "[::1]"])
def test_loopback_is_refused_by_every_name(receiver, host):
    url = receiver.url.replace("127.0.0.1", host)
    event = ToldEvent(EventPosition(1), "create", "", b"{}")
    webhook = Webhook(Hook("a", url, ("create",), new_secret(), 0.0))
    with pytest.raises(NotDelivered):
        webhook.deliver("e0.1.0", event)
    assert receiver.requests == []


def test_the_example_of_standard_webhooks():
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "words",
    [
        ("ftp://a/", "--name", "a"),
        ("http://user@a/", "--name", "a"),
        ("http://a/", "--name", "../a"),
        ("http://a/", "--name", "a", "--events", "created"),
    ],
)
def test_wrong_hooks(tmp_path, words):
    assert verb("hook", "add", *words, "--data", str(tmp_path))[0] == 2
    assert not (tmp_path / "hooks").exists()


@pytest.mark.embedded("it has a folder without a server")
def test_names_are_given_once(tmp_path):
    World(tmp_path / "s").store.close()
    words = ("hook", "add", "https://ris.example/in", "--name", "a", "--data", str(tmp_path / "s"))
    assert [verb(*words)[0] for _ in range(2)] == [0, 1]
    assert os.stat(tmp_path / "s" / "hooks").st_mode & 0o777 == 0o700
    assert verb("hook", "remove", "b", *words[-2:])[0] == 1
