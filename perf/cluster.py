"""A node over PostgreSQL and a bucket, beside obstore alone, and beside a server with segments on its disk.

Strategy: PostgreSQL and SeaweedFS run on this machine. obstore moves the same bytes to and from the same
gateway, in parts as large and as many at once as those of the node. Subjects take turns. For rows without a
cache its folder is deleted before each round, which a node allows at any moment. The round waits, because a
node serves files that it has open for some more seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from perf import bodies
from perf.archive import first_pages
from perf.bodies import Body
from perf.clients import DICOM, FRAME, Client, Load, together
from perf.results import OBSTORE, OURS, Row, median_row
from perf.run import Run, forget, in_turns, rates, rows_of, store_study
from perf.servers import ROOT, Service, cpu_seconds

CLIENTS = 16
TILE = 21_000
# Bytes that a node fetches together: a frame of the next chunk is not fetched with this one.
CHUNK = 128 << 10
# Seconds after which frames of an instance are answered from memory of their answers.
SETTLED = 2.1
# Seconds after which a node has closed the files of a deleted cache.
CLOSED = 6.0
LOCAL = f"{OURS}, segments on the disk"


@contextmanager
def engines(folder: Path) -> Iterator[tuple[str, str, Any]]:
    """PostgreSQL and SeaweedFS: the URL of a database, the one of a bucket, and obstore's store of that. The
    environment has the credentials within the block."""
    sys.path.append(str(ROOT / "tests"))  # their classes are those of the tests
    seaweed, databases = import_module("seaweed"), import_module("database_server")
    obstore_s3 = import_module("obstore.store")
    folder.mkdir()
    with ExitStack() as held:
        held.callback(sys.path.remove, str(ROOT / "tests"))
        database = databases.DatabaseServer(fsync="on")
        held.callback(database.end)
        bucket = seaweed.Seaweed(folder, volumes=400)
        held.callback(bucket.end)
        _, endpoint = bucket.gateway()
        key, secret = seaweed.ADMIN
        store = obstore_s3.S3Store(
            seaweed.BUCKET,
            endpoint=endpoint,
            access_key_id=key,
            secret_access_key=secret,
            region="x",
            client_options={"allow_http": True},
        )
        import_module("obstore").put(store, "made", b"")  # an administrator makes the bucket
        held.enter_context(
            environment(
                AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret, AWS_REGION="x", AWS_ENDPOINT_URL=endpoint
            )
        )
        yield database.url("perf"), f"s3://{seaweed.BUCKET}/perf", store


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Bare:
    """obstore, in this process. It reads the newest object of the node, and uploads the same bytes, which are
    in the file `path` meanwhile: SeaweedFS compresses a part that begins like a text."""

    def __init__(self, store: Any, path: Path) -> None:
        self.obstore, self.limits = import_module("obstore"), import_module("streamsrv.store.objects.bucket")
        self.store, self.path = store, path
        objects = [each for page in self.obstore.list(store, "perf/segments") for each in page]
        newest = max(objects, key=lambda each: each["path"].rpartition("-")[2])
        self.key: str = newest["path"]
        self.length: int = newest["size"]
        with path.open("wb") as target:
            for piece in self.obstore.get(store, self.key).stream():
                target.write(piece)

    def upload(self) -> float:
        """MB/s; makes a new object."""
        key = f"bare-{time.monotonic_ns()}"
        part, at_once = self.limits.PART, self.limits.PARTS_AT_ONCE
        began = time.perf_counter()
        with (
            self.path.open("rb") as source,
            self.obstore.open_writer(self.store, key, buffer_size=part, max_concurrency=at_once) as target,
        ):
            while piece := source.read(part):
                target.write(piece)
        return self.length / 1e6 / (time.perf_counter() - began)

    def download(self) -> float:
        """MB/s of one GET."""
        began, length = time.perf_counter(), 0
        for piece in self.obstore.get(self.store, self.key).stream(min_chunk_size=1 << 20):
            length += len(piece)
        return length / 1e6 / (time.perf_counter() - began)

    def ranges(self, number: int) -> float:
        """GETs a second of so many ranges as long as a tile, by CLIENTS threads."""
        step = max(self.length // (number + 1), 1)
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as threads:
            for content in threads.map(
                lambda at: self.obstore.get_range(self.store, self.key, start=at * step, length=TILE),
                range(number),
            ):
                assert len(content) == TILE
        return number / (time.perf_counter() - began)


def cluster(run: Run) -> Iterator[Row]:
    with (
        engines(run.folder / "engines") as (index, bucket, store),
        run.streamsrv("local") as local,
        run.streamsrv("node", "--index", index, "--segments", bucket) as node,
    ):
        yield from studies(run, node, local, store)
        yield from frames(run, node, local, store)


def database(run: Run) -> Iterator[Row]:
    """The same requests as those of `search`, which never ask the bucket."""
    with engines(run.folder / "engines") as (index, bucket, _):
        yield from first_pages(
            run, run.folder / "node", "pages of PostgreSQL", "--index", index, "--segments", bucket
        )


def studies(run: Run, node: Service, local: Service, store: Any) -> Iterator[Row]:
    body = bodies.ct_study(1, run.size.instances)
    path = body.write(run.folder / "study.body")
    store_study(node, body, path)
    bare = Bare(store, run.folder / "object")
    forget(node, body.study)
    stores: dict[str, Callable[[], float]] = {OURS: partial(stored, node, body, path), OBSTORE: bare.upload}
    yield from rows_of(
        f"store {run.size.instances} CT instances of 526 kB", in_turns(run.size.rounds, stores)
    )
    for server in (node, local):
        store_study(server, body, path)
    bare = Bare(store, run.folder / "object")
    used: list[float] = []
    measure = "retrieve the study"
    found = in_turns(
        run.size.rounds, {OURS: partial(retrieved_anew, node, body, used), OBSTORE: bare.download}
    )
    yield from rows_of(f"{measure}, not in the cache", found)
    yield median_row(f"CPU time, {measure}, not in the cache", OURS, used[1:])
    used.clear()
    found = in_turns(
        run.size.rounds,
        {OURS: partial(retrieved, node, body, used), LOCAL: partial(retrieved, local, body, [])},
    )
    yield from rows_of(f"{measure}, in the cache", found)
    yield median_row(f"CPU time, {measure}, in the cache", OURS, used[1:])
    path.unlink()


def stored(server: Service, body: Body, path: Path) -> float:
    """MB/s of one POST of a study, which is deleted afterwards."""
    seconds = store_study(server, body, path)
    forget(server, body.study)
    return body.length / 1e6 / seconds


def retrieved(server: Service, body: Body, used: list[float]) -> float:
    """MB/s of one GET. Adds the seconds of processor time a GB."""
    before = cpu_seconds(server.pid)
    with Client(server) as client:
        answer = client.get(f"/studies/{body.study}", DICOM)
    used.append((cpu_seconds(server.pid) - before) * 1e9 / answer.length)
    return answer.length / 1e6 / answer.seconds


def retrieved_anew(node: Service, body: Body, used: list[float]) -> float:
    empty_cache(node)
    return retrieved(node, body, used)


def empty_cache(node: Service) -> None:
    assert node.folder is not None
    shutil.rmtree(node.folder / "cache", ignore_errors=True)
    time.sleep(CLOSED)


def frames(run: Run, node: Service, local: Service, store: Any) -> Iterator[Row]:
    slide = bodies.multi_frame(2, run.size.tiles, TILE)
    path = slide.write(run.folder / "slide.body")
    for server in (node, local):
        store_study(server, slide, path)
    path.unlink()
    bare = Bare(store, run.folder / "object")
    time.sleep(SETTLED)
    apart = [f"{slide.path}/frames/{number}" for number in range(1, run.size.tiles, 2 * CHUNK // TILE)]
    found = in_turns(
        run.size.rounds,
        {OURS: partial(fetched_anew, node, apart), OBSTORE: partial(bare.ranges, len(apart))},
    )
    yield from rows_of(f"frames of 21 kB not in the cache, {CLIENTS} at once", found)
    paths = [f"{slide.path}/frames/{number + 1}" for number in range(min(run.size.tiles, 500))]
    loads: Mapping[str, Load] = {OURS: Load(node, paths, FRAME), LOCAL: Load(local, paths, FRAME)}
    yield from rates(
        run, f"frames of 21 kB in the cache, {CLIENTS} at once", loads, CLIENTS, processor=[OURS]
    )


def fetched_anew(node: Service, paths: Sequence[str]) -> float:
    """Answers a second, each path once."""
    empty_cache(node)
    work = [partial(Client.get, path=path, accept=FRAME) for path in paths]
    return len(paths) / together(CLIENTS, node, work)
