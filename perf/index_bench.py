"""The index by itself: `python -m perf.index_bench [--instances N] [--folder DIR]` prints JSON.

metadata  bytes an instance, store and read cost of a CT's DICOM JSON (5.3 kB) in the index, plain or
compressed, and behind its
          record in a file
commits   instances a second in commits of 400, and acknowledged requests a second of 128 threads with one
instance each searches  answers of `search.answer` over all instances, as latencies
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import zstandard

from perf.index_data import ROOT, SERIES_SIZE, batches, dataset, new_instance, text_of
from streamsrv import search
from streamsrv.store.index.index import Index
from streamsrv.store.rows import NewInstance
from streamsrv.wire.answers import Literal, Request, Stream
from streamsrv.wire.resources import target_of

THREADS = 128
REQUESTS_A_THREAD = 40


def micros(seconds: float, count: int) -> float:
    return round(seconds / count * 1e6, 2)


# -- metadata: where?


@dataclass
class Form:
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


def forms() -> dict[str, Form]:
    packer, unpacker = zstandard.ZstdCompressor(), zstandard.ZstdDecompressor()
    return {
        "plain": Form(bytes, bytes),
        "zlib": Form(zlib.compress, zlib.decompress),
        "zstd": Form(packer.compress, unpacker.decompress),
    }


def in_lmdb(folder: Path, texts: list[bytes], form: Form) -> dict[str, float]:
    environment = lmdb.open(str(folder), map_size=1 << 34)
    began = time.perf_counter()
    for first in range(0, len(texts), SERIES_SIZE):
        with environment.begin(write=True) as transaction:
            for number, text in enumerate(texts[first : first + SERIES_SIZE], first):
                transaction.put(number.to_bytes(12, "big"), form.pack(text), append=True)
    stored = time.perf_counter() - began
    stat = environment.stat()
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]

    def read() -> bytes:
        with environment.begin() as transaction:
            cursor = transaction.cursor()
            cursor.set_range((len(texts) // 2).to_bytes(12, "big"))
            return b",".join(form.unpack(value) for _, value in itertools.islice(cursor, SERIES_SIZE))

    figures = _figures(pages * stat["psize"] / len(texts), micros(stored, len(texts)), read)
    environment.close()
    return figures


def in_a_file(folder: Path, texts: list[bytes], form: Form) -> dict[str, float]:
    """Behind each record, as it would lie in a segment; where it begins is in the row that is read anyway."""
    path, spans, at = folder / "trailers", [], 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    began = time.perf_counter()
    for first in range(0, len(texts), SERIES_SIZE):
        for text in texts[first : first + SERIES_SIZE]:
            packed = form.pack(text)
            os.pwrite(descriptor, packed, at)
            spans.append((at, len(packed)))
            at += len(packed)
        os.fdatasync(descriptor)
    stored = time.perf_counter() - began

    def read() -> bytes:
        middle = spans[len(spans) // 2 :][:SERIES_SIZE]
        return b",".join(form.unpack(os.pread(descriptor, length, offset)) for offset, length in middle)

    figures = _figures(at / len(texts), micros(stored, len(texts)), read)
    os.close(descriptor)
    return figures


def _figures(size: float, store: float, read: Callable[[], bytes]) -> dict[str, float]:
    return {"bytes_an_instance": round(size), "store_us": store, "read_400_ms": latency(read, 50)["p50_ms"]}


def metadata(folder: Path, instances: int) -> dict[str, Any]:
    count = min(instances, 20_000)
    texts = [text_of(dataset(number // SERIES_SIZE, 1, number)) for number in range(count)]
    found: dict[str, Any] = {"json_bytes": round(statistics.mean(map(len, texts)))}
    for name, form in forms().items():
        for place, measure in (("lmdb", in_lmdb), ("file", in_a_file)):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                found[f"{name} in {place}"] = measure(Path(scratch), texts, form)
    return found


# -- commits


def commits(index: Index, instances: int) -> dict[str, Any]:
    """Many studies a commit where they are small, as when many clients store at once."""
    seconds, count, waiting = 0.0, 0, list[NewInstance]()
    for batch in batches(instances):
        waiting += batch
        if len(waiting) >= SERIES_SIZE:
            began = time.perf_counter()
            index.commit(waiting, segment=1, committed_end=0)
            seconds, count, waiting = seconds + time.perf_counter() - began, count + len(waiting), []
    one_series = [new_instance(10**6, 1, at, 10**8 + at) for at in range(SERIES_SIZE)]
    began = time.perf_counter()
    index.commit(one_series, segment=1, committed_end=0)
    alone = time.perf_counter() - began
    figures = index.statistics()
    return {
        "instances": count,
        "instances_a_second": round(count / seconds),
        "one_series_of_400_us_an_instance": micros(alone, SERIES_SIZE),
        "bytes_an_instance": round(figures["bytes_used"] / figures["instances"]),
        "file_bytes_an_instance": round(figures["bytes_file"] / figures["instances"]),
    }


def requests(index: Index, *, one_series: bool) -> dict[str, Any]:
    """One instance a request; each waits until its own is durable."""
    waiting: list[list[NewInstance]] = []
    for client_number in range(THREADS):
        place = (2 * 10**6, 1) if one_series else (3 * 10**6 + client_number, 1)
        first = client_number * REQUESTS_A_THREAD
        numbers = range(first, first + REQUESTS_A_THREAD)
        waiting.append([new_instance(*place, number, 10**9 + number) for number in numbers])
    latencies: list[float] = []

    def client(own: list[NewInstance]) -> None:
        for new in own:
            began = time.perf_counter()
            index.commit([new], segment=1, committed_end=0)
            latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(own,)) for own in waiting]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    latencies.sort()
    return {
        "requests_a_second": round(len(latencies) / seconds),
        "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 2),
    }


# -- searches

QUERIES = {
    "studies, limit 100": "/studies?limit=100",
    "studies, as OHIF": (
        "/studies?limit=101&offset=0&fuzzymatching=true&includefield=00081030,00080060,00080090,00100030"
    ),
    "PatientID": "/studies?PatientID=P000123",
    "AccessionNumber": "/studies?AccessionNumber=A0000777",
    "one day": "/studies?StudyDate=20150314",
    "a year, limit 100": "/studies?StudyDate=20150101-20151231&limit=100",
    "name prefix": "/studies?PatientName=hanma*",
    "name anywhere": "/studies?PatientName=*sawi*",
    "name nowhere": "/studies?PatientName=*qqqq*",
    "modality, limit 100": "/studies?ModalitiesInStudy=CT&limit=100",
    "OHIF filters": (
        "/studies?PatientName=*an*&00100020=*1*&ModalitiesInStudy=CT&StudyDate=20150101-20161231&limit=101"
    ),
    "series of a study": f"/studies/{ROOT}.50/series",
    "400 instances of a series": f"/studies/{ROOT}.50/series/{ROOT}.50.1/instances?limit=400",
    "the same and an attribute of the study": (
        f"/studies/{ROOT}.50/series/{ROOT}.50.1/instances?limit=400&includefield=PatientName"
    ),
    "instance by UID alone": f"/instances?SOPInstanceUID={ROOT}.50.1.7",
    "200 instances by an attribute that is not indexed": f"/studies/{ROOT}.50/instances?00181102=VALUE*",
}


@dataclass
class Holder:
    index: Index
    secret: bytes = b"secret"


def searches(index: Index) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, url in QUERIES.items():
        path, _, query = url.partition("?")
        pairs = tuple(
            (key, value) for key, _, value in (pair.partition("=") for pair in query.split("&") if pair)
        )
        request = Request("GET", f"/v2{path}", pairs, {}, "http://localhost:8080/v2", 2)
        target = target_of(request.path)

        def ask(request: Request = request, target: Any = target) -> bytes:
            answer = search.answer(Holder(index), request, target)
            return b"".join(
                piece.payload if isinstance(piece, Literal) else b"".join(piece.chunks(0, None))
                for piece in answer.plan
                if isinstance(piece, Literal | Stream)
            )

        hits = len(json.loads(ask() or b"[]"))
        found[name] = {"hits": hits} | latency(ask, 40)
    return found


def latency(work: Callable[[], object], rounds: int) -> dict[str, float]:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    times.sort()
    return {"p50_ms": round(times[rounds // 2] * 1e3, 3), "p95_ms": round(times[int(rounds * 0.95)] * 1e3, 3)}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--instances", type=int, default=100_000)
    options.add_argument("--folder", type=Path, default=None, help="where the scratch files lie")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        found: dict[str, Any] = {"metadata": metadata(Path(scratch), chosen.instances)}
        index = Index.open(Path(scratch) / "index")
        index.add_segment()
        found["commits of 400"] = commits(index, chosen.instances)
        found["searches"] = searches(index)
        found["128 threads, one series"] = requests(index, one_series=True)
        found["128 threads, a study each"] = requests(index, one_series=False)
        index.close()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
