"""Hooks at both places: files of a folder, and rows of the database of a cluster."""

import contextlib

import pytest

from streamsrv.errors import StoreError
from streamsrv.events.hooks import Hook, Hooks, HookState, new_secret
from streamsrv.query.rules import rule_of
from streamsrv.store import LeaseLost, open_documents
from streamsrv.store.postgresql import open_index

RULE = rule_of(["InstitutionName=A*"])


@pytest.fixture(scope="module")
def schema(database_server):
    url = database_server.url("of_hooks")
    open_index(url).close()
    return url


@pytest.fixture(params=["folder", "database"])
def hooks(request, tmp_path):
    url = request.getfixturevalue("schema") if request.param == "database" else ""
    documents = open_documents(tmp_path.name, tmp_path, url, "s3://bucket" if url else "")
    with contextlib.closing(documents):
        yield Hooks(documents)


def hook_of(name):
    return Hook(
        name, "https://ris.example/in", ("create",), new_secret(), 7.5, rule=RULE, query=(("a", "b"),)
    )


def test_a_hook_and_its_state(hooks):
    ris, pacs = hook_of("ris"), hook_of("pacs")
    for each in (ris, pacs):
        hooks.add(each)
    with pytest.raises(StoreError, match="already"):
        hooks.add(ris)
    assert list(hooks.all()) == [pacs, ris]
    assert (hooks.named("ris"), hooks.named("other"), hooks.state("ris")) == (ris, None, HookState())
    hooks.save(ris, HookState("e0.7.7", 3))
    hooks.save(pacs._replace(url="https://other.example/"), HookState("e0.9.9"))  # of a former hook
    assert (hooks.state("ris"), hooks.state("pacs")) == (HookState("e0.7.7", 3), HookState())
    hooks.remove("ris")
    assert (list(hooks.all()), hooks.state("ris")) == ([pacs], HookState())


def test_dead_letters_are_sent_again_once(hooks):
    hooks.add(hook_of("ris"))
    for letter in (b'{"n": 1}', b'{"n": 2}'):
        hooks.bury("ris", letter)
    assert hooks.dead("ris") == ['{"n": 1}', '{"n": 2}']
    assert hooks.send_again("ris") == 2
    assert (hooks.dead("ris"), hooks.again("ris")) == ([], ['{"n": 1}', '{"n": 2}'])
    hooks.bury("ris", b"{}")
    with pytest.raises(StoreError, match="still being sent"):
        hooks.send_again("ris")
    hooks.forget_again("ris")
    assert (hooks.again("ris"), hooks.dead("ris"), hooks.send_again("ris")) == ([], ["{}"], 1)


@pytest.mark.parametrize("hooks", ["database"], indirect=True)
def test_a_sender_without_the_lease_changes_nothing(hooks):
    ris = hook_of("ris")
    hooks.add(ris)
    with hooks.sending() as lease:
        hooks.save(ris, HookState("e0.1.1"), lease)
    with hooks.sending() as other:
        for change in (
            lambda: hooks.save(ris, HookState("e0.0.0"), lease),
            lambda: hooks.bury("ris", b"{}", lease),
            lambda: hooks.forget_again("ris", lease),
        ):
            with pytest.raises(LeaseLost):
                change()
        hooks.bury("ris", b"{}", other)
    assert (hooks.state("ris").last_id, hooks.dead("ris")) == ("e0.1.1", ["{}"])
