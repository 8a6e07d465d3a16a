"""What the page on operations says of backups: a copy of store.toml and the segments, taken beside a server,
serves after a reindex."""

import shutil
import threading

from store_world import derive, get, key_of, open_store, payload_of, put

from streamsrv.store.maintenance.check import check
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.rows import OnDuplicate
from streamsrv.store.store import StoreOptions

OPTIONS = StoreOptions(segment_size=4000, min_free=0)


def test_a_copy_taken_while_others_store(memory):
    with open_store(memory / "store", options=OPTIONS) as store:
        before = {key_of(1, 1, number): payload_of(key_of(1, 1, number), 500) for number in range(20)}
        put(store, *before.values())
        for number in range(0, 20, 4):
            store.delete(*key_of(1, 1, number))
            before[key_of(1, 1, number)] = None
        stop = threading.Event()
        stored = []

        def work(study):
            while not stop.is_set():
                key = key_of(study, 1, len(stored) % 50)
                stored.append(key)
                put(store, payload_of(key, 700, "w"), on_duplicate=OnDuplicate.REPLACE)

        threads = [threading.Thread(target=work, args=(study,)) for study in (2, 3, 4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            copy = memory / f"copy {number}"
            copy.mkdir()
            shutil.copy(store.layout.identity, copy)
            shutil.copy(store.layout.manifest, copy)
            shutil.copytree(store.layout.segments, copy / "segments")
            assert [str(each) for each in reindex(copy, derive).findings if each.severity == "error"] == []
            with open_store(copy, options=OPTIONS) as other:
                assert {key: get(other, key) for key in before} == before
                for row in (row for study in (2, 3, 4) for row in other.lookup(f"1.{study}")):
                    assert get(other, row.key) == payload_of(row.key, 700, "w")
                assert [str(each) for each in check(other, derive)] == []
        stop.set()
        for thread in threads:
            thread.join()
        assert len(stored) > 20
