"""TLS of the server before sslyze, and behind nginx with certificates of clients over a Unix socket."""

import json
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import running
from live_server import ROOT, free_port, start_server
from pydicom.data import get_testdata_file
from tls_world import Pair, authority, connection, made

CT = Path(get_testdata_file("CT_small.dcm"))


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_sslyze_finds_the_intermediate_configuration_of_mozilla(tmp_path, key):
    signer = authority(tmp_path)
    pair = made(tmp_path, "server", signer=signer, key=key)
    context = ssl.create_default_context(cafile=str(signer.certificate))
    server = start_server(tmp_path, *pair.flags, workers=1, context=context)
    try:
        words = ["--mozilla_config=intermediate", "--certinfo_ca_file", str(signer.certificate)]
        port = server.origin.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "sslyze", *words, f"localhost:{port}"], capture_output=True, text=True
        )
        found = done.stdout[done.stdout.index("COMPLIANCE AGAINST") :]
        assert re.search(r"localhost:\d+: OK - Compliant", found), found
        assert "Client Renegotiation DoS Attack:   OK - Not vulnerable" in done.stdout
    finally:
        assert server.end() == 0


def test_nginx_asks_for_certificates_and_names_the_user_over_a_unix_socket(tmp_path):
    """The settings of docs/howto/tls.md, in the real program."""
    page = (ROOT / "docs" / "howto" / "tls.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    settings = next(
        each
        for each in re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if "unix_socket" in each
    )
    signer = authority(tmp_path, "clients")
    pair = made(tmp_path, "site")
    shutil.copy(pair.certificate, tmp_path / "fullchain.pem")
    shutil.copy(pair.key, tmp_path / "privkey.pem")
    gateway = made(tmp_path, "gateway", subject="/O=Hospital/CN=gateway-1", signer=signer)
    reader = made(tmp_path, "reader", subject="/O=Hospital/CN=reader", signer=signer)
    stranger = made(tmp_path, "stranger", subject="/CN=gateway-1")
    port, path = free_port(), tmp_path / "proxy.sock"
    (tmp_path / "settings.toml").write_text(settings.replace("/run/streamsrv/proxy.sock", str(path)))
    block = block.replace("/run/streamsrv/proxy.sock", str(path)).replace(
        "listen 443", f"listen 127.0.0.1:{port}"
    )
    block = block.replace("/etc/nginx/certificates", str(tmp_path))
    (tmp_path / "nginx.conf").write_text(f"events {{}}\nhttp {{\n{block}\n}}\n")
    main = f"daemon off; user root; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log;"
    command = ["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-g", main]
    server = start_server(tmp_path, "--config", str(tmp_path / "settings.toml"), workers=1)
    site = Site(port, pair)
    try:
        with running(command, lambda: site.listens(), tmp_path / "log", cwd=tmp_path):
            store = ("POST", "/v2/studies", CT.read_bytes(), {"Content-Type": "application/dicom"})
            assert site.ask(reader, *store)[0] == 403
            status, body = site.ask(gateway, *store)
            assert status == 200
            url = json.loads(body)["00081190"]["Value"][0]
            assert url.startswith("https://pacs.example/v2/studies/")
            assert site.ask(reader, "GET", "/v2/studies")[0] == 200
            # A header of the client is replaced.
            pretended = {**store[3], "X-Forwarded-User": "gateway-1"}
            assert site.ask(reader, *store[:3], pretended)[0] == 403
            for refused in (stranger, None):
                assert site.ask(refused, "GET", "/v2/studies")[0] == 400  # nginx itself
    finally:
        assert server.end() == 0


class Site:
    """nginx on a port of this machine, by the name pacs.example."""

    def __init__(self, port, pair):
        self.origin = f"https://127.0.0.1:{port}"
        self.pair: Pair = pair

    def listens(self):
        try:
            return bool(self.ask(None, "GET", "/health/live"))
        except OSError:
            return False

    def ask(self, client, method, path, body=None, headers=None):
        line = connection(self, self.pair.context(client))
        try:
            line.request(method, path, body, {"Host": "pacs.example"} | (headers or {}))
            answer = line.getresponse()
            return answer.status, answer.read()
        finally:
            line.close()
