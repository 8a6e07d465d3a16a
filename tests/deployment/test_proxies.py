"""conf/nginx.conf, conf/Caddyfile and conf/haproxy.cfg in the real programs, before a real server.

Ports, certificates and names are replaced in the files; nothing else. SOAK=10 sends 2 GB instead of 200 MB.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from conftest import open_files, private_memory, running
from hostile_files import dataset, element, part10
from live_server import ROOT, free_port
from pydicom.data import get_testdata_file

MEGABYTES = 200 * int(os.environ.get("SOAK", "1"))
NAME = "pacs.example.org"
GROWTH = 50_000_000
CT = Path(get_testdata_file("CT_small.dcm"))


def certificate(folder):
    key, chain = folder / "privkey.pem", folder / "fullchain.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN={NAME} "
        f"-addext subjectAltName=DNS:{NAME} -keyout {key} -out {chain}".split(),
        check=True,
        capture_output=True,
    )
    (folder / "certificate.pem").write_bytes(chain.read_bytes() + key.read_bytes())
    return chain


def configured(folder, name, replaced):
    text = (ROOT / "conf" / name).read_text()
    for old, new in replaced.items():
        assert re.search(old, text), f"{name} has no {old}"
        text = re.sub(old, new, text)
    path = folder / name
    path.write_text(text)
    return path


def nginx(folder, port, upstream):
    configuration = configured(
        folder,
        "nginx.conf",
        {
            r"(?m)^\s*listen \[::\]:443 ssl;\n": "",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8943": f"127.0.0.1:{upstream}",
            "/etc/nginx/certificates": str(folder),
        },
    )
    (folder / "temporary").mkdir()
    paths = "".join(
        f"{name}_temp_path {folder}/temporary/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(configuration.read_text().replace("http {", f"http {{ {paths}", 1))
    main = f"daemon off; user root; pid {folder}/nginx.pid; error_log {folder}/error.log;"
    return ["nginx", "-c", str(configuration), "-p", str(folder), "-g", main]


def test_nginx_accepts_the_login_of_the_guide(tmp_path):
    """The `nginx` block of docs/howto/nginx-and-tls.md, in the place that the page names."""
    certificate(tmp_path)
    command = nginx(tmp_path, free_port(), free_port())
    page = (ROOT / "docs" / "howto" / "nginx-and-tls.md").read_text(encoding="utf-8")
    (login,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "users").write_text("anna:{PLAIN}secret\n")
    login = login.replace("/etc/nginx/users", str(tmp_path / "users"))
    configuration = Path(command[2])
    configuration.write_text(configuration.read_text().replace("location / {", f"{login} location / {{", 1))
    done = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def caddy(folder, port, upstream):
    certificates = f"tls {folder}/fullchain.pem {folder}/privkey.pem"
    configuration = configured(
        folder,
        "Caddyfile",
        {
            "(?m)^pacs.example.org {": f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n"
            f"{NAME}:{port} {{\n\tbind 127.0.0.1\n\t{certificates}",
            "127.0.0.1:8943": f"127.0.0.1:{upstream}",
        },
    )
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(configuration)]


def haproxy(folder, port, upstream):
    configuration = configured(
        folder,
        "haproxy.cfg",
        {
            "bind :443": f"bind 127.0.0.1:{port}",
            "/etc/haproxy/certificate.pem": f"{folder}/certificate.pem",
            "127.0.0.1:8943": f"127.0.0.1:{upstream}",
        },
    )
    return ["haproxy", "-db", "-f", str(configuration)]


@dataclass
class Proxy:
    kind: str
    port: int
    chain: Path
    process: subprocess.Popen

    def connect(self, timeout=60):
        context = ssl.create_default_context(cafile=str(self.chain))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout)
        connection = http.client.HTTPSConnection(NAME, self.port, timeout=timeout)
        connection.sock = context.wrap_socket(plain, server_hostname=NAME)
        return connection

    def ask(self, method, path, body=None, **headers):
        connection = self.connect()
        connection.request(
            method, path, body, {name.replace("_", "-"): text for name, text in headers.items()}
        )
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {name.lower(): text for name, text in answer.headers.items()}, content

    def curl(self, *arguments):
        resolved = f"{NAME}:{self.port}:127.0.0.1"
        return subprocess.run(
            ["curl", "-sS", "--cacert", self.chain, "--resolve", resolved, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )

    @property
    def url(self):
        return f"https://{NAME}:{self.port}"


@pytest.fixture(scope="module", params=[nginx, caddy, haproxy], ids=lambda make: make.__name__)
def proxy(request, behind, tmp_path_factory):
    make = request.param
    folder, port = tmp_path_factory.mktemp(make.__name__), free_port()
    chain = certificate(folder)
    upstream = behind.origin.rpartition(":")[2]
    command = make(folder, port, upstream)
    assert shutil.which(command[0]), f"{command[0]} is not installed"
    environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)}

    def answers():
        try:
            found = Proxy(make.__name__, port, chain, None).ask("GET", "/health/ready")
        except OSError:
            return False
        return found[0] == 200

    with running(command, answers, folder / "log", env=environment, cwd=folder) as process:
        yield Proxy(make.__name__, port, chain, process)


BLOCK = bytes(range(250)) * 4_000


def large_instance():
    """The chunks of a Part 10 file whose pixel data have MEGABYTES."""
    beginning = part10(dataset()) + element(0x7FE00010, "OB", b"", MEGABYTES * len(BLOCK))
    return [beginning, *[BLOCK] * MEGABYTES]


def most_of(process, done):
    """The largest memory and the longest written files of a program until `done` is set."""
    memory, files = 0, {}
    while not done.wait(0.02):
        memory = max(memory, private_memory(process.pid))
        for path, length in open_files(process.pid).items():
            files[path] = max(files.get(path, 0), length)
    return memory, files


def test_large_bodies_stream_both_ways(proxy):
    """In bounded memory, and without a temporary file."""
    chunks = large_instance()
    sent, length = hashlib.sha256(), sum(map(len, chunks))
    for chunk in chunks:
        sent.update(chunk)
    before = private_memory(proxy.process.pid)
    done, most = threading.Event(), []
    watch = threading.Thread(target=lambda: most.append(most_of(proxy.process, done)))
    watch.start()
    try:
        connection = proxy.connect(timeout=300)
        connection.putrequest("POST", "/v2/studies")
        connection.putheader("Content-Type", "application/dicom")
        connection.putheader("Accept", "application/dicom+json")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        for chunk in chunks:
            connection.send(chunk)
        answer = connection.getresponse()
        response = json.loads(answer.read())
        assert answer.status == 200, response
        url = response["00081199"]["Value"][0]["00081190"]["Value"][0]
        assert url.startswith(f"{proxy.url}/v2/studies/"), url
        connection.request(
            "GET", url.removeprefix(proxy.url), headers={"Accept": "application/dicom; transfer-syntax=*"}
        )
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(length))
        found = hashlib.sha256()
        while chunk := answer.read(1 << 20):
            found.update(chunk)
        connection.close()
    finally:
        done.set()
        watch.join()
    ((memory, files),) = most
    print(f"{proxy.kind}: {(memory - before) / 1e6:.0f} MB more for {length / 1e6:.0f} MB in and out")
    assert memory - before < GROWTH
    assert all(size < 1_000_000 for size in files.values()), files
    assert found.digest() == sent.digest()


def test_range_urls_and_conditions(proxy):
    proxy.ask("POST", "/v2/studies", CT.read_bytes(), Content_Type="application/dicom")
    status, _, body = proxy.ask("GET", "/v2/instances?SOPInstanceUID=" + pydicom.dcmread(CT).SOPInstanceUID)
    (found,) = json.loads(body)
    url = found["00081190"]["Value"][0]
    assert (status, url.startswith(f"{proxy.url}/v2/studies/")) == (200, True)
    path = url.removeprefix(proxy.url)
    accept = "application/dicom; transfer-syntax=*"
    status, headers, whole = proxy.ask("GET", path, Accept=accept)
    assert (status, whole) == (200, CT.read_bytes())
    status, part_headers, part = proxy.ask("GET", path, Accept=accept, Range="bytes=100-299")
    assert (status, part) == (206, whole[100:300])
    assert part_headers["content-range"] == f"bytes 100-299/{len(whole)}"
    assert proxy.ask("GET", path, Accept=accept, If_None_Match=headers["etag"])[0] == 304
    assert proxy.ask("HEAD", path, Accept=accept)[1]["content-length"] == str(len(whole))


def test_curl_by_http_2_and_with_100_continue(proxy, tmp_path):
    accept = "Accept: application/dicom+json"
    version = proxy.curl(
        "-o",
        tmp_path / "found",
        "-w",
        "%{http_version} %{http_code}",
        "-H",
        accept,
        f"{proxy.url}/v2/studies",
    )
    assert version.stdout in ("2 200", "2 204")
    form = f"file1=@{CT};type=application/dicom"
    kind = 'Content-Type: multipart/related; type="application/dicom"'
    stored = proxy.curl(
        "-w",
        "%{http_code}",
        "-o",
        tmp_path / "stored",
        "--http1.1",
        "-X",
        "POST",
        "-H",
        kind,
        "-H",
        accept,
        "-H",
        "Expect: 100-continue",
        "--form",
        form,
        f"{proxy.url}/v2/studies",
    )
    assert stored.stdout in ("200", "409")


def test_an_unknown_name_is_refused(proxy, behind):
    """The name that the user typed reaches the server."""
    connection = proxy.connect()
    connection.request("GET", "/v2/studies", headers={"Host": "rebound.example"})
    answer = connection.getresponse()
    # Caddy answers for its own names only, with nothing for others.
    assert answer.status in (403, 421) or (proxy.kind, answer.read()) == ("caddy", b"")
    connection.close()
    status, _, body = proxy.ask("GET", "/v2/studies/1.2.3/metadata")
    assert status == 404, body
    time.sleep(0.2)
    assert "127.0.0.1" in behind.log.read_text()
