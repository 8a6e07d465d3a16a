from store_world import get, key_of, open_store, payload_of, put

from streamsrv.store.rows import OnDuplicate, Outcome


def test_what_was_committed_is_found_and_equal(tmp_path):
    payloads = {key_of(1, 1, n): payload_of(key_of(1, 1, n), 300 + n) for n in range(5)}
    with open_store(tmp_path) as store:
        assert put(store, *payloads.values()) == [Outcome.STORED] * 5
        assert {key: get(store, key) for key in payloads} == payloads
    with open_store(tmp_path) as store:
        assert {key: get(store, key) for key in payloads} == payloads


def test_a_duplicate_is_refused(tmp_path):
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
        assert put(store, payload_of(key_of(1), fill="y")) == [Outcome.DUPLICATE]
        assert get(store, key_of(1)) == payload_of(key_of(1))


def test_replace(tmp_path):
    with open_store(tmp_path) as store:
        put(store, payload_of(key_of(1)))
        again = payload_of(key_of(1), 500, "y")
        assert put(store, again, on_duplicate=OnDuplicate.REPLACE) == [Outcome.REPLACED]
        assert get(store, key_of(1)) == again
        assert store.delete("1.1") == 1
        assert store.delete("1.1") == 0
        assert get(store, key_of(1)) is None
