"""Writers over two workers that are killed, and readers by poll, by events and by a webhook whose receiver
fails three of ten times: each change is told, in order, and once after its sequence is compared. SOAK=N: 500
times N changes a writer, 10,000 at SOAK=20."""

import itertools
import os
import random
import signal
import threading
import time
from contextlib import suppress

import store_kinds
from change_readers import Follow, Poll, told_once
from kill_world import PATIENCE, children, has_the_index_open, verb, waited
from small_client import LOST, Client, NotSent, file_of, key_of
from webhook_receiver import Receiver

from streamsrv.events.hooks import hooks_of

SOAK = int(os.environ.get("SOAK", "0"))
WRITERS = 8
STORES = 100 * SOAK or 12  # bodies a writer
TOGETHER = 5  # instances of a body
KILLS = 5 * SOAK or 3


def written(server, writer, acknowledged):
    """Stores bodies, and deletes one instance of every third."""
    client = Client(server.origin)
    for number in range(STORES):
        keys = [key_of(writer, 1, TOGETHER * number + each) for each in range(1, TOGETHER + 1)]
        with suppress(*LOST, NotSent):
            if client.store([file_of(key, 1, 128) for key in keys]).status == 200:
                acknowledged += [("create", key[2]) for key in keys]
            if number % 3 == 0 and client.delete(keys[0]):
                acknowledged.append(("delete", keys[0][2]))
    client.close()


class Webhook:
    """A hook of all events."""

    def __init__(self, server):
        chance = random.Random(9)
        self.receiver = Receiver(keeps_requests=False)
        self.receiver.status = lambda number: 500 if chance.random() < 0.3 else 200
        data = ("--data", str(server.data))
        assert verb("hook", "add", self.receiver.url, "--name", "a", "--allow-local", *data)[0] == 0
        waited(
            lambda: hooks_of(store_kinds.settings_for(server.data)).state("a").last_id,
            "the begin of the hook",
        )

    def changes(self, last):
        """All changes up to the last one, as they came."""
        seen, at = 0, time.monotonic()
        while not (found := [data for _, data in self.receiver.taken if data["action"] != "complete"]) or (
            found[-1]["sequence"] < last
        ):
            time.sleep(0.1)
            if len(found) > seen:
                seen, at = len(found), time.monotonic()
            assert time.monotonic() - at < PATIENCE
        return found

    def close(self):
        self.receiver.close()
        assert self.receiver.count > len(self.receiver.taken)


def killer(server, ended):
    chance = random.Random(7)
    for _ in range(KILLS):
        if ended.wait(0.2 + chance.random() / 2):
            return
        workers = [each for each in children(server.process.pid) if has_the_index_open(each, server.data)]
        if len(workers) == 2:
            os.kill(chance.choice(workers), signal.SIGKILL)


def test_each_change_is_told_once_and_in_order(server_factory):
    server = server_factory("--study-quiet", "1", "--hooks", workers=2)
    webhook = Webhook(server)
    follows, poll, ended = [Follow(server) for _ in range(3)], Poll(server), threading.Event()
    for follow in follows:
        follow.start()
    acknowledged = [[] for _ in range(WRITERS)]
    writers = [
        threading.Thread(target=written, args=(server, writer, known), daemon=True)
        for writer, known in enumerate(acknowledged, 1)
    ]
    killing = threading.Thread(target=killer, args=(server, ended), daemon=True)
    for thread in (*writers, killing):
        thread.start()
    while any(writer.is_alive() for writer in writers):
        poll.read()
    ended.set()
    killing.join()
    while poll.read():
        time.sleep(0.01)
    poll.close()
    told = told_once(poll.changes)
    assert len(told) > WRITERS * STORES  # the kills have not ended everything
    for follow in follows:
        waited(lambda follow=follow: follow.changes and follow.changes[-1]["sequence"] == len(told), "events")
        assert told_once(follow.changes) == told
    assert told_once(webhook.changes(len(told))) == told
    assert set(itertools.chain(*acknowledged)) <= set(told)
    assert len(set(told)) == len(told)
    studies = {f"1.2.{writer}" for writer in range(1, WRITERS + 1)}
    for follow in follows:
        waited(lambda follow=follow: complete(follow) >= studies, "completion")
        follow.ending.set()
        follow.join()
    waited(lambda: webhook.receiver.told("complete") >= studies, "completion")
    webhook.close()
    assert server.end() == 0


def complete(follow):
    return {data["studyInstanceUid"] for name, data in follow.events if name == "complete"}
