"""The lists of modules that run on both kinds of store."""

import pytest
import store_kinds
from live_server import start_server
from store_kinds import EMBEDDED, ON_BOTH, TESTS


def test_a_module_is_in_one_list():
    assert not EMBEDDED.keys() & ON_BOTH
    assert [each for each in (*EMBEDDED, *ON_BOTH) if not (TESTS / each).is_file()] == []


def test_a_new_module_has_to_be_listed_before_it_starts_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/web/test_new.py::test_one (call)")
    with pytest.raises(AssertionError, match=r"web/test_new\.py: add it to tests/store_kinds\.py"):
        start_server(tmp_path)
    for listed in (
        "tests/test_cli.py::test (setup)",
        "tests/test_tutorial.py::test (call)",
        "tests/deployment/x.py",
    ):
        monkeypatch.setenv("PYTEST_CURRENT_TEST", listed)
        store_kinds.require_listed()


def test_servers_of_a_folder_keep_their_store(database_server, tmp_path, monkeypatch):
    assert store_kinds.variables_of(tmp_path) == {}

    class Bucket:
        endpoint = "http://127.0.0.1:1"

    monkeypatch.setenv(store_kinds.GIVEN, "")
    store_kinds.give(database_server, Bucket)
    one, two = (store_kinds.variables_of(tmp_path / name) for name in "ab")
    assert one == store_kinds.variables_of(tmp_path / "b" / ".." / "a")
    for name in ("STREAMSRV_INDEX", "STREAMSRV_SEGMENTS"):
        assert one[name] != two[name]
    assert one["AWS_ENDPOINT_URL"] == Bucket.endpoint
