"""Random operations over HTTP against a model in memory: whatever was done, the server says what the model
says.

One client, one operation after the other; the server restarts, compacts beside it, and loses its index now
and then. `SOAK=20 python -m pytest tests/test_operations.py` goes on for twenty times as long, with a new
seed."""

import os
import random
import time
from collections import Counter

import store_kinds
from kill_world import verb
from live_server import free_port, start_server
from small_client import Client, file_of, key_of, path_of

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SEED", "7")) if SOAK == 1 else random.SystemRandom().randrange(1 << 32)
SECONDS = 6 * SOAK
LEAST, MOST = 50, 400 * SOAK
KEYS = [key_of(study, series, number) for study in (1, 2, 3) for series in (1, 2) for number in range(1, 5)]


def values(result, *tags):
    return tuple(result[tag]["Value"][0] for tag in tags)


class Stored:
    """The model: instances in the order in which they were stored."""

    def __init__(self):
        self.files = {}  # key -> (version, bytes); the latest last

    def store(self, key, version, body):
        self.files.pop(key, None)
        self.files[key] = version, body

    def delete(self, target):
        gone = self.under(target)
        for key in gone:
            del self.files[key]
        return bool(gone)

    def under(self, target):
        return sorted(key for key in self.files if key[: len(target)] == target)

    def targets(self, depth):
        return sorted({key[:depth] for key in self.files})

    def latest(self, target):
        """The version that was stored last below a target: its attributes are the target's."""
        return [version for key, (version, _) in self.files.items() if key[: len(target)] == target][-1]


class Session:
    def __init__(self, folder, seed):
        self._folder = folder
        self.choice = random.Random(seed)
        self.model = Stored()
        self.done = Counter()
        self._version = 0
        self._port = free_port()
        self._server = self._client = None
        self.data = folder / "data"

    def start(self):
        flags = ("--on-duplicate", "replace", "--segment-size", "150000", "--log-level", "warning")
        self._server = start_server(self._folder, *flags, port=self._port)
        self._client = Client(self._server.origin)

    def stop(self):
        self._client.close()
        assert self._server.end() == 0

    def step(self):
        actions, weights = zip(*ACTIONS, strict=True)
        action = self.choice.choices(actions, weights)[0]
        self.done[action.__name__] += 1
        action(self)

    def _target(self):
        depth = self.choice.choice((1, 2, 3, 3))
        return self.choice.choice(KEYS)[:depth]

    # Operations

    def store(self):
        keys = self.choice.sample(KEYS, self.choice.choice((1, 1, 2, 6)))
        made = []
        for key in keys:
            self._version += 1
            made.append(file_of(key, self._version, self.choice.choice((300, 3_000, 30_000))))
            self.model.store(key, self._version, made[-1])
        assert self._client.outcomes(made) == {key[2]: True for key in keys}

    def delete(self):
        target = self._target()
        assert self._client.delete(target) == self.model.delete(target)

    def retrieve(self):
        key = self.choice.choice(KEYS)
        assert self._client.read(key) == self.model.files.get(key, (0, None))[1]

    def metadata(self):
        target = self._target()
        reply = self._client.ask("GET", f"{path_of(target)}/metadata")
        expected = self.model.under(target)
        assert reply.status == (200 if expected else 404)
        if expected:
            found = [values(each, "0020000D", "0020000E", "00080018", "00200013") for each in reply.json()]
            assert sorted(found) == [(*key, self.model.files[key][0]) for key in expected]

    def search_studies(self):
        found = self._client.search("/studies?includefield=StudyDescription")
        tags = ("0020000D", "00081030", "00201206", "00201208")
        assert sorted(values(each, *tags) for each in found) == [
            (
                *target,
                f"study {self.model.latest(target)}",
                len({key[1] for key in self.model.under(target)}),
                len(self.model.under(target)),
            )
            for target in self.model.targets(1)
        ]

    def search_series(self):
        found = self._client.search("/series?Modality=CT&includefield=SeriesDescription")
        tags = ("0020000D", "0020000E", "0008103E", "00201209")
        assert sorted(values(each, *tags) for each in found) == [
            (*target, f"series {self.model.latest(target)}", len(self.model.under(target)))
            for target in self.model.targets(2)
        ]

    def search_patient(self):
        """By an attribute that no other study has."""
        study = self.choice.choice(KEYS)[0]
        found = self._client.search(f"/instances?PatientID=ID%20{study}&limit=100")
        tags = ("0020000D", "0020000E", "00080018")
        assert sorted(values(each, *tags) for each in found) == self.model.under((study,))

    def compact(self):
        code, said = verb("compact", "--data", str(self.data))
        assert code == 0, said

    def check(self):
        assert verb("check", "--data", str(self.data)) == (0, "all is well\n")

    def restart(self):
        self.stop()
        self.start()

    def lose_the_index(self):
        self.stop()
        store_kinds.lose_index(self.data)
        code, said = verb("reindex", "--data", str(self.data))
        assert code == 0, said
        self.start()

    def everything(self):
        assert self._client.keys() == set(self.model.files)
        for key, (_, body) in self.model.files.items():
            assert self._client.read(key) == body


ACTIONS = [
    (Session.store, 30),
    (Session.delete, 12),
    (Session.retrieve, 20),
    (Session.metadata, 10),
    (Session.search_studies, 8),
    (Session.search_series, 8),
    (Session.search_patient, 8),
    (Session.compact, 3),
    (Session.check, 1),
    (Session.everything, 1),
    (Session.restart, 0.3),
    (Session.lose_the_index, 0.3),
]


def test_random_operations(tmp_path):
    print("seed", SEED)
    session = Session(tmp_path, SEED)
    session.start()
    began = time.monotonic()
    try:
        while session.done.total() < MOST and (
            session.done.total() < LEAST or time.monotonic() < began + SECONDS
        ):
            session.step()
        session.everything()
        session.lose_the_index()
        session.everything()
        session.check()
    finally:
        session.stop()
    print(dict(session.done))
    assert session.done.total() >= LEAST
