"""Every prefix of what a store does to its disk, with what was not synced kept, lost or torn.

The promise: what was acknowledged is there, whole and equal; what was not is wholly there or not at all,
instance by instance; what was deleted, replaced or refused stays away; check and reindex find nothing amiss.
"""

import hashlib
import shutil
from dataclasses import dataclass

import pytest
from disks import LOSSES, RecordingFileOps, Replay
from store_world import add, derive, get, key_of, open_store, payload_of, put

from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import OnDuplicate, Outcome
from streamsrv.store.store import StoreOptions

WITHOUT_INDEX = 3  # every third state is reindexed with the manifest alone
OPTIONS = StoreOptions(segment_size=3000, min_free=0)
WRITING = ("commit", "delete", "relocate", "add_segment", "seal", "drop_segment")
KEYS = [key_of(study, 1, instance) for study in (1, 2, 3) for instance in (1, 2, 3, 4)]


class RecordedIndex:
    """An index whose durable states are kept, one copy each, in the log of the disk."""

    def __init__(self, index, ops, snapshots):
        self._index = index
        self._ops = ops
        self._snapshots = snapshots
        self._snapshot()

    def _snapshot(self):
        target = self._snapshots / str(len(self._ops.log))
        target.mkdir(parents=True)
        shutil.copy(self._ops.folder / "index" / "data.mdb", target)
        self._ops.index_committed(target)

    def __getattr__(self, name):
        method = getattr(self._index, name)
        if name not in WRITING:
            return method

        def recorded(*args, **options):
            result = method(*args, **options)
            self._snapshot()
            return result

        return recorded


@dataclass
class Step:
    """An operation on the store: what each key may be while it runs, and is when it has been acknowledged."""

    begin: int  # in the log
    end: int
    before: dict
    after: dict


class Recording:
    """A store that is worked on, with everything that is done to its disk."""

    def __init__(self, folder):
        self.folder = folder / "store"
        self.folder.mkdir()
        self.ops = RecordingFileOps(self.folder)
        self.store = open_store(self.folder, fileops=self.ops, options=OPTIONS)
        self.ready = len(self.ops.log)
        index = RecordedIndex(self.store.index, self.ops, folder / "snapshots")
        self.store.index = self.store.segments._index = self.store.segments._leftovers._index = index
        self.steps = []
        self.model = {}

    def do(self, work, after=None):
        before, begin = dict(self.model), len(self.ops.log)
        work()
        self.model.update(after or {})
        self.steps.append(Step(begin, len(self.ops.log), before, dict(self.model)))

    def put(self, keys, fill="x", size=300, on_duplicate=OnDuplicate.REFUSE):
        payloads = [payload_of(key, size, fill) for key in keys]
        replacing = on_duplicate is OnDuplicate.REPLACE
        stored = {
            key: payload
            for key, payload in zip(keys, payloads, strict=True)
            if replacing or self.model.get(key) is None
        }
        self.do(lambda: put(self.store, *payloads, on_duplicate=on_duplicate), stored)

    def delete(self, *target):
        gone = {key: None for key in KEYS if key[: len(target)] == target}
        self.do(lambda: self.store.delete(*target), gone)

    def step_at(self, length):
        """The step that was under way, or had just been acknowledged, when the log had this length."""
        return next((step for step in self.steps if step.begin < length <= step.end), None)


def scenario(recording):
    recording.put(KEYS[:4])
    recording.put([KEYS[4], KEYS[0], KEYS[5]])  # a void between two
    recording.put([KEYS[1]], "r", 500, OnDuplicate.REPLACE)
    recording.delete(*KEYS[2])
    recording.do(lambda: abandon(recording.store))
    recording.put([KEYS[2], KEYS[6]])
    together(recording)
    recording.delete("1.1")
    recording.put(KEYS[:2], "z")
    recording.do(lambda: compact(recording.store))
    recording.do(lambda: [recording.store.segments.seal(n) for n in recording.store.layout.segment_files()])
    recording.delete("1.2")
    recording.do(lambda: compact(recording.store))
    recording.put(KEYS[8:12], "w", 700)


