"""A small DICOMweb client on one connection, for tests that store, read and delete thousands of times,
and instances to store."""

import http.client
import json
import random
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

from hostile_files import element, instance, padded

ALREADY_STORED = 45070
TIMEOUT = 30.0
BOUNDARY = "between-the-parts"
WHOLE = "application/dicom; transfer-syntax=*"
LOST = (http.client.HTTPException, OSError)


class NotSent(Exception):
    """There was nobody to send the request to."""


def key_of(study, series, number):
    """(study, series, instance) UIDs."""
    return f"1.2.{study}", f"1.2.{study}.{series}", f"1.2.{study}.{series}.{number}"


def file_of(key, version, size):
    """A Part 10 file of its key and version: both can be found by a search, and its pixels are random."""
    study, series, uid = key
    rows = max(size // 128, 1)
    pixels = random.Random(f"{key} {version}").randbytes(rows * 128)
    more = {
        0x00080020: element(0x00080020, "DA", b"20240102"),
        0x00080060: element(0x00080060, "CS", b"CT"),
        0x00081030: element(0x00081030, "LO", padded(f"study {version}", b" ")),
        0x0008103E: element(0x0008103E, "LO", padded(f"series {version}", b" ")),
        0x00100020: element(0x00100020, "LO", padded(f"ID {study}", b" ")),
        0x00200013: element(0x00200013, "IS", padded(str(version), b" ")),
        0x00280002: element(0x00280002, "US", struct.pack("<H", 1)),
        0x00280010: element(0x00280010, "US", struct.pack("<H", rows)),
        0x00280011: element(0x00280011, "US", struct.pack("<H", 64)),
        0x00280100: element(0x00280100, "US", struct.pack("<H", 16)),
        0x7FE00010: element(0x7FE00010, "OW", pixels),
    }
    return instance(more, instance=uid, study=study, series=series)


def multipart(files):
    parts = [
        f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + b"\r\n" for file in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body) if self.body else []


class Client:
    """Connects when it has to, and again after the connection was lost, which one of LOST tells. `source` is
    the address from which it does."""

    def __init__(self, origin, source=None):
        self.address = urlsplit(origin).netloc
        self._source = source and (source, 0)
        self._connection = None

    def close(self):
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def ask(self, method, path, body=None, **headers):
        if self._connection is None:
            self._connection = self._connected()
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, f"/v2{path}", body, fields)
            with self._connection.getresponse() as answer:
                reply = Reply(answer.status, answer.headers, answer.read())
        except Exception:
            self.close()
            raise
        if reply.headers.get("Connection", "").lower() == "close":
            self.close()
        return reply

    def _connected(self):
        connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT, source_address=self._source)
        try:
            connection.connect()
        except ConnectionRefusedError as error:
            raise NotSent from error
        return connection

    def store(self, files):
        """The reply to a store transaction; several files as multipart, one as it is."""
        if len(files) == 1:
            return self.ask("POST", "/studies", files[0], Content_Type="application/dicom")
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        return self.ask("POST", "/studies", multipart(files), Content_Type=kind)

    def outcomes(self, files):
        """SOP instance UID -> whether it was stored, else it was refused as stored already."""
        reply = self.store(files)
        assert reply.status in (200, 202, 409), (reply.status, reply.body)
        told = reply.json()
        good = told.get("00081199", {}).get("Value", [])
        bad = told.get("00081198", {}).get("Value", [])
        assert all(item["00081197"]["Value"] == [ALREADY_STORED] for item in bad), told
        found = [(item["00081155"]["Value"][0], item in good) for item in good + bad]
        assert len(found) == len(files), told
        return dict(found)

    def read(self, key):
        """The instance's bytes, None if it is not there."""
        reply = self.ask("GET", path_of(key), Accept=WHOLE)
        assert reply.status in (200, 404), (reply.status, reply.body)
        return reply.body if reply.status == 200 else None

    def delete(self, target):
        """Whether anything was there."""
        reply = self.ask("DELETE", path_of(target))
        assert reply.status in (204, 404), (reply.status, reply.body)
        return reply.status == 204

    def search(self, path):
        reply = self.ask("GET", path)
        assert reply.status in (200, 204), (reply.status, reply.body)
        return reply.json()

    def keys(self):
        """Of all instances, by a search."""
        found = self.search("/instances?limit=5000")
        return {
            tuple(result[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")) for result in found
        }

    def answers(self):
        """Everything that is told of the store: searches at each level, metadata and instances."""
        keys = sorted(self.keys())
        paths = [f"/{level}?includefield=all&limit=5000" for level in ("studies", "series", "instances")]
        told = {path: self.search(path) for path in paths}
        told |= {path_of(key): (self.read(key), self._etag(key)) for key in keys}
        for study in sorted({key[0] for key in keys}):
            told[study] = self.ask("GET", f"/studies/{study}/metadata").json()
        return told

    def _etag(self, key):
        return self.ask("HEAD", path_of(key), Accept=WHOLE).headers["ETag"]


def path_of(target):
    """The URL path of a study, series or instance."""
    return "".join(
        f"/{level}/{uid}" for level, uid in zip(("studies", "series", "instances"), target, strict=False)
    )
