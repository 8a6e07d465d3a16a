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
from streamsrv.store.records import Kind, RecordFormat

OWN_OF_LMDB = {"lock.mdb"}  # locks: it holds nothing
VERBS = ("check", "reindex", "compact", "info", "serve")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of one instance each, whose servers have ended."""
    made = []
    for number in (1, 2):
        server = start_server(tmp_path_factory.mktemp(f"store{number}"), workers=1)
        try:
            client = Client(server.origin)
            assert client.outcomes([file_of(key_of(number, 1, 1), "1", 3_000)])
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
    command = [*executable(), "serve", "--port", str(free_port()), "--data", str(folder), "--workers", "2"]
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


def test_a_missing_segment_is_named_and_its_instances_answer_500(tmp_path):
    """Before a reindex and after it, until its file comes back."""
    files = {key_of(1, 1, number): file_of(key_of(1, 1, number), "1", 40_000) for number in range(1, 7)}
    server = start_server(tmp_path, "--segment-size", "65536", workers=1)
    try:
        client = Client(server.origin)
        for key, body in files.items():
            assert client.outcomes([body]) == {key[2]: True}
        client.close()
    finally:
        server.end()
    data = server.data
    first, second = sorted((data / "segments").iterdir())[:2]
    first.rename(tmp_path / "aside")
    for reindexed in (False, True):
        if reindexed:
            code, said = verb("reindex", "--data", str(data))
            assert (code, "segment 1: its file is missing" in said) == (1, True)
            assert "instances: 6" in said
        for name in ("check", "info"):
            code, said = verb(name, "--data", str(data))
            assert (code, "its file is missing" in said) == (1, True), said
        server = start_server(tmp_path, workers=1)
        try:
            answers = {key: read(server, key) for key in files}
        finally:
            server.end()
        assert "ERROR streamsrv.store segment 1: its file is missing" in server.log.read_text()
        refused = [key for key, (status, _) in answers.items() if status != 200]
        assert 0 < len(refused) < len(files)
        assert {answers[key][0] for key in refused} == {500}
        assert all(answers[key] == (200, body) for key, body in files.items() if key not in refused)
    (tmp_path / "aside").rename(first)
    assert verb("reindex", "--data", str(data))[0] == 0
    assert verb("check", "--data", str(data)) == (0, "all is well\n")
    assert second.exists()
    server = start_server(tmp_path, workers=1)
    try:
        assert {key: read(server, key) for key in files} == {key: (200, body) for key, body in files.items()}
    finally:
        server.end()


def records(data):
    """Kind, offset of the payload and length of each record in the first segment."""
    identity = identity_of(Layout(data))
    form = RecordFormat(identity.secret, identity.fingerprint)
    with (data / "segments" / "00000001.seg").open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        return [
            (step.header.kind, step.payload, step.header.length)
            for step in form.walk(file.fileno(), 1, length)
        ]


def flip(data, offset):
    with (data / "segments" / "00000001.seg").open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_in_the_last_request_hides_nothing_and_brings_nothing_back(tmp_path):
    kept, deleted = key_of(1, 1, 1), key_of(2, 1, 1)
    server = start_server(tmp_path, workers=1)
    try:
        client = Client(server.origin)
        client.outcomes([file_of(deleted, "1", 500)])
        assert client.delete(deleted)
        client.outcomes([file_of(kept, "1", 3_000)])
        client.close()
    finally:
        server.end()
    data = server.data
    _, (tombstone, ids, _), (_, payload, length) = records(data)
    assert tombstone is Kind.TOMBSTONE
    flip(data, ids + 3)
    flip(data, payload + length - 9)
    code, said = verb("reindex", "--data", str(data))
    assert (code, "payload: its checksum is wrong" in said, "instances: 1" in said) == (1, True, True)
    rotten = (data / "segments" / "00000001.seg").read_bytes()
    server = start_server(tmp_path, workers=1)
    try:
        assert read(server, deleted)[0] == 404
        assert read(server, kept)[0] == 500
        client = Client(server.origin)
        client.outcomes([file_of(key_of(3, 1, 1), "1", 500)])
        assert (data / "segments" / "00000001.seg").read_bytes().startswith(rotten)
        assert verb("check", "--data", str(data))[0] == 1
        client.outcomes([file_of(kept, "1", 3_000)])  # it may be stored again
        client.close()
        assert read(server, kept) == (200, file_of(kept, "1", 3_000))
        assert verb("check", "--data", str(data))[0] == 0
    finally:
        server.end()
