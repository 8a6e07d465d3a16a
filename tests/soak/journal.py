"""What the clients of a cluster know of each instance, and clients that store, delete and read at random.

An instance is stored once, and deleted at most once. A request without an answer leaves a doubt: it may take
effect at any time later. So an instance is deleted only if its first request was acknowledged. All others
have to be as the answers said, on each node, at any moment.
"""

import contextlib
import hashlib
import itertools
import random
import threading
import time

from small_client import LOST, WHOLE, Client, NotSent, file_of, key_of, path_of

SIZES = (500, 4_000, 60_000, 600_000, 8_388_480)  # an object with the last one has two parts
WEIGHTS = (30, 30, 20, 6, 1)
AWAY = (502, 503, 504)
THERE = ("stored", "kept")
SERIES = 20  # bodies
WRITERS = 3
RELATED = f'multipart/related; type="{WHOLE.partition(";")[0]}"; transfer-syntax=*'


class Journal:
    """Thread-safe. The state of a key is "stored"; "kept", if it must not be deleted; "deleting", "deleted",
    or "doubt"."""

    def __init__(self):
        self._lock = threading.Lock()
        self._sizes, self._states, self._digests = {}, {}, {}
        self._order = []
        self.moments = []  # of acknowledged stores
        self.refusals = []  # (moment, status) of answers that could not be given; 0 is a lost connection

    def body(self, key):
        return file_of(key, 1, self._sizes[key])

    def key(self, body):
        """None if nobody sent it."""
        return self._digests.get(hashlib.sha256(body).digest())

    def add(self, key, size):
        self._sizes[key] = size
        body = self.body(key)
        self._digests[hashlib.sha256(body).digest()] = key
        self.note([key], "doubt")
        self._order.append(key)
        return body

    def note(self, keys, state):
        with self._lock:
            self._states.update(dict.fromkeys(keys, state))

    def acknowledge(self, keys, state):
        self.note(keys, state)
        self.moments.append(time.monotonic())

    def refuse(self, status):
        self.refusals.append((time.monotonic(), status))

    def state(self, key):
        return self._states[key]

    def claim(self, key):
        """For the one request that deletes it."""
        with self._lock:
            if self._states[key] != "stored":
                return False
            self._states[key] = "deleting"
            return True

    def any(self, choice):
        return choice.choice(self._order) if self._order else None

    def keys(self, *states):
        with self._lock:
            return {key for key, state in self._states.items() if state in states}

    def counts(self):
        kinds = {"acknowledged": (*THERE, "deleted"), "deleted": ("deleted",), "in doubt": ("doubt",)}
        return {name: len(self.keys(*states)) for name, states in kinds.items()}


class Clients:
    """Threads at work between `go_on` and `pause`. Each has an address of its own."""

    def __init__(self, journal, origin, sources, seed):
        self.journal, self.study = journal, 0
        self._origin, self._ended, self.errors = origin, threading.Event(), []
        self._seed = seed
        acts = (*itertools.repeat(self._write, WRITERS), self._read, self._read_series)
        self._locks = [threading.Lock() for _ in acts]
        self._numbers = [itertools.count() for _ in acts]
        self.pause()
        self._threads = [
            threading.Thread(target=self._run, args=(number, act, source), daemon=True)
            for number, (act, source) in enumerate(zip(acts, sources, strict=True), 1)
        ]
        for thread in self._threads:
            thread.start()

    def go_on(self):
        """In a new study."""
        self.study += 1
        for lock in self._locks:
            lock.release()

    def pause(self):
        """When it returns no request is under way."""
        for lock in self._locks:
            assert lock.acquire(timeout=120), "a request without an end"
        self.check()

    def check(self):
        assert not self.errors, self.errors

    def end(self):
        """Called after `pause`."""
        self._ended.set()
        for lock in self._locks:
            lock.release()
        for thread in self._threads:
            thread.join()

    def _run(self, number, act, source):
        choice = random.Random(f"{self._seed} {number}")
        client = Client(self._origin, source)
        while not self._ended.wait(0.005):
            with self._locks[number - 1]:
                if self._ended.is_set():
                    break
                try:
                    act(client, choice, number)
                except (*LOST, NotSent):
                    self.journal.refuse(0)
                    client.close()
                except Exception as error:
                    self.errors.append(error)
                    break
            if choice.random() < 0.02:
                client.close()
        client.close()

    def _answer(self, reply, *allowed):
        """None if it says that no answer can be given now."""
        if reply.status in AWAY:
            self.journal.refuse(reply.status)
            time.sleep(0.1)
            return None
        assert reply.status in allowed, (reply.status, reply.body[:500])
        return reply

    def _write(self, client, choice, number):
        if choice.random() < 0.25:
            return self._delete(client, choice)
        count = next(self._numbers[number - 1])
        keys = [
            key_of(self.study, 1_000 * number + count // SERIES, 10 * count + each)
            for each in range(1, choice.choice((1, 1, 1, 4)) + 1)
        ]
        bodies = [self.journal.add(key, choice.choices(SIZES, WEIGHTS)[0]) for key in keys]
        for state in ("stored", *itertools.repeat("kept", choice.choice((0, 20)))):
            try:
                if self._answer(client.store(bodies), 200):
                    self.journal.acknowledge(keys, state)
                    return None
            except (*LOST, NotSent):
                self.journal.refuse(0)
                client.close()
                time.sleep(0.1)
        return None

    def _delete(self, client, choice):
        key = self.journal.any(choice)
        if key is None or not self.journal.claim(key):
            return
        reply = None
        with contextlib.suppress(*LOST, NotSent):
            reply = self._answer(client.ask("DELETE", path_of(key)), 204)
        self.journal.note([key], "deleted" if reply else "doubt")

    def _read(self, client, choice, _):
        key = self.journal.any(choice)
        if key is None:
            return
        before = self.journal.state(key)
        if reply := self._answer(client.ask("GET", path_of(key), Accept=WHOLE), 200, 404):
            if reply.status == 200:
                assert before != "deleted", (key, "it returned")
                assert reply.body == self.journal.body(key), (key, "other bytes")
            else:
                after = self.journal.state(key)
                assert before not in THERE or after not in THERE, (key, "it is lost")

    def _read_series(self, client, choice, _):
        """While others delete instances of it."""
        key = self.journal.any(choice)
        if key is None:
            return
        there = {each for each in self.journal.keys(*THERE) if each[:2] == key[:2]}
        gone = self.journal.keys("deleted")
        reply = self._answer(client.ask("GET", path_of(key[:2]), Accept=RELATED), 200, 404)
        if reply is None:
            return
        found = {self.journal.key(body) for body in bodies_of(reply)}
        assert None not in found, (key[:2], "bytes that nobody sent")
        assert not found & gone, (found & gone, "they returned")
        missing = (there & self.journal.keys(*THERE)) - found
        assert not missing, (missing, "they are lost")


def bodies_of(reply):
    """Of a multipart answer."""
    if reply.status == 404:
        return []
    boundary = reply.headers.get_boundary()
    parts = reply.body.split(f"--{boundary}".encode())
    return [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts[1:-1]]
