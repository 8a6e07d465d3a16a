"""A server that is killed while clients store, replace, delete and read, and what must hold afterwards.

Strategy: a few clients work on a few instances at once, so that they race for the same ones, and write
down when each request began and ended and what was answered. After a kill everything is read again, and
for each instance there must be an order of events that explains all answers, those before the kill and
those after (`histories`). That is the whole promise: what was acknowledged is there, the rest wholly or
not at all, and nothing that is dead comes back.

One data folder goes through all of it.
"""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import store_kinds
from histories import FOR_EVER, Operation, last_states
from live_server import environment, executable, free_port, start_server
from small_client import LOST, Client, NotSent, file_of, key_of
from waiting import waited

from streamsrv import cli

KEYS = [key_of(study, series, number) for study in (1, 2) for series in (1, 2) for number in (1, 2, 3)]
CLIENTS = 3
SEGMENT_SIZE = 200_000  # some segments are full, most are mostly dead soon
PATIENCE = 30.0
ENOUGH = 3  # stores acknowledged after a kill, by the worker that lives


def verb(*arguments):
    """Run a verb of the command line in this process; its exit code and what it said. With
    `pytest --store cluster` the store of its data folder is that of the server."""
    said, place = io.StringIO(), store_kinds.variables_for(arguments)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), patch.dict(os.environ, place):
        code = cli.main(arguments)
    return code, said.getvalue()


def children(process_id):
    try:
        text = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(each) for each in text.split()]


