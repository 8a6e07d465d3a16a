"""What compressed metadata cost: zlib level 1 with a cache, against pieces that were compressed when they
were stored.

    python -m perf.metadata_bench [--folder DIR] [--instances N] [--rounds R]

The pieces: each text between two URL slots is deflated by itself and ends with a full flush, so an answer is
one gzip member made of them, with URLs as stored blocks between them and a CRC combined of theirs. It is the
fastest way to a first answer, and it needs a second form of every metadata text in the index. Prints for one
instance and for a series the milliseconds and bytes of each way, best of R rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from perf.data import CONTENT_TYPE, Keys, ct_study
from streamsrv import retrieve
from streamsrv.ingest import Ingest
from streamsrv.pixels.pool import PixelPool
from streamsrv.store.store import Store, StoreOptions
from streamsrv.wire.answers import Literal, Request, Span
from streamsrv.wire.resources import instance_url, target_of

BASE_URL = "http://localhost:8943/v2"
GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
LAST_BLOCK = b"\x03\0"
POLYNOMIAL = 0xEDB88320


class Segment(NamedTuple):
    """Text between two slots, deflated. `shift` multiplies a CRC by x to the power of 8 * length."""

    deflated: bytes
    crc: int
    length: int
    shift: int


def product(a: int, b: int) -> int:
    """Of two polynomials modulo the CRC's."""
    found, bit = 0, 1 << 31
    while True:
        if a & bit:
            found ^= b
            if not a & (bit - 1):
                return found
        bit >>= 1
        b = (b >> 1) ^ POLYNOMIAL if b & 1 else b >> 1


def shift_of(length: int) -> int:
    """x to the power of 8 * length."""
    power, square, bits = 1 << 31, 1 << 23, length  # x to the power of 0 and of 8
    while bits:
        if bits & 1:
            power = product(square, power)
        square = product(square, square)
        bits >>= 1
    return power


def segment(text: bytes) -> Segment:
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    deflated = compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH)
    return Segment(deflated, zlib.crc32(text), len(text), shift_of(len(text)))


def prepared(text: bytes) -> list[Segment]:
    """When an instance is stored."""
    return [segment(part) for part in (b"," + text).split(b"\0")]


def stored_block(content: bytes) -> bytes:
    length = len(content)
    return b"\0" + length.to_bytes(2, "little") + (length ^ 0xFFFF).to_bytes(2, "little") + content


def assembled(instances: Sequence[tuple[list[Segment], bytes]]) -> bytes:
    """The answer for instances and their URLs. Its first comma is overcome by an empty element's place: the
    array begins with null."""
    crc, length = zlib.crc32(b"[null"), 5
    parts = [GZIP_HEAD, stored_block(b"[null")]
    for segments, url in instances:
        block = stored_block(url)
        for number, each in enumerate(segments):
            if number:
                parts.append(block)
                crc = zlib.crc32(url, crc)
                length += len(url)
            parts.append(each.deflated)
            crc = product(each.shift, crc) ^ each.crc
            length += each.length
    crc = zlib.crc32(b"]", crc)
    parts += (stored_block(b"]"), LAST_BLOCK, crc.to_bytes(4, "little"))
    parts.append(((length + 1) & 0xFFFFFFFF).to_bytes(4, "little"))
    return b"".join(parts)


# The server's own ways


def store_study(store: Store, instances: int) -> list[Keys]:
    body = ct_study(1, instances, 2_048)
    ingest = Ingest(store, content_type=CONTENT_TYPE)
    for chunk in body.chunks():
        ingest.feed(bytes(chunk))
    ingest.finish()
    return body.keys


def asked(store: Store, pool: PixelPool, path: str, coding: str) -> Callable[[], bytes]:
    """All bytes of one answer."""
    headers = {"accept-encoding": coding}
    request = Request("GET", f"/v2{path}", (), headers, BASE_URL, 2)

    def run() -> bytes:
        answer = retrieve.answer(store, request, target_of(request.path), pool)
        parts: list[bytes] = []
        for piece in answer.plan:
            if isinstance(piece, Literal):
                parts.append(piece.payload)
            elif not isinstance(piece, Span):
                parts += piece.chunks(0, piece.length)
        if answer.release:
            answer.release()
        return b"".join(parts)

    return run


def best(run: Callable[[], bytes], rounds: int) -> tuple[float, int]:
    """(milliseconds, bytes)"""
    times, size = [], 0
    for _ in range(rounds):
        started = time.perf_counter()
        size = len(run())
        times.append((time.perf_counter() - started) * 1_000)
    return min(times), size


def ways(store: Store, keys: Sequence[Keys], path: str) -> dict[str, Callable[[], bytes]]:
    cached, uncached = PixelPool(1), PixelPool(1, cached=0)
    rows = store.lookup(keys[0].study, keys[0].series, keys[0].instance if len(keys) == 1 else None)
    texts = [b"".join(store.metadata([row])) for row in rows]
    urls = [instance_url(BASE_URL, *row.key).encode() for row in rows]
    pieces = [prepared(text) for text in texts]
    members = list(zip(pieces, urls, strict=True))
    whole = b",".join(text.replace(b"\0", url) for text, url in zip(texts, urls, strict=True))
    if zlib.decompress(assembled(members), 31) != b"[null," + whole + b"]":
        raise RuntimeError("the assembled member is not the metadata")
    return {
        "as it is": asked(store, uncached, path, "identity"),
        "gzip, made": asked(store, uncached, path, "gzip"),
        "gzip, kept": asked(store, cached, path, "gzip"),
        "gzip, of pieces": lambda: assembled(members),
        "zstd, made": asked(store, uncached, path, "zstd"),
        "zstd, kept": asked(store, cached, path, "zstd"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.metadata_bench", description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--instances", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="perf-", dir=args.folder) as folder,
        Store.open(Path(folder) / "store", StoreOptions(min_free=0)) as store,
    ):
        keys = store_study(store, args.instances)
        for some, name in ((keys[:1], "one instance"), (keys, f"a series of {len(keys)}")):
            path = some[0].path if len(some) == 1 else some[0].path.partition("/instances/")[0]
            print(name)
            for way, run in ways(store, some, f"{path}/metadata").items():
                milliseconds, size = best(run, args.rounds)
                print(f"  {way:16} {milliseconds:8.2f} ms {size:10,} bytes")


if __name__ == "__main__":
    main()
