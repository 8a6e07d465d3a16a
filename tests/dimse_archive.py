"""A server with a DIMSE port, and instances to send to it."""

import struct
import urllib.request

from dimse_client import DimseClient
from kill_world import children
from live_server import free_port, start_server
from pynetdicom.association import Association
from small_client import file_of, key_of

PREAMBLE = 132


def _is_paused(association):
    """Whether the reactor of an association waits. pynetdicom says so an instant before and after, too: the
    reactor may then take a response from the call that waits for it, and the call has no status."""
    return association._kill or bool(association._reactor_checkpoint._cond._waiters)


Association._is_paused = property(_is_paused, lambda association, value: None)


class Archive:
    """A server with a DIMSE port."""

    def __init__(self, folder, *flags, workers=1, context=None):
        self.port = free_port()
        self.flags = ("--dimse-port", str(self.port), *flags)
        self.clients = []
        self.server = start_server(folder, *self.flags, workers=workers, context=context)

    def client(self, **request):
        self.clients.append(DimseClient(self.port, **request))
        return self.clients[-1]

    def end(self):
        for client in self.clients:
            client.close()
        return self.server.end()

    def dataset(self, key, syntax="*"):
        """The dataset of an instance as stored; None if there is none."""
        study, series, uid = key
        url = f"{self.server.url}/studies/{study}/series/{series}/instances/{uid}"
        accept = f'application/dicom; transfer-syntax="{syntax}"'
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as answer:
                return dataset_of(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def worker_processes(self):
        found = children(self.server.process.pid)
        return [process for process in found if b"streamsrv.server" in cmdline(process)]

    def log(self):
        return self.server.log.read_text()


def dataset_of(file):
    """The bytes behind the file meta information."""
    (length,) = struct.unpack_from("<I", file, PREAMBLE + 8)
    return file[PREAMBLE + 12 + length :]


def sample(study, number, size=4_000):
    """Key and dataset of a CT."""
    key = key_of(study, 1, number)
    return key, dataset_of(file_of(key, 1, size))


def cmdline(process):
    with open(f"/proc/{process}/cmdline", "rb") as file:
        return file.read()


def high_water(process):
    """Bytes that the process has of its own. Pages of the index, which is mapped, do not count."""
    with open(f"/proc/{process}/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["RssAnon"].split()[0]) << 10
