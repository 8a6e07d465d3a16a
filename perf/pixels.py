"""Frames and pictures that have to be made, beside Orthanc and beside the codec library called directly.

Strategy: no frame is asked for twice, so no cache answers; a frame that is asked for again is a subject of
its own. Single frames are far apart in a long series, so the server prefetches none of them. A client of a
whole series takes it frame after frame, as viewers do, or in random order, shuffled with a fixed seed. Each
turn is a whole series that is new to all servers, so no prefetching goes on between two turns. The library is
called in one thread, with the array ready in memory.

Half the latency of one client on an idle machine is the waking up of processors. So the processor time of
the server's process tree stands beside each rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import imagecodecs

from framecodecs.libraries import load
from perf import bodies, servers
from perf.bodies import Body, Keys
from perf.clients import Client, together
from perf.results import LIBRARY, OURS, Row, median_row
from perf.run import Run, store_study
from perf.servers import MemorySampler, Server, cpu_seconds

ROUNDS = 25
WARM = 3  # requests before those that count.
CLIENTS = (2, 4)
LENGTH = 4  # of a whole series, times the rounds of single frames: 100 instances.
TURNS = 3  # series that each server gives in turn.
ALONE = 1.2  # seconds without a request before a client comes.
FIRST = 300  # of the studies of which one slice each is asked for
PEER_FRAMES = 3  # Orthanc decodes the whole instance for each frame
MEASURE = "CT frames a second"
NOTHING_AHEAD = "streamsrv with prefetch = 0"
AS_JPEG_LS = "1.2.840.10008.1.2.4.80"


class Representation(NamedTuple):
    """`path` is below an instance. `peer`: Orthanc's package survives it; `direct` is the library's call."""

    name: str
    path: str
    accept: str
    peer: bool = True
    direct: Callable[[Any], object] | None = None


def frames_as(media_type: str, uid: str) -> str:
    return f'multipart/related; type="{media_type}"; transfer-syntax={uid}'


def _jpeg_ls(picture: Any) -> object:
    return load("pyjpegls").encode_buffer(picture.tobytes(), *picture.shape, 1, 12, 0, 0)


_jpeg_lossless = partial(imagecodecs.jpeg8_encode, lossless=True, predictor=1, bitspersample=12)
_jpeg_extended = partial(imagecodecs.jpeg8_encode, level=90, bitspersample=12)
_jpeg_2000 = partial(
    imagecodecs.jpeg2k_encode, codecformat="j2k", bitspersample=12, reversible=True, mct=False, numthreads=1
)
_htj2k = partial(imagecodecs.htj2k_encode, resolutions=3, reversible=True, tlm=True, tilepart=1)
CT = [
    Representation(name, "/frames/1", frames_as(media_type, f"1.2.840.10008.1.2.{uid}"), peer, direct)
    for name, media_type, uid, peer, direct in (
        ("JPEG lossless", "image/jpeg", "4.70", True, _jpeg_lossless),
        ("JPEG-LS", "image/jls", "4.80", True, _jpeg_ls),
        ("JPEG extended", "image/jpeg", "4.51", True, _jpeg_extended),
        ("JPEG 2000", "image/jp2", "4.90", False, _jpeg_2000),
        ("HTJ2K RPCL", "image/jphc", "4.202", False, _htj2k),
        ("RLE", "image/dicom-rle", "5", False, None),
    )
]
CT += [
    Representation(f"rendered as {name}", "/rendered", f"image/{name.lower()}") for name in ("JPEG", "PNG")
]
DECODED = frames_as("application/octet-stream", bodies.EXPLICIT_VR_LITTLE_ENDIAN)
RENDERED_TILE = Representation("a JPEG tile of a slide rendered", "/frames/{n}/rendered", "image/jpeg")
MULTI_FRAME = (
    Representation("a frame of a multi-frame rendered", "/frames/{n}/rendered", "image/jpeg"),
    Representation("a frame of a multi-frame as JPEG-LS", "/frames/{n}", frames_as("image/jls", AS_JPEG_LS)),
)
# With a quality the tile is encoded, without one it goes out as it is stored.
SLIDE = (
    Representation("a JPEG tile of a slide decoded", "/frames/{n}", DECODED),
    Representation(f"{RENDERED_TILE.name}, quality 90", "/frames/{n}/rendered?quality=90", "image/jpeg"),
    RENDERED_TILE,
)


def pixels(run: Run) -> Iterator[Row]:
    rounds = max(5, ROUNDS * run.size.instances // 400)
    with run.both("pixels") as both:
        yield from _ct(run, both, rounds)
        frames = run.size.instances * 5 // 2
        for body, count, all_wanted in (
            (bodies.native_loop(72, frames), frames, MULTI_FRAME),
            (bodies.jpeg_slide(73, run.size.tiles), run.size.tiles, SLIDE),
        ):
            path = body.write(run.folder / "multi.body")
            for server in both:
                store_study(server, body, path)
            for wanted in all_wanted:
                yield from _one_of_many(wanted, both, rounds, body, count)
    if run.target is None:
        yield from _on_one_core(run, rounds)
        yield from _loop(run)


# --- a CT ---


def _ct(run: Run, both: Sequence[Server], rounds: int) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        every = list(both)
        if run.target is None:
            plain = stack.enter_context(run.streamsrv("nothing-ahead", "--prefetch=0"))
            every.append(dataclasses.replace(plain, name=NOTHING_AHEAD))
        apart = [
            _stored(run, both, FIRST + number, bodies.SLICES)[number % bodies.SLICES]
            for number in range(rounds + WARM)
        ]
        warm = _stored(run, every, 70, rounds)
        in_order, shuffled, *shared = (
            [_stored(run, every, study, LENGTH * rounds) for study in range(first, first + TURNS)]
            for first in range(80, 100 + 10 * len(CLIENTS), 10)
        )
        shuffled = [random.Random(len(keys)).sample(keys, len(keys)) for keys in shuffled]
        for wanted in CT:
            asked = both if wanted.peer else both[:1]
            yield from _compared(wanted, asked, apart)
            all_asked = [*asked, *every[len(both) :]]
            _warm_up(wanted, all_asked, warm)
            yield from _series(wanted, asked, in_order, 1, f"{MEASURE}, one client", "frame after frame")
            yield from _series(wanted, all_asked, shuffled, 1, f"{MEASURE}, one client", "in random order")
            for clients, series in zip(CLIENTS, shared, strict=True):
                subject = f"{clients} at once"
                yield from _series(wanted, asked, series, clients, f"{MEASURE}, several clients", subject)


def _stored(run: Run, those: Sequence[Server], study: int, instances: int) -> Sequence[Keys]:
    body = bodies.ct_slices(study, instances)
    path = body.write(run.folder / "ct.body")
    for server in those:
        store_study(server, body, path)
    path.unlink()
    return body.keys


def _compared(wanted: Representation, asked: Sequence[Server], keys: Sequence[Keys]) -> Iterator[Row]:
    """Each slice of all in turn; the first requests warm up. A peer that fails has a row with the reason."""
    measure = f"CT of 524 kB: {wanted.name}"
    times: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for turn, key in enumerate(keys):
        for server in asked:
            try:
                if server.name not in failures:
                    times.setdefault(server.name, []).append(once(server, key.path + wanted.path, wanted))
            except (OSError, RuntimeError) as error:
                failures[server.name] = f"failed: {str(error)[:60]}"
        if wanted.direct is not None:
            picture = bodies.ct_pictures()[turn % bodies.SLICES]
            started = time.perf_counter()
            wanted.direct(picture)
            times.setdefault(LIBRARY, []).append((time.perf_counter() - started) * 1e3)
    for name, values in times.items():
        if name not in failures:
            yield median_row(measure, name, values[WARM:])
    yield from (Row(measure, name, None, why) for name, why in failures.items())
    if not wanted.peer:
        yield Row(measure, "Orthanc", None, "its package crashes on this or does not know it")
    yield median_row(measure, "streamsrv, asked again", _again(wanted, asked[0], keys[WARM:]))


def once(server: Server, path: str, wanted: Representation) -> float:
    """Milliseconds of one request on a connection that is there."""
    with Client(server) as client:
        client.get("//health/live" if server.name == OURS else "//system")
        return client.fetch(path, wanted.accept, keep=True).seconds * 1e3


def _again(wanted: Representation, server: Server, keys: Sequence[Keys]) -> list[float]:
    """Twice on one connection, because each worker has a cache of its own."""
    with Client(server) as client:
        paths = [key.path + wanted.path for key in keys for _ in range(2)]
        return [client.fetch(path, wanted.accept, keep=True).seconds * 1e3 for path in paths][1::2]


def _get(wanted: Representation, key: Keys, client: Client) -> None:
    client.fetch(key.path + wanted.path, wanted.accept)


def _series(
    wanted: Representation,
    those: Sequence[Server],
    series: Sequence[Sequence[Keys]],
    clients: int,
    measure: str,
    subject: str,
) -> Iterator[Row]:
    """Whole series by so many clients, of each server in turn. One client comes after a moment without
    requests."""
    seconds, spent = dict.fromkeys(those, 0.0), dict.fromkeys(those, 0.0)
    failed: dict[Server, str] = {}
    for keys in series:
        for server in those:
            time.sleep(ALONE if clients == 1 else 0)
            before = cpu_seconds(server.pid)
            try:
                seconds[server] += together(clients, server, [partial(_get, wanted, key) for key in keys])
            except (OSError, RuntimeError) as error:
                failed[server] = f"failed: {error}"
            spent[server] += cpu_seconds(server.pid) - before
    count = sum(map(len, series))
    for server in those:
        name = f"{measure}: {wanted.name}", f"{server.name}, {subject}"
        if server in failed:
            yield Row(*name, None, failed[server])
        else:
            yield _rate(*name, count, seconds[server], spent[server])


def _warm_up(wanted: Representation, those: Sequence[Server], keys: Sequence[Keys]) -> None:
    for server in those:
        together(2, server, [partial(_get, wanted, key) for key in keys])


def _rate(measure: str, subject: str, count: int, seconds: float, spent: float) -> Row:
    note = f"{count / seconds * 0.524:.0f} MB/s"
    note += f", {spent / count * 1e3:.2f} ms of processor time each" if spent else ""
    return Row(measure, subject, count / seconds, note)


def _on_one_core(run: Run, rounds: int) -> Iterator[Row]:
    """The servers share one core in turns; their clients have the others."""
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, first)
        both = stack.enter_context(run.both("one-core"))
        os.sched_setaffinity(0, cores - first or cores)
        warm = _stored(run, both, 70, rounds)
        series = [_stored(run, both, study, LENGTH * rounds) for study in range(80, 80 + TURNS)]
        for wanted in CT:
            if wanted.peer and wanted.direct is not None:
                _warm_up(wanted, both, warm)
                clients = CLIENTS[-1]
                yield from _series(
                    wanted, both, series, clients, f"{MEASURE}, one core", f"{clients} at once"
                )


# --- one frame of many ---


def _one_of_many(
    wanted: Representation, both: Sequence[Server], rounds: int, body: Body, count: int
) -> Iterator[Row]:
    measure = f"{wanted.name} ({count} frames, {body.length / 1e6:.0f} MB)"
    for server in both:
        asked = WARM + (rounds if server is both[0] else PEER_FRAMES)
        paths = [body.path + wanted.path.format(n=1 + n * 7 % count) for n in range(asked)]
        yield median_row(measure, server.name, [once(server, path, wanted) for path in paths][WARM:])
    if wanted is not RENDERED_TILE:
        return
    for clients in CLIENTS:
        for server in both:
            asked = clients * (rounds if server is both[0] else 1)
            numbers = [count - (clients * rounds + n) * 7 % count for n in range(asked)]
            paths = [body.path + wanted.path.format(n=number) for number in numbers]
            fetch = [lambda client, path=path: client.fetch(path, wanted.accept) for path in paths]
            rate = asked / together(clients, server, fetch)
            yield Row(measure, f"{server.name}, {clients} at once", rate)


def _loop(run: Run) -> Iterator[Row]:
    """A loop that no memory should hold: decoded and encoded again while it is sent."""
    frames = max(2_000, 50 * run.size.instances)
    body = bodies.long_loop(74, frames)
    with run.streamsrv("loop") as server:
        store_study(server, body, body.write(run.folder / "loop.body"))
        once(server, f"{body.path}/frames/1", SLIDE[0])
        before = servers.private_bytes(server.pid)
        for name, uid in (("decoded", bodies.EXPLICIT_VR_LITTLE_ENDIAN), ("as JPEG-LS", AS_JPEG_LS)):
            with MemorySampler(server.pid, before) as memory:
                seconds, received = _streamed(server, body.path, uid)
            measure = f"an RLE loop of {frames} frames of 65 kB {name}"
            yield Row(measure, "streamsrv", frames / seconds, f"{received / 1e6:.0f} MB")
            yield Row(f"memory growth, {measure}", "streamsrv", memory.growth / 1e6)


def _streamed(server: Server, path: str, uid: str) -> tuple[float, int]:
    """Seconds and bytes of a chunked answer that no memory holds."""
    accept = frames_as("application/dicom", uid)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=600)
    started, received = time.perf_counter(), 0
    connection.request("GET", server.prefix + path, headers={"Accept": accept})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"a long loop answered {answer.status}")
    while chunk := answer.read(1 << 20):
        received += len(chunk)
    connection.close()
    return time.perf_counter() - started, received
