"""Stores that released versions made (tests/stores/) are opened, served, changed and indexed again."""

import io
import json
import lzma
import tarfile
from contextlib import contextmanager

import pytest
from kill_world import verb
from live_server import start_server
from small_client import Client, key_of
from stores.make import archive_of, facts, flat

from streamsrv import __version__

ARCHIVES = sorted(archive_of(__version__).parent.glob("*.tar.xz"))


def test_this_version_has_its_store():
    assert archive_of(__version__) in ARCHIVES, "run python tests/stores/make.py before the release"


@contextmanager
def served(folder):
    server = start_server(folder, workers=1)
    client = Client(server.origin)
    try:
        yield client
    finally:
        client.close()
        code = server.end()
    assert code == 0


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def test_the_store_of_a_release(archive, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive.read_bytes()))) as file:
        file.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "expected.json").read_text())
    data = str(tmp_path / "data")
    code, said = verb("check", "--data", data)
    if "run reindex" in said:  # the index has an older form, which docs/upgrading.md allows
        assert code == 1
        assert verb("reindex", "--data", data)[0] == 0
    assert verb("check", "--data", data) == (0, "all is well\n")
    with served(tmp_path) as client:
        assert facts(client) == expected
        fresh = key_of(8, 1, 1)
        assert client.store([flat(fresh, 1)]).status == 200
        assert client.read(fresh) == flat(fresh, 1)
        assert client.delete(key_of(2, 1, 1))
        changed = facts(client)
    target, new = str(tmp_path / "backup"), tmp_path / "again" / "data"
    assert verb("backup", target, "--data", data)[0] == 0
    code, said = verb("reindex", "--data", data)
    assert (code, said.splitlines()[-1]) == (0, "all is well"), said
    assert verb("check", "--data", data) == (0, "all is well\n")
    assert verb("restore", target, "--data", str(new))[0] == 0
    with served(tmp_path / "again") as client:
        assert facts(client) == changed
