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

import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, NamedTuple

import imagecodecs

from framecodecs.libraries import load
from perf import bodies, servers
from perf.bodies import Body, Keys
from perf.clients import Client, together
from perf.results import LIBRARY, ORTHANC, OURS, Row, median_row
from perf.run import Run
from perf.servers import MemorySampler, Service, cpu_seconds

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
TILE = "a JPEG tile of a slide"
MULTI_FRAME = (
    Representation("a frame of a multi-frame rendered", "/frames/{n}/rendered", "image/jpeg"),
    Representation("a frame of a multi-frame as JPEG-LS", "/frames/{n}", frames_as("image/jls", AS_JPEG_LS)),
)
# With a quality the tile is encoded, without one it goes out as it is stored.
SLIDE = (
    Representation(f"{TILE} decoded", "/frames/{n}", DECODED),
    Representation(f"{TILE} rendered, quality 90", "/frames/{n}/rendered?quality=90", "image/jpeg"),
    Representation(f"{TILE} rendered", "/frames/{n}/rendered", "image/jpeg"),
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
            run.store(body, both)
            for wanted in all_wanted:
                yield from _one_of_many(wanted, both, rounds, body, count)
    if run.target is None:
        yield from _on_one_core(run, rounds)
        yield from _loop(run)


# --- a CT ---


def _ct(run: Run, both: Sequence[Service], rounds: int) -> Iterator[Row]:
    plain = nullcontext() if run.target else run.streamsrv("nothing-ahead", "--prefetch=0")
    with plain as nothing_ahead:
        more = [dataclasses.replace(nothing_ahead, name=NOTHING_AHEAD)] if nothing_ahead else []
        every = [*both, *more]
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
            _rates("", "warm", wanted, [*asked, *more], [warm], 2)
            name = f"{MEASURE}, one client: {wanted.name}"
            yield from _rates(name, "frame after frame", wanted, asked, in_order, 1)
            yield from _rates(name, "in random order", wanted, [*asked, *more], shuffled, 1)
            name = f"{MEASURE}, several clients: {wanted.name}"
            for clients, series in zip(CLIENTS, shared, strict=True):
                yield from _rates(name, f"{clients} at once", wanted, asked, series, clients)


def _on_one_core(run: Run, rounds: int) -> Iterator[Row]:
    """The servers share one core in turns; their clients have the others."""
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, first)
        both = stack.enter_context(run.both("one-core"))
        os.sched_setaffinity(0, cores - first or cores)
        warm = _stored(run, both, 70, rounds)
        series = [_stored(run, both, study, LENGTH * rounds) for study in range(80, 80 + TURNS)]
        clients = CLIENTS[-1]
        for wanted in CT:
            if wanted.peer and wanted.direct is not None:
                _rates("", "warm", wanted, both, [warm], 2)
                name = f"{MEASURE}, one core: {wanted.name}"
                yield from _rates(name, f"{clients} at once", wanted, both, series, clients)


def _stored(run: Run, those: Sequence[Service], study: int, instances: int) -> Sequence[Keys]:
    body = bodies.ct_slices(study, instances)
    run.store(body, those)
    return body.keys


def _compared(wanted: Representation, asked: Sequence[Service], keys: Sequence[Keys]) -> Iterator[Row]:
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
        yield Row(measure, ORTHANC, None, "its package crashes on this or does not know it")
    # Twice on one connection, because each worker has a cache of its own.
    again = [key.path + wanted.path for key in keys[WARM:] for _ in range(2)]
    with Client(asked[0]) as client:
        seconds = [client.get(path, wanted.accept, keep=True).seconds for path in again][1::2]
    yield median_row(measure, f"{OURS}, asked again", [one * 1e3 for one in seconds])


def once(server: Service, path: str, wanted: Representation) -> float:
    """Milliseconds of one request on a connection that is there."""
    with Client(server) as client:
        client.get("//health/live" if server.name == OURS else "//system")
        return client.get(path, wanted.accept, keep=True).seconds * 1e3


def _rates(
    measure: str,
    subject: str,
    wanted: Representation,
    those: Sequence[Service],
    series: Sequence[Sequence[Keys]],
    clients: int,
) -> list[Row]:
    """Whole series by so many clients, of each server in turn. One client comes after a moment without
    requests. A server that fails has a row with the reason."""
    totals = {server: [0.0, 0.0] for server in those}
    failed: dict[Service, str] = {}
    for keys in series:
        paths = [key.path + wanted.path for key in keys]
        work = [lambda client, path=path: client.get(path, wanted.accept) for path in paths]
        for server, total in totals.items():
            time.sleep(ALONE if clients == 1 else 0)
            before = cpu_seconds(server.pid)
            try:
                total[0] += together(clients, server, work)
            except (OSError, RuntimeError) as error:
                failed[server] = f"failed: {error}"
            total[1] += cpu_seconds(server.pid) - before
    count, rows = sum(map(len, series)), []
    for server, (seconds, spent) in totals.items():
        value = None if server in failed else count / seconds
        note = failed.get(server) or f"{count / seconds * 0.524:.0f} MB/s"
        note += f", {spent / count * 1e3:.2f} ms of processor time each" if spent and value else ""
        rows.append(Row(measure, f"{server.name}, {subject}", value, note))
    return rows


# --- one frame of many ---


def _one_of_many(
    wanted: Representation, both: Sequence[Service], rounds: int, body: Body, count: int
) -> Iterator[Row]:
    measure = f"{wanted.name} ({count} frames, {body.length / 1e6:.0f} MB)"
    for server in both:
        asked = WARM + (rounds if server is both[0] else PEER_FRAMES)
        paths = [body.path + wanted.path.format(n=1 + number * 7 % count) for number in range(asked)]
        times = [once(server, path, wanted) for path in paths]
        yield median_row(measure, server.name, times[WARM:])


def _loop(run: Run) -> Iterator[Row]:
    """A loop that no memory should hold: decoded and encoded again while it is sent."""
    frames = max(2_000, 50 * run.size.instances)
    body = bodies.long_loop(74, frames)
    with run.streamsrv("loop") as server:
        run.store(body, [server])
        once(server, f"{body.path}/frames/1", SLIDE[0])
        before = servers.private_bytes(server.pid)
        for name, uid in (("decoded", bodies.EXPLICIT_VR_LITTLE_ENDIAN), ("as JPEG-LS", AS_JPEG_LS)):
            with MemorySampler(server.pid, before) as memory, Client(server) as client:
                answer = client.get(body.path, frames_as("application/dicom", uid))
            measure = f"an RLE loop of {frames} frames of 65 kB {name}"
            yield Row(measure, OURS, frames / answer.seconds, f"{answer.length / 1e6:.0f} MB")
            yield Row(f"memory growth, {measure}", OURS, memory.growth / 1e6)
