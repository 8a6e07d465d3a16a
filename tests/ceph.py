"""Ceph on this machine: a monitor, one storage daemon whose disk is a file, and S3 gateways (RGW)."""

import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from live_server import free_port
from seaweed import ADMIN, BUCKET, NODE, store_of

OWNER = "archive"
SETTINGS = """
[global]
fsid = FSID
mon host = MONITOR
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
run dir = FOLDER
admin socket = FOLDER/$name.$pid.asok
pid file = FOLDER/$name.pid
log file = FOLDER/$name.log
crash dir = FOLDER
keyring = FOLDER/keyring
mon data = FOLDER/mon
osd data = FOLDER/osd
osd objectstore = bluestore
osd class dir = CLASSES
bluestore block size = 8589934592
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon warn on pool no redundancy = false
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
rgw thread pool size = 64
"""


class Ceph:
    """As `Seaweed`: `gateway()` starts an S3 gateway, which tests may kill and stop."""

    def __init__(self, folder):
        self._folder, self._processes = folder, []
        ports = free_port(), free_port()
        monitor = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        fsid, disk = str(uuid.uuid4()), str(uuid.uuid4())
        (classes,) = Path("/usr/lib").glob("*/rados-classes")  # Debian's default is a path without its begin
        values = {"FSID": fsid, "MONITOR": monitor, "FOLDER": folder, "CLASSES": classes}
        settings = SETTINGS
        for name, value in values.items():
            settings = settings.replace(name, str(value))
        (folder / "ceph.conf").write_text(settings)
        try:
            self._begin(monitor, fsid, disk)
        except BaseException:
            self.end()
            raise

    def _begin(self, monitor, fsid, disk):
        folder = self._folder
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        self._run("monmaptool", "--create", "--addv", "a", monitor, "--fsid", fsid, folder / "monmap")
        self._run("ceph-mon", "--mkfs", "--id", "a", "--monmap", folder / "monmap")
        self._start("ceph-mon", "--id", "a")
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", disk)
        self._start("ceph-osd", "--id", "0")
        for words in (["user", "create", "--display-name", OWNER], ["key", "create"]):
            key, secret = ADMIN if words[0] == "user" else NODE
            keys = ("--access-key", key, "--secret-key", secret)
            self._run("radosgw-admin", *words, "--uid", OWNER, *keys)

    def _command(self, program, *words):
        return [program, "--conf", str(self._folder / "ceph.conf"), *map(str, words)]

    def _run(self, *words):
        subprocess.run(self._command(*words), check=True, capture_output=True, timeout=120, cwd=self._folder)

    def _start(self, *words):
        with (self._folder / f"{words[0]}.output").open("ab") as log:
            process = subprocess.Popen(
                self._command(*words, "--foreground"), stdout=log, stderr=log, cwd=self._folder
            )
        self._processes.append(process)
        return process

    def gateway(self, port=None):
        """(process, endpoint)"""
        port = port or free_port()
        front = f"beast endpoint=127.0.0.1:{port}"
        process = self._start("radosgw", "--name", f"client.rgw.{port}", "--rgw-frontends", front)
        endpoint = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while not answers(endpoint):
            assert process.poll() is None, "radosgw"
            assert time.monotonic() < until, "radosgw"
            time.sleep(0.1)
        return process, endpoint

    def open_bucket(self):
        """Start the gateway that tests share, and make the bucket."""
        _, self.endpoint = self.gateway()
        self.create(BUCKET)

    def create(self, bucket):
        """With curl, which signs requests."""
        owner = ("--aws-sigv4", "aws:amz:eu-central-1:s3", "--user", ":".join(ADMIN))
        command = ["curl", "--fail", "--silent", "--show-error", *owner, "--request", "PUT"]
        subprocess.run([*command, f"{self.endpoint}/{bucket}"], check=True, capture_output=True, timeout=60)

    def store(self, pair, bucket, endpoint=""):
        return store_of(endpoint or self.endpoint, pair, bucket)

    def end(self):
        for process in reversed(self._processes):
            process.kill()
            process.wait()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
