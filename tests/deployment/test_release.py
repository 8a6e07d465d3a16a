"""The wheel and the source archive: the same bytes from each build of one source, and a server from each."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
from urllib.parse import urljoin

import pytest
from check_release import tracked
from live_server import ROOT, start_server

from streamsrv import samples

SOME_TESTS = ("tests/test_docs.py", "tests/test_samples.py")
PAGE = "text/html,application/xhtml+xml,*/*;q=0.8"


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder, **variables):
    """The archives that `make wheel` makes in a source folder, with the programs of this environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ("make", "--old-file=pyproject.toml", "wheel", f"VENV={sys.prefix}")
    run(*command, cwd=folder, env=environment | variables)
    return {path.name: path for path in (folder / "dist").iterdir()}


def digests(archives):
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in archives.items()}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Two copies of the files under version control. Paths, modes, times and the order on the disk differ."""
    names = sorted(name for name in tracked(ROOT) if (ROOT / name).is_file())
    folders = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two") / "deeper"]
    for folder, order, mode in zip(folders, (names, names[::-1]), (0o644, 0o600), strict=True):
        for number, name in enumerate(order):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
            path.chmod(mode)
            os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
    return folders


@pytest.fixture(scope="module")
def archives(copies):
    return built(copies[0])


def test_two_builds_have_the_same_bytes(copies, archives):
    again = built(copies[1], TZ="Pacific/Auckland", LC_ALL="C", PYTHONHASHSEED="7")
    assert digests(again) == digests(archives)


@pytest.fixture(scope="module")
def unpacked(archives, tmp_path_factory):
    (path,) = (path for name, path in archives.items() if name.endswith(".tar.gz"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / path.name.removesuffix(".tar.gz")


def test_the_source_archive_builds_the_same_archives(archives, unpacked):
    assert digests(built(unpacked)) == digests(archives)


def test_the_source_archive_passes_tests(unpacked):
    script = "import streamsrv; print(streamsrv.__file__)"
    # Two tests need sample files beside the project. In CI a skip fails, but not in this folder.
    variables = {name: value for name, value in os.environ.items() if name != "CI"}
    variables["PYTHONPATH"] = f"{unpacked}{os.pathsep}{unpacked / 'codecs'}"
    assert run(sys.executable, "-c", script, cwd=unpacked, env=variables).startswith(str(unpacked))
    found = run(sys.executable, "-m", "pytest", "-q", *SOME_TESTS, cwd=unpacked, env=variables)
    assert " passed" in found


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The command that pipx installs from the wheel in a fresh home."""
    (wheel,) = (path for name, path in archives.items() if name.endswith(".whl"))
    home = tmp_path_factory.mktemp("home")
    variables = {"HOME": str(home), "PIP_CACHE_DIR": os.path.expanduser("~/.cache/pip")}
    for name in ("/etc/pip.conf", "~/.config/pip/pip.conf"):
        if os.path.exists(os.path.expanduser(name)):
            variables["PIP_CONFIG_FILE"] = os.path.expanduser(name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPX")}
    run(sys.executable, "-m", "pipx", "install", wheel, cwd=home, env=environment | variables)
    return home / ".local" / "bin" / "streamsrv"


def test_the_wheel_serves_from_a_fresh_home(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMSRV", str(installed))
    assert "serve" in run(installed, "--help", cwd=tmp_path)
    run(installed, "samples", "samples", cwd=tmp_path)
    server = start_server(tmp_path / "server", workers=1)
    try:
        run(installed, "store", "samples", "--url", server.url, cwd=tmp_path)
        for sample in samples.SAMPLES:
            place = f"series/{sample.series_uid}/instances/{sample.instance_uid}"
            request = urllib.request.Request(f"{server.url}/studies/{samples.STUDY_UID}/{place}")
            request.add_header("Accept", "application/dicom")
            with urllib.request.urlopen(request) as answer:
                assert answer.read() == (tmp_path / "samples" / sample.file_name).read_bytes()
        request = urllib.request.Request(f"{server.origin}/", headers={"Accept": PAGE})
        with urllib.request.urlopen(request) as answer:
            (script,) = re.findall(r'<script [^>]*src="([^"]+)"', answer.read().decode())
        with urllib.request.urlopen(urljoin(request.full_url, script)) as answer:
            assert (
                answer.read() == (ROOT / "streamsrv/web/pages/files" / script.rpartition("/")[2]).read_bytes()
            )
    finally:
        server.end()


def test_arm64_needs_no_compiler():
    """Every package that the server needs has a wheel for it and Debian's Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    platforms = [f"--platform=manylinux_2_{number}_aarch64" for number in (28, 27, 17)]
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed")
    run(
        *(*command, "--target=unused", *platforms, "--platform=manylinux2014_aarch64"),
        *("--python-version=3.13", "--only-binary=:all:", *project["dependencies"]),
    )
