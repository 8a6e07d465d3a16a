"""Power cuts at block level: a real server under load on a real file system, and every disk that a cut at any
moment may leave behind.

A block device writes down all that reaches it (block_device.py). Afterwards a disk is made for each chosen
moment. It has every write before the last flush. Of the writes since then each is there, missing, or torn
between two sectors. The file system recovers by its journal, the store by its own rules, and the clients'
journal says which states are allowed (histories.py).
"""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from block_device import FLUSH, LoggedDisk, Mounted, entries_of, run
from histories import FOR_EVER, Operation, last_states
from kill_world import KEYS, Load, World, verb
from live_server import start_server
from small_client import Client

from streamsrv.store.store import Store

DISK = 96 << 20
SECTOR = 512


class PowerCutRecording:
    """`entries` of the block log, the `image` that they began with, and the `history` of each key."""

    def __init__(self, place, choice, *, replacing, seconds):
        self.place = place
        self.replacing = replacing
        self.image = place / "image"
        before, self._log = place / "before", place / "blocks.log"
        with before.open("wb") as file:
            file.truncate(DISK)
        run("mkfs.ext4", "-q", "-b", "4096", "-m", "0", before)
        copy(before, self.image)
        with LoggedDisk(place, self.image) as disk:
            load = self._work(disk.folder, choice, seconds)
        self.image = before
        self.history = load.history
        self.acknowledged = load.acknowledged
        self.entries = list(entries_of(self._log))
        self.flushes = [number for number, entry in enumerate(self.entries) if entry.offset == FLUSH]

    def _work(self, folder, choice, seconds):
        """Clients store, replace, delete and read, beside a compaction. Then the index is written again, by
        `compact --all` and by `reindex`."""
        self.world = World(folder, choice.randrange(1 << 32))
        self.world.serve(self.replacing)
        try:
            with Load(self.world) as load:
                time.sleep(seconds / 2)
                compaction = self.world.compaction({})
                time.sleep(seconds / 2)
                compaction.wait(60)
        finally:
            self.world.stop()
        for command in (("compact", "--all"), ("reindex",)):
            code, said = verb(*command, "--data", str(self.world.data))
            assert code == 0, said
        return load

    def disks(self, cuts, choice):
        """(number of the first entry that is missing, its time, an image) for each cut, in order. The image
        is used again for the next one."""
        durable, cut_image = self.place / "durable", self.place / "cut"
        copy(self.image, durable)
        written = 0
        with self._log.open("rb") as log, durable.open("r+b") as disk:
            for cut in sorted(cuts):
                flush = max((number for number in self.flushes if number < cut), default=0)
                for entry in self.entries[written:flush]:
                    put(entry, log, disk, entry.length)
                written = max(written, flush)
                disk.flush()
                copy(durable, cut_image)
                with cut_image.open("r+b") as torn:
                    for entry in self.entries[flush:cut]:
                        put(entry, log, torn, kept_of(entry, choice))
                yield cut, self.entries[cut].time, cut_image

    def allowed(self, key, moment, seen):
        """Whether a disk of this moment may have the instance in the state `seen`."""
        known = [
            each if each.end <= moment else replace(each, end=FOR_EVER, answer=None)
            for each in self.history[key]
            if each.begin <= moment and (each.end <= moment or each.kind != "read")
        ]
        last = Operation("read", moment, FOR_EVER, "read", seen)
        return seen in last_states([*known, last], None, replacing=self.replacing)

    def acknowledged_by(self, moment):
        return sum(
            each.end <= moment and each.answer in ("stored", "deleted")
            for history in self.history.values()
            for each in history
        )


def kept_of(entry, choice):
    """How many bytes of a write that was not flushed have reached the disk."""
    if entry.offset == FLUSH:
        return 0
    sectors = entry.length // SECTOR
    return choice.choice((0, entry.length, choice.randrange(sectors + 1) * SECTOR))


def put(entry, log, disk, length):
    if entry.offset != FLUSH and length:
        disk.seek(entry.offset)
        disk.write(os.pread(log.fileno(), length, entry.at))


def copy(image, to):
    run("cp", "--sparse=always", image, to)


def verify(recording, moment, image, folder, *, reindexed=False, served=False):
    """The store on this disk opens, is well, and has each instance in a state that the journal allows."""
    mounted = Mounted(image, folder)
    try:
        data = folder / "data"
        if reindexed and (data / "index").exists():
            shutil.rmtree(data / "index")
            code, said = verb("reindex", "--data", str(data))
            assert code == 0, said
        found = served_states(recording, folder) if served else states(data, {key[0] for key in KEYS})
        for key in KEYS:
            version = recording.world.version_of(key, found.get(key))
            assert recording.allowed(key, moment, version), (key, version, recording.history[key])
        assert set(found) <= set(KEYS)
        if (data / "store.toml").exists():
            code, said = verb("check", "--data", str(data))
            assert (code, said) == (0, "all is well\n"), said
    finally:
        mounted.close()


def states(data, studies):
    """Key -> bytes of every instance of these studies, by the store itself."""
    found = {}
    with Store.open(Path(data)) as store:
        for study in studies:
            for row in store.lookup(study):
                place = row.location
                with store.open_segments([place.segment]) as lease:
                    found[tuple(row.key)] = bytes(lease.pread(place.segment, place.offset, place.length))
    return found


def served_states(recording, folder):
    """The same by HTTP, from a server that starts on this disk. It must store, too."""
    server = start_server(folder, "--log-level", "warning", workers=1)
    client = Client(server.origin)
    try:
        found = {key: body for key in KEYS if (body := client.read(key)) is not None}
        assert client.keys() == set(found)
        key = KEYS[0]
        _, body = recording.world.new_file(key, recording.world.choice)
        assert client.delete(key) or key not in found
        assert client.outcomes([body]) == {key[2]: True}
        assert client.read(key) == body
    finally:
        client.close()
        assert server.end() == 0
    return found
