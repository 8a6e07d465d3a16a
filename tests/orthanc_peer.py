"""Orthanc as a DIMSE peer of a server. Its AE title is ORTHANC; it names the server `streamsrv`."""

import json
import socket
import subprocess
import urllib.request

from kill_world import waited
from live_server import free_port


class Orthanc:
    def __init__(self, folder, port, dicom=None):
        """`port` is that of the server, `dicom` its own one."""
        self._http = free_port()
        data = str(folder / "orthanc")
        settings = {"DicomPort": dicom or free_port(), "HttpPort": self._http, "DicomAet": "ORTHANC"}
        settings |= {"StorageDirectory": data, "IndexDirectory": data}
        settings["DicomModalities"] = {"streamsrv": ["STREAMSRV", "127.0.0.1", port]}
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen(["Orthanc", "orthanc.json"], cwd=folder, stdout=log, stderr=log)

    def __enter__(self):
        waited(self._listens, "Orthanc")
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._http)) == 0

    def get(self, path):
        return self._json(f"http://127.0.0.1:{self._http}{path}")

    def post(self, path, body):
        """`body` is bytes, or a value for JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._json(f"http://127.0.0.1:{self._http}{path}", content)

    def _json(self, url, body=None):
        with urllib.request.urlopen(url, body) as answer:
            return json.loads(answer.read())
