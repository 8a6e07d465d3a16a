"""Programs that serve or carry streamsrv in production: proxies, systemd, containers. `make test-deployment`
runs these tests; they need root and the programs that `.ci/run` installs."""

import os
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import Chromium, found
from library_page import build
from live_server import environment, executable, free_port, start_server
from ohif_window import Viewer


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """A server that trusts the proxies of this machine, and answers for every name."""
    running = start_server(
        tmp_path_factory.mktemp("behind"),
        "--trusted-proxies",
        "127.0.0.1",
        "--allowed-hosts",
        "pacs.example.org",
        workers=1,
        variables={"STREAMSRV_MIN_FREE": "0"},
    )
    yield running
    running.end()


@pytest.fixture(scope="session")
def ohif(tmp_path_factory):
    """A folder for a server, with OHIF in its data, which npm has downloaded."""
    folder = tmp_path_factory.mktemp("ohif")
    command = [*executable(), "viewer", "install", "--data", str(folder / "data")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The folder of a page with viewers that are not OHIF, which npm has downloaded."""
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def chromium():
    if found() is None:
        pytest.skip("no Chromium is installed")


@pytest.fixture(scope="module")
def browser(chromium):
    started = Chromium()
    yield started
    started.close()


@pytest.fixture(scope="session")
def viewer(chromium):
    """A window that all tests of viewers use one after the other, so that its cache keeps their code."""
    started = Viewer()
    yield started
    started.close()


SLIM = ("doc", "locale", "man")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PIP_CONFIGURATIONS = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")


@pytest.fixture(scope="session")
def debian(tmp_path_factory):
    """A Debian root like the slim image of Debian, as a tar archive. IMAGE_ARCH=arm64 makes it for that
    machine: the kernel then needs an emulator (qemu-user-static and binfmt_misc)."""
    archive = tmp_path_factory.mktemp("debian") / "base.tar"
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in SLIM]
    clean = '--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*'
    fast = '--customize-hook=echo force-unsafe-io >"$1"/etc/dpkg/dpkg.cfg.d/speedup'
    made_for = [f"--architectures={each}" for each in (os.environ.get("IMAGE_ARCH"),) if each]
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        *made_for,
        *excluded,
        clean,
        fast,
        "trixie",
        str(archive),
    ]
    subprocess.run(command, check=True, capture_output=True)
    yield archive
    archive.unlink()


def pip_configuration(certificates):
    """The text of a pip.conf with the index of this machine and a path of certificates."""
    lines = ["[global]", f"cert = {certificates}"]
    for path in map(os.path.expanduser, PIP_CONFIGURATIONS):
        if os.path.exists(path):
            found = Path(path).read_text().splitlines()
            lines += [line for line in found if line.split("=")[0].strip().endswith("index-url")]
    lines += [
        f"{name[4:].lower().replace('_', '-')} = {value}"
        for name, value in os.environ.items()
        if name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def running(command, answers, log, **options):
    """A program in the foreground, from its first answer to its end. `answers` is called until it is true."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    try:
        until = time.monotonic() + 30
        while not answers():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


NGINX = """
daemon off; pid FOLDER/nginx.pid; error_log FOLDER/error.log; USER
events {}
http {
  client_body_temp_path FOLDER/1; proxy_temp_path FOLDER/2; fastcgi_temp_path FOLDER/3;
  uwsgi_temp_path FOLDER/4; scgi_temp_path FOLDER/5;
  access_log off;
  types {text/html html; text/javascript js; application/wasm wasm;}
  server {
    listen 127.0.0.1:PORT TLS;
    root FILES;
    location ~ ^/(v2|session)(/|$) {proxy_pass UPSTREAM; proxy_set_header Host $http_host;}
  }
}
"""


@contextmanager
def same_origin(folder, files, server, pair=None):
    """The origin of an nginx with the files, and with the DICOMweb service of the server and its sessions.
    It has TLS with the certificate of a pair."""
    folder.mkdir()
    port = free_port()
    text = NGINX.replace("FOLDER", str(folder)).replace("FILES", str(files))
    text = text.replace("PORT", str(port)).replace("UPSTREAM", server.origin).replace("USER", "user root;")
    tls = f"ssl; ssl_certificate {pair.certificate}; ssl_certificate_key {pair.key}" if pair else ""
    (folder / "nginx.conf").write_text(text.replace("TLS", tls))
    context = pair.context() if pair else None
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]
    origin = f"{'https' if pair else 'http'}://127.0.0.1:{port}"

    def answers():
        try:
            return urllib.request.urlopen(f"{origin}/library.html", timeout=5, context=context).status == 200
        except OSError:
            return False

    with running(command, answers, folder / "log"):
        yield origin


def family_of(pid):
    """The process and its descendants."""
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [pid, *(each for child in children.read().split() for each in family_of(int(child)))]


def private_memory(pid):
    """Bytes that the processes hold alone, without the page cache."""
    total = 0
    for each in family_of(pid):
        with open(f"/proc/{each}/status") as status:
            total += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    return total * 1024


def open_files(pid):
    """Paths of the regular files that the processes have open for writing, and their lengths."""
    found = {}
    for each in family_of(pid):
        for name in os.listdir(f"/proc/{each}/fd"):
            path = os.readlink(f"/proc/{each}/fd/{name}")
            if path.startswith("/") and os.path.isfile(f"/proc/{each}/fd/{name}"):
                found[path] = os.stat(f"/proc/{each}/fd/{name}").st_size
    return found
