"""Makes the store of this version that tests/test_upgrades.py opens from then on:

    python tests/stores/make.py        writes tests/stores/VERSION.tar.xz

A release runs it once; a later version never changes the file. The archive has the folder `data`, and
`expected.json`: URL path -> SHA-256 and ETag of the answer, or the number of results.
"""

import hashlib
import json
import lzma
import struct
import sys
import tarfile
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from hostile_files import element, instance, padded  # noqa: E402
from live_server import start_server  # noqa: E402
from small_client import WHOLE, Client, key_of, path_of  # noqa: E402

from streamsrv import __version__, samples  # noqa: E402
from streamsrv.cli import main  # noqa: E402

SEGMENT = 65_536  # bytes, the least: some segments are sealed
LEVELS = ("studies", "series", "instances")


def archive_of(version):
    return TESTS / "stores" / f"{version}.tar.xz"


def facts(client):
    """The answers that stay the same: bytes and ETags of instances and frames, metadata, and the number of
    results of searches."""
    found = {f"/{level}": len(client.search(f"/{level}?limit=100")) for level in LEVELS}
    for key in sorted(client.keys()):
        for path, accept in (
            (path_of(key), WHOLE),
            (f"{path_of(key)}/frames/1", "application/octet-stream; transfer-syntax=*"),
            (f"{path_of(key)}/metadata", "application/dicom+json"),
        ):
            reply = client.ask("GET", path, Accept=accept)
            assert reply.status == 200, (path, reply.status, reply.body)
            body = reply.body.replace(f"http://{client.address}".encode(), b"")
            etag = reply.headers["ETag"] if accept == WHOLE else ""
            found[path] = [hashlib.sha256(body).hexdigest(), etag]
    return found


def flat(key, version, size=14_000):
    """A Part 10 file whose pixels compress well."""
    study, series, uid = key
    more = {
        0x00080060: element(0x00080060, "CS", b"CT"),
        0x00100010: element(0x00100010, "PN", b"Upgrade^Store "),
        0x00200013: element(0x00200013, "IS", padded(str(version), b" ")),
        0x00280002: element(0x00280002, "US", struct.pack("<H", 1)),
        0x00280010: element(0x00280010, "US", struct.pack("<H", size // 128)),
        0x00280011: element(0x00280011, "US", struct.pack("<H", 64)),
        0x00280100: element(0x00280100, "US", struct.pack("<H", 16)),
        0x7FE00010: element(0x7FE00010, "OW", bytes([version]) * (size // 128 * 128)),
    }
    return instance(more, instance=uid, study=study, series=series)


def fill(client, data, folder):
    """Sealed, growing and compacted segments; replaced and deleted instances."""
    for path in samples.write_samples(folder):
        assert client.store([path.read_bytes()]).status == 200
    for number in range(1, 13):
        assert client.store([flat(key_of(1, number % 2, number), number)]).status == 200
    for number in (2, 3, 5, 6, 7):
        assert client.delete(key_of(1, number % 2, number))
    assert client.store([flat(key_of(1, 0, 4), 40)]).status == 200
    assert main(["compact", "--data", str(data)]) == 0
    assert client.delete(key_of(1, 1, 9))
    assert client.store([flat(key_of(2, 1, 1), 1)]).status == 200


def make(target):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        flags = ("--segment-size", str(SEGMENT), "--on-duplicate", "replace")
        server = start_server(folder, *flags, workers=1)
        client = Client(server.origin)
        fill(client, server.data, folder / "samples")
        expected = facts(client)
        client.close()
        assert server.end() == 0
        (folder / "expected.json").write_text(json.dumps(expected, indent=0))
        with lzma.open(target, "wb", preset=9) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for path in [folder / "expected.json", *sorted(server.data.rglob("*"))]:
                if path.is_file() and path.name not in ("ballast", "lock.mdb"):
                    archive.add(path, path.relative_to(folder), filter=anonymous)


def anonymous(member):
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    make(archive_of(__version__))