def is_alive(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def is_worker(process_id):
    try:
        with open(f"/proc/{process_id}/cmdline", "rb") as file:
            return b"streamsrv.server" in file.read() and is_alive(process_id)
    except FileNotFoundError:
        return False


def has_the_index_open(process_id, data):
    """Or the folder of segments, if the index is in a database: a worker locks it just before. A node has
    neither."""
    if store_kinds.is_cluster():
        return is_worker(process_id)
    file = "index/data.mdb" if (data / "index").exists() else "segments"
    found = False
    with contextlib.suppress(OSError):  # it may have ended
        for link in Path(f"/proc/{process_id}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                found |= os.readlink(link).endswith(f"{data.name}/{file}")
    return found


class Load:
    """Clients at work, from `with` to its end."""

    def __init__(self, world):
        self._world = world
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.history = {key: [] for key in KEYS}
        self.acknowledged = 0
        self.lost = 0
        self._errors = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(random.Random(world.choice.random()),))
            for _ in range(CLIENTS)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def check(self):
        assert not self._errors, self._errors

    def _guarded(self, choice):
        client = Client(choice.choice(self._world.origins))
        try:
            while not self._stop.is_set():
                self._act(client, choice)
                if choice.random() < 0.3:
                    client.close()  # the next connection may go to another worker, or node
                    client = Client(choice.choice(self._world.origins))
        except Exception as error:
            self._errors.append(error)
        finally:
            client.close()

    def _act(self, client, choice):
        action = choice.choices((self._store, self._delete, self._read), (6, 2, 1))[0]
        begin = time.monotonic()
        try:
            action(client, choice, begin)
        except NotSent:
            self._stop.wait(0.02)

    def _note(self, key, kind, begin, answer, version=None):
        end = FOR_EVER if answer is None else time.monotonic()
        with self._lock:
            self.history[key].append(Operation(kind, begin, end, answer, version))

    def _store(self, client, choice, begin):
        keys = choice.sample(KEYS, choice.choice((1, 1, 1, 2, 5)))
        files = {key: self._world.new_file(key, choice) for key in keys}
        outcomes = {}
        try:
            outcomes = client.outcomes([body for _, body in files.values()])
            self.acknowledged += 1
        except LOST:
            self.lost += 1
        for key, (version, _) in files.items():
            answer = {None: None, True: "stored", False: "refused"}[outcomes.get(key[2])]
            self._note(key, "store", begin, answer, version)

    def _delete(self, client, choice, begin):
        target = choice.choice(KEYS)[: choice.choice((1, 2, 3, 3, 3))]
        answer = None
        try:
            answer = "deleted" if client.delete(target) else "absent"
        except LOST:
            self.lost += 1
        kind = "delete" if len(target) == 3 else "delete-above"
        for key in KEYS:
            if key[: len(target)] == target:
                self._note(key, kind, begin, answer)

    def _read(self, client, choice, begin):
        key = choice.choice(KEYS)
        with contextlib.suppress(*LOST):
            self._note(key, "read", begin, "read", self._world.version_of(key, client.read(key)))


class World:
    """The server, its data, and what is known of each instance."""

    def __init__(self, folder, seed, index=""):
        """`index` is the URL of a database."""
        self._folder = folder
        self._index = {"STREAMSRV_INDEX": index} if index else {}
        self.choice = random.Random(seed)
        self.counts = Counter()
        self.server = None
        self.replacing = True
        self._port = free_port()
        self.origins = [f"http://127.0.0.1:{self._port}"]
        self.data = folder / "data"
        self._point = folder / "point"
        self._version = 0
        self._lock = threading.Lock()
        self._files = {}  # body -> (key, version)
        self.state = dict.fromkeys(KEYS)

    # Files

    def new_file(self, key, choice):
        """The next version of an instance: (version, its bytes)."""
        with self._lock:
            self._version += 1
            version = str(self._version)
        size = choice.choice((500, 4_000, 20_000, 60_000))
        body = file_of(key, version, size)
        with self._lock:
            self._files[body] = key, version
        return version, body

    def version_of(self, key, body):
        """AssertionError if the bytes are none that were ever sent for this instance."""
        if body is None:
            return None
        with self._lock:
            found, version = self._files.get(body, (None, None))
        assert found == key, f"{key} has {len(body)} bytes that nobody sent for it"
        return version

    # The server

    def serve(self, replacing):
        """Have it running, with two workers that are ready."""
        if self.server is not None and self.replacing != replacing:
            self.stop()
        if self.server is None:
            self.replacing = replacing
            flags = ("--on-duplicate", "replace") if replacing else ()
            self.server = start_server(
                self._folder,
                *("--segment-size", str(SEGMENT_SIZE), "--log-level", "warning", *flags),
                port=self._port,
                variables={"STREAMSRV_FAILPOINT_FILE": str(self._point)} | self._index,
            )
        waited(lambda: len(self.ready_workers()) == 2, "two workers")

    def ready_workers(self):
        return [each for each in children(self.server.process.pid) if has_the_index_open(each, self.data)]

    def stop(self):
        if self.server is not None:
            assert self.server.end() == 0
        self.server = None

    # Kills

    def kill_at(self, point):
        """One worker dies where it passes a named point, under load; the other one goes on."""
        workers = self.ready_workers()
        with Load(self) as load:
            self._arm(f"{point}@{self.choice.randrange(1, 6)}")
            waited(lambda: load.check() or not self._point.exists(), f"a worker at {point}")
            waited(lambda: not all(map(is_alive, workers)), "the death of a worker")
            self._go_on(load)
        self.counts[point] += 1
        self.verify(load)

    def _arm(self, spec):
        draft = self._point.with_suffix(".draft")
        draft.write_text(spec)
        draft.rename(self._point)

    def _go_on(self, load):
        before = load.acknowledged
        waited(lambda: load.check() or load.acknowledged >= before + ENOUGH, "stores after a death")

    def kill_compaction(self, passage):
        """A compaction dies where it passes its point, beside the server and its clients."""
        with Load(self) as load:
            process = self.compaction({"STREAMSRV_FAILPOINT": f"in-compaction@{passage}"})
            waited(lambda: load.check() or process.poll() is not None, "the death of a compaction")
            assert process.returncode == -signal.SIGKILL, process.returncode
            self._go_on(load)
        self.counts["in-compaction"] += 1
        self.verify(load)

    def compaction(self, variables):
        command = [*executable(), "compact", "--all", "--data", str(self.data)]
        silent, variables = subprocess.DEVNULL, environment() | self._index | variables
        return subprocess.Popen(command, env=variables, stdout=silent, stderr=silent)

    def kill_a_worker(self):
        """At a random moment; sometimes with the other one, or with a compaction at work."""
        with Load(self) as load:
            compaction = self.compaction({}) if self.choice.random() < 0.1 else None
            time.sleep(self.choice.uniform(0, 0.8 if compaction else 0.25))
            for victim in self.choice.sample(self.ready_workers(), self.choice.choice((1, 1, 1, 1, 2))):
                os.kill(victim, signal.SIGKILL)
            if compaction is not None:
                if self.choice.random() < 0.5:
                    compaction.kill()
                compaction.wait(PATIENCE)
            self._go_on(load)
        self.counts["a worker"] += 1
        self.verify(load)

    def kill_all(self, *, supervisor_only=False):
        """The supervisor with its workers; or without, and they have to notice."""
        supervisor = self.server.process
        with Load(self) as load:
            time.sleep(self.choice.uniform(0, 0.25))
            workers = children(supervisor.pid)
            for victim in [supervisor.pid] if supervisor_only else [supervisor.pid, *workers]:
                os.kill(victim, signal.SIGKILL)
            supervisor.wait()
            waited(lambda: not any(map(is_alive, workers)), "the end of orphaned workers")
        self.server = None
        self.counts["the supervisor" if supervisor_only else "all processes"] += 1
        if self.choice.random() < 0.3 and not self._index:
            self.lose_the_index()
        self.serve(self.replacing)
        self.verify(load)

    # What must hold

    def verify(self, load):
        client = Client(self.origins[0])
        for key, history in load.history.items():
            begin = time.monotonic()
            state = self.version_of(key, client.read(key))
            last = Operation("read", begin, time.monotonic(), "read", state)
            ends = last_states([*history, last], self.state[key], replacing=self.replacing)
            assert state in ends, (key, self.state[key], state, sorted(history, key=lambda each: each.begin))
            self.state[key] = state
        assert client.keys() == {key for key in KEYS if self.state[key] is not None}
        client.close()
        self.counts["acknowledged"] += load.acknowledged
        self.counts["lost"] += load.lost
        self.must_be_well()

    def must_be_well(self):
        named = [("--index", url) for url in self._index.values()]
        code, said = verb("check", "--data", str(self.data), *sum(named, ()))
        assert (code, said) == (0, "all is well\n"), said
        self.counts["checks"] += 1

    def lose_the_index(self):
        shutil.rmtree(self.data / "index")
        code, said = verb("reindex", "--data", str(self.data))
        assert (code, said.splitlines()[-1]) == (0, "all is well"), said
        self.must_be_well()
        self.counts["reindexed"] += 1

    def same_answers_without_index(self):
        """The index is lost and made again: every search, metadata and instance is what it was."""
        self.serve(self.replacing)
        with Load(self) as load:
            self._go_on(load)
        self.verify(load)
        told = self.answers()
        self.stop()
        self.lose_the_index()
        self.serve(not self.replacing)  # which has no say in it
        assert self.answers() == told
        return told

    def answers(self):
        client = Client(self.origins[0])
        told = client.answers()
        client.close()
        return told
