"""A server that needs credentials, its keys, and requests with them."""

import base64
import contextlib
import http.client
import io
import os
import subprocess
from unittest.mock import patch

import store_kinds
from live_server import environment, executable
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite

from streamsrv.cli import main
from streamsrv.web.access.grants import grants_of


def command(*words, code=0):
    """Runs `streamsrv` with these words, which has to end with this exit code."""
    named = environment() | store_kinds.variables_for(words)
    words = [*executable(), *map(str, words)]
    done = subprocess.run(words, env=named, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def file_of(made):
    file = DicomBytesIO()
    dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def files_of(grants, kind=""):
    """The paths of the grants in a folder."""
    return [grants.documents.path_of(name) for name in grants.names(kind)]


def within(*words, code=0):
    """As `command`, in this process, which takes less time. Returns its standard output."""
    place = store_kinds.variables_for(words)
    with contextlib.redirect_stdout(io.StringIO()) as output, patch.dict(os.environ, place):
        assert main([*map(str, words)]) == code
    return output.getvalue()


def grants_for(data):
    """Those of the server with this folder."""
    return grants_of(store_kinds.settings_for(data))


def basic(user, key):
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


class Site:
    """`server` is a RunningServer."""

    def __init__(self, server):
        self.server = server
        self.port = int(server.origin.rsplit(":", 1)[1])
        self.opened = []

    def key(self, name, rights, *words):
        return within("key", "add", name, "--data", self.server.data, "--rights", rights, *words)[:-1]

    def change(self, name, *words):
        within("key", "change", name, "--data", self.server.data, *words)

    def revoke(self, name):
        within("key", "revoke", name, "--data", self.server.data)

    def connect(self):
        self.opened.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10))
        return self.opened[-1]

    def close(self):
        while self.opened:
            self.opened.pop().close()

    def ask(self, method="GET", path="/v2/studies", connection=None, body=None, **headers):
        """The answer with its `body`. An underscore in the name of a header is a hyphen."""
        connection = connection or self.connect()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        answer.body = answer.read()
        return answer

    def store(self, key, *contents, status=200):
        parts = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % each for each in contents)
        kind = 'multipart/related; type="application/dicom"; boundary=x'
        answer = self.ask("POST", body=parts + b"--x--\r\n", Content_Type=kind, **bearer(key))
        assert answer.status == status, answer.body
        return answer
