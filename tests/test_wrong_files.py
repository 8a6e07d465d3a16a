"""A folder with a file that does not belong there: every verb and the server refuse it with a sentence, and
nothing in it changes."""

import os
import shutil
import subprocess

import pytest
from kill_world import verb
from live_server import END_WITHIN, environment, executable, free_port, start_server
from small_client import WHOLE, Client, file_of, key_of, path_of

from streamsrv.store.folder import Layout, identity_of
from streamsrv.store.segments.records import RecordFormat, RecordKind

OWN_OF_LMDB = {"lock.mdb"}  # locks: it holds nothing
VERBS = ("check", "reindex", "compact", "info", "serve")


DELETED = key_of(9, 1, 1)
FILES = {key_of(1, 1, number): file_of(key_of(1, 1, number), "1", 40_000) for number in range(1, 6)}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One store with a few segments and a deleted instance, and one of one instance; their servers have
    ended."""
    made = []
    for files in (FILES, {DELETED: file_of(DELETED, "2", 500)}):
        server = start_server(tmp_path_factory.mktemp("store"), "--segment-size", "65536", workers=1)
        try:
            client = Client(server.origin)
            if files is FILES:
                client.outcomes([file_of(DELETED, "1", 500)])
                assert client.delete(DELETED)
            for body in files.values():
                client.outcomes([body])
            client.close()
        finally:
            server.end()
        made.append(server.data)
    return made


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in OWN_OF_LMDB
    }


def run(name, folder):
    """(exit code, words) of a verb or the server."""
    if name != "serve":
        return verb(name, "--data", str(folder))
    command = [*executable(), "serve", "--port", str(free_port()), "--data", str(folder), "--workers", "1"]
    ended = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=END_WITHIN, check=False
    )
    return ended.returncode, ended.stderr


def wrong_digit(folder, other):
    text = (folder / "store.toml").read_text()
    place = text.index('secret = "') + 20
    digit = "0" if text[place] != "0" else "1"
    (folder / "store.toml").write_text(text[:place] + digit + text[place + 1 :])
    return "the checksum is wrong"


def another_identity(folder, other):
    shutil.copy(other / "store.toml", folder / "store.toml")
    return "another store"


def another_identity_without_index(folder, other):
    shutil.rmtree(folder / "index")
    return another_identity(folder, other)


def another_index(folder, other):
    shutil.rmtree(folder / "index")
    shutil.copytree(other / "index", folder / "index")
    return "another store"


def another_segment(folder, other):
    shutil.copy(other / "segments" / "00000001.seg", folder / "segments" / "00000005.seg")
    return "another store"


CASES = (wrong_digit, another_identity, another_identity_without_index, another_index, another_segment)


@pytest.mark.parametrize("spoil", CASES)
def test_every_verb_refuses_and_changes_nothing(stores, tmp_path, spoil):
    folder = shutil.copytree(stores[0], tmp_path / "store")
    sentence = spoil(folder, stores[1])
    before = contents(folder)
    for name in VERBS:
        code, said = run(name, folder)
        # Without an index that is said first.
        missing = spoil is another_identity_without_index and name != "reindex"
        assert code == 1, (name, code, said)
        assert ("index" if missing else sentence) in said, (name, said)
        assert "Traceback" not in said
        assert contents(folder) == before, name
    assert os.listdir(folder / "segments")


def read(server, key):
    """(status, body)"""
    client = Client(server.origin)
    try:
        reply = client.ask("GET", path_of(key), Accept=WHOLE)
        return reply.status, reply.body
    finally:
        client.close()


@pytest.fixture
def data(stores, tmp_path):
    """The folder that a server has which is started in tmp_path."""
    return shutil.copytree(stores[0], tmp_path / "data")


def test_a_missing_segment_is_named_and_its_instances_answer_500(data, tmp_path):
    """Before a reindex and after it, until its file comes back."""
    first = data / "segments" / "00000001.seg"
    first.rename(tmp_path / "aside")
    for reindexed in (False, True):
        if reindexed:
            code, said = verb("reindex", "--data", str(data))
            assert (code, "segment 1: its file is missing" in said) == (1, True)
            assert f"instances: {len(FILES)}" in said
        for name in ("check", "info"):
            code, said = verb(name, "--data", str(data))
            assert (code, "its file is missing" in said) == (1, True), said
        server = start_server(tmp_path, workers=1)
        try:
            answers = {key: read(server, key) for key in FILES}
        finally:
            server.end()
        assert "ERROR streamsrv.store segment 1: its file is missing" in server.log.read_text()
        refused = [key for key, (status, _) in answers.items() if status != 200]
        assert 0 < len(refused) < len(FILES)
        assert {answers[key][0] for key in refused} == {500}
        assert all(answers[key] == (200, body) for key, body in FILES.items() if key not in refused)
    (tmp_path / "aside").rename(first)
    code, said = verb("reindex", "--data", str(data))
    assert (code, f"instances: {len(FILES)}" in said) == (0, True)
    assert verb("check", "--data", str(data)) == (0, "all is well\n")


def records(data):
    """RecordKind, segment file, offset of the payload and length of each record."""
    identity = identity_of(Layout(data))
    form = RecordFormat(identity.secret, identity.fingerprint)
    found = []
    for path in sorted((data / "segments").iterdir()):
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            for step in form.walk(file.fileno(), int(path.stem), length):
                found.append((step.header.kind, path, step.payload, step.header.length))
    return found


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_in_the_last_request_hides_nothing_and_brings_nothing_back(data, tmp_path):
    found = records(data)
    (_, path, ids, _) = next(record for record in found if record[0] is RecordKind.TOMBSTONE)
    flip(path, ids + 3)
    (kind, path, payload, length) = found[-1]
    assert kind is RecordKind.INSTANCE
    flip(path, payload + length - 9)
    code, said = verb("reindex", "--data", str(data))
    assert (code, "payload: its checksum is wrong" in said) == (1, True)
    assert f"instances: {len(FILES)}" in said
    rotten, key = path.read_bytes(), list(FILES)[-1]
    server = start_server(tmp_path, workers=1)
    try:
        assert read(server, DELETED)[0] == 404
        assert read(server, key)[0] == 500
        client = Client(server.origin)
        client.outcomes([file_of(key_of(3, 1, 1), "1", 500)])
        assert path.read_bytes().startswith(rotten)
        assert verb("check", "--data", str(data))[0] == 1
        client.outcomes([FILES[key]])  # it may be stored again
        client.close()
        assert {each: read(server, each) for each in FILES} == {each: (200, FILES[each]) for each in FILES}
        assert verb("check", "--data", str(data))[0] == 0
    finally:
        server.end()
