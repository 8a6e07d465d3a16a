"""A store on a read-only file system: it can be served read-only, checked and told about; all else says why
not."""

import os
import shutil
import subprocess

import pytest
from live_server import environment, executable, start_server
from small_client import Client, file_of, key_of


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """The folder of a store in a small file system that is read-only, and an instance in it."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    place = tmp_path_factory.mktemp("disk")
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    server = start_server(place, workers=1)
    client = Client(server.origin)
    key = key_of(1, 1, 1)
    body = file_of(key, 1, 200_000)
    assert client.store([body]).status == 200
    client.close()
    assert server.end() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    yield server.data, key, body
    subprocess.run(["umount", str(place)], check=True)


def ran(*words):
    return subprocess.run(
        [*executable(), *words], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


def test_a_read_only_mount(mounted, tmp_path):
    data, key, body = mounted
    link = tmp_path / "served"
    link.mkdir()
    (link / "data").symlink_to(data)
    server = start_server(link, "--read-only")
    client = Client(server.origin)
    try:
        assert client.read(key) == body
        assert client.keys() == {key}
        assert client.ask("DELETE", f"/studies/{key[0]}").status == 403
        assert ran("check", "--data", str(data)).stdout == "all is well\n"
        assert "instances: 1" in ran("info", "--data", str(data)).stdout
        assert ran("backup", str(tmp_path / "backup"), "--data", str(data)).returncode == 0
        assert ran("restore", str(tmp_path / "backup"), "--data", str(tmp_path / "new")).returncode == 0
    finally:
        client.close()
        assert server.end() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    "words",
    [("serve", "--port", "0", "--workers", "1"), ("compact",), ("reindex",)],
    ids=lambda words: words[0],
)
def test_what_would_write_says_why_it_does_not(mounted, words):
    data, *_ = mounted
    done = ran(*words, "--data", str(data))
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr
    assert "--read-only" in done.stderr
    assert "Traceback" not in done.stderr
