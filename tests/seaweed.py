"""SeaweedFS on this machine: a storage server, and S3 gateways in processes of their own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from live_server import free_port
from obstore import put
from obstore.store import S3Store

ADMIN, NODE = ("admin", "secret of the admin"), ("node", "secret of the node")
BUCKET = "archive"


def program():
    return shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def variables(endpoint, pair=NODE):
    """The environment of a node, as the tools of AWS take it."""
    key, secret = pair
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    return keys | {"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": endpoint}


def identity(pair, *actions):
    keys = {"accessKey": pair[0], "secretKey": pair[1]}
    return {"name": pair[0], "credentials": [keys], "actions": actions}


def identities():
    """The settings of a gateway with an administrator and a node."""
    rights = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]
    return {"identities": [identity(ADMIN, "Admin", "Read", "Write", "List"), identity(NODE, *rights)]}


def store_of(endpoint, pair, bucket):
    """A client of a gateway."""
    key, secret = pair
    keys = {"access_key_id": key, "secret_access_key": secret, "region": "x"}
    return S3Store(bucket, endpoint=endpoint, client_options={"allow_http": True}, **keys)


def free_pair():
    """A port whose port for gRPC, 10,000 higher, is as free as the others: none of them is in use."""
    while (port := free_port()) >= 50_000:
        pass
    return port


def listens(process, port):
    """Whether this process does, and no other one."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {
        f"socket:[{each[9]}]" for each in lines if each[3] == "0A" and each[1].endswith(f":{port:04X}")
    }
    return any(os.readlink(each) in listening for each in Path(f"/proc/{process.pid}/fd").iterdir())


class Seaweed:
    """One storage server. `gateway()` starts an S3 gateway, which tests may kill and stop."""

    def __init__(self, folder, volumes=30):
        """`volumes` of 64 MB."""
        self._folder = folder
        self._processes, self._ports = [], []
        self._config = folder / "s3.json"
        self._config.write_text(json.dumps(identities()))
        while not self._server(volumes):  # another run has taken one of its ports meanwhile
            pass

    def _server(self, volumes):
        """Whether it works."""
        self.filer, self.master, volume = given = [free_pair() for _ in range(3)]
        self._ports += given
        (folder := self._folder / f"data-{self.filer}").mkdir()
        ports = [f"-master.port={self.master}", f"-volume.port={volume}", f"-filer.port={self.filer}"]
        small = [f"-volume.max={volumes}", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer"]
        process = self._start("server", *here, *ports, *small)
        return self._answers(process, self.filer, "server.log")

    def _start(self, verb, *flags):
        limits = {"GOMEMLIMIT": "300MiB", "GOMAXPROCS": "2"}
        with (self._folder / f"{verb}.log").open("ab") as log:
            process = subprocess.Popen(
                [program(), verb, *flags],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, **limits},
            )
        self._processes.append(process)
        return process

    def _answers(self, process, port, log):
        """False if it could not listen on a port."""
        until = time.monotonic() + 60
        while process.poll() is None:
            with contextlib.suppress(OSError):
                if listens(process, port):
                    with contextlib.suppress(urllib.error.HTTPError):
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                    return True
            assert time.monotonic() < until, (self._folder / log).read_text()[-2000:]
            time.sleep(0.05)
        text = (self._folder / log).read_text()
        assert "address already in use" in text, text[-2000:]
        return False

    def gateway(self, port=None):
        """(process, endpoint)"""
        while not (started := self._gateway(port or free_pair())):
            pass
        return started

    def _gateway(self, port):
        self._ports.append(port)
        flags = [f"-port={port}", f"-filer=127.0.0.1:{self.filer}", f"-config={self._config}"]
        flags += ["-port.iceberg=0", "-port.lance=0", "-ip.bind=127.0.0.1"]
        process = self._start("s3", *flags)
        return self._answers(process, port, "s3.log") and (process, f"http://127.0.0.1:{port}")

    def open_bucket(self):
        """Start the gateway that tests share, and make the bucket."""
        _, self.endpoint = self.gateway()
        put(self.store(ADMIN, BUCKET), "made", b"")

    def store(self, pair, bucket, endpoint=""):
        return store_of(endpoint or self.endpoint, pair, bucket)

    def hidden(self):
        """The multipart uploads that have begun and not ended: name and number of parts."""
        folder = f"/buckets/{BUCKET}/.uploads/"
        return {name: len(self._names(f"{folder}{name}/")) for name in self._names(folder)}

    def _names(self, folder):
        url = f"http://127.0.0.1:{self.filer}{folder}?limit=100"
        asked = urllib.request.Request(url, headers={"Accept": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return [Path(entry["FullPath"]).name for entry in json.load(answer)["Entries"] or ()]
        except urllib.error.HTTPError:
            return []

    def end(self):
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        for port in self._ports:  # and that of gRPC
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink()
            for path in Path("/tmp").glob(f"seaweedfs-*-{port + 10_000}.sock"):
                path.unlink()