def abandon(store):
    transaction = store.begin()
    add(transaction, payload_of(KEYS[7], 600))
    transaction.open_record()
    transaction.write([b"half of an instance"])
    transaction.abort()


def together(recording):
    """Two transactions at once, in two segments."""
    first, second = recording.store.begin(), recording.store.begin()
    payloads = {key: payload_of(key, 400, "t") for key in KEYS[8:10]}
    pairs = [add(one, payload_of(key, 400, "t")) for one, key in zip((first, second), payloads, strict=True)]
    recording.do(lambda: second.commit(pairs[1:]), {KEYS[9]: payloads[KEYS[9]]})
    recording.do(lambda: first.commit(pairs[:1]), {KEYS[8]: payloads[KEYS[8]]})


@pytest.fixture(scope="module")
def recording(memory_factory):
    recording = Recording(memory_factory())
    scenario(recording)
    recording.store.close()
    return recording


def assert_promise(folder, step):
    """Each key is as it was before the step or after it; then check finds nothing."""
    with open_store(folder, options=OPTIONS) as store:
        found = {key: get(store, key) for key in KEYS}
        for key in KEYS:
            assert found[key] in (step.before.get(key), step.after.get(key)), key
        assert [str(finding) for finding in check(store, derive)] == []
        assert put(store, payload_of(key_of(9))) == [Outcome.STORED]  # life goes on
    return found


def prefixes(recording):
    """(length of the prefix, the replay up to there), once the store stands."""
    replay = Replay()
    for length, operation in enumerate(recording.ops.log, 1):
        replay.step(operation)
        if length > recording.ready:
            yield length, replay


def test_the_scenario_does_what_it_should(recording):
    assert len(recording.ops.log) > 120
    assert {operation.kind for operation in recording.ops.log} >= {"create", "truncate", "unlink", "index"}
    with open_store(recording.folder, options=OPTIONS) as store:
        assert {key: get(store, key) for key in KEYS} == {key: recording.model.get(key) for key in KEYS}


@pytest.fixture(scope="module")
def seen():
    """States that were checked: many prefixes leave the same bytes behind."""
    return set()


def state_of(folder, replay, step, is_over):
    """All that the promise depends on."""
    segments = sorted(path for path in folder.rglob("*") if path.is_file() and "index" not in path.parts)
    digest = hashlib.sha256(repr([(path.name, path.read_bytes()) for path in segments]).encode()).digest()
    return digest, replay.index, step.begin, is_over


@pytest.mark.no_cover
@pytest.mark.parametrize("loss", LOSSES)
def test_every_prefix(recording, memory, loss, seen):
    checked = 0
    for length, replay in prefixes(recording):
        step = recording.step_at(length)
        if step is None or replay.index is None:
            continue
        folder = memory / "replay"
        replay.build(folder, loss, seed=length)
        state = state_of(folder, replay, step, length == step.end)
        if state in seen:
            shutil.rmtree(folder)
            continue
        seen.add(state)
        # Acknowledged, nothing of it may be lost.
        if length == step.end:
            step = Step(0, 0, step.after, step.after)
        try:
            again = shutil.copytree(folder, memory / "reindexed")
            if checked % WITHOUT_INDEX == 0:
                shutil.rmtree(again / "index")
            assert_promise(folder, step)
            # Nothing that a crash leaves is taken for damage.
            assert [str(each) for each in reindex(again, derive).findings if each.severity == "error"] == []
            assert_promise(again, step)
        except AssertionError as error:
            raise AssertionError(f"after {length} operations, {loss} lost: {error}") from error
        shutil.rmtree(folder)
        shutil.rmtree(again)
        checked += 1
    assert checked > 20
