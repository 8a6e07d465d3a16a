"""Questions about one frame of a CT that has to be made: beside Orthanc, beside the codec library called
directly, by one, two and four clients at once, and on one core.

Strategy: each slice is asked of all in turn: of the server, of Orthanc, and of the library with the array
ready in memory and nothing else to do, in one thread. No frame is asked for twice, so no cache answers; what
a cache does is a row of its own. Single frames are few and far between in a long series: nothing is made
ahead of them. What a client gets stands beside it that takes a whole series frame after frame, as viewers do,
or in random order, as data loaders do: shuffled with a fixed seed, neighbours now and then as chance has it.
The server makes some of those ahead, so each turn is a whole series that is new to all, and nothing is left
to be made between two turns. The same without any of that, by a server with `prefetch` = 0, is a row of its
own. Clients of these throw frames away in the kernel: they share the cores that they measure. Latency of one
client on an idle machine is half waking up of processors, so processor time a frame stands beside it: of the
server's whole process tree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs

from framecodecs.libraries import load
from perf import data, pixel_data, servers
from perf.load import Client, together
from perf.measures import Size, missing, store_study
from perf.report import Claim, Finding, Row, median_row
from perf.servers import Server, family_of

WARM = 3  # requests before those that count
CLIENTS = (2, 4)
LENGTH = 4  # of a series that somebody takes, times the rounds of single frames: 100 instances
TURNS = 3  # series that one client takes from each server, before and after the others' turns
AT_LEAST, AT_MOST = 2.0, 1.3  # of Orthanc's speed; of the library's time
LIBRARY = "library called directly"


class Question(NamedTuple):
    """`accepts` is what both servers take; `peer` says whether Orthanc's package survives it; `direct` is the
    library's own call; `at_least` is what is claimed in relation to Orthanc, `scattered` whether that is
    claimed in random order, of several clients and on one core, too."""

    name: str
    path: str  # below an instance, with {n} for the number of the request
    accept: str
    peer: bool = True
    direct: Callable[[Any], object] | None = None
    at_least: float | None = None
    scattered: bool = False


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
    Question(
        name,
        "/frames/1",
        frames_as(media_type, uid),
        peer,
        direct,
        AT_LEAST if peer else None,
        peer,
    )
    for name, media_type, uid, peer, direct in (
        ("JPEG lossless", "image/jpeg", "1.2.840.10008.1.2.4.70", True, _jpeg_lossless),
        ("JPEG-LS", "image/jls", "1.2.840.10008.1.2.4.80", True, _jpeg_ls),
        ("JPEG extended", "image/jpeg", "1.2.840.10008.1.2.4.51", True, _jpeg_extended),
        ("JPEG 2000", "image/jp2", "1.2.840.10008.1.2.4.90", False, _jpeg_2000),
        ("HTJ2K RPCL", "image/jphc", "1.2.840.10008.1.2.4.202", False, _htj2k),
        ("RLE", "image/dicom-rle", "1.2.840.10008.1.2.5", False, None),
    )
]
CT += [
    Question("rendered as JPEG", "/rendered", "image/jpeg", at_least=1.0),
    Question("rendered as PNG", "/rendered", "image/png", at_least=10.0),
]


def ct(size: Size, both: Sequence[Server], rounds: int) -> Iterator[Finding]:
    with servers.streamsrv(size.folder / "nothing-ahead", "--prefetch=0") as plain:
        plain = dataclasses.replace(plain, name=NOTHING_AHEAD)
        all_of_them = [*both, plain]
        apart = [
            _stored(size, both, FIRST + number, pixel_data.SLICES)[number % pixel_data.SLICES]
            for number in range(rounds + WARM)
        ]
        warm = _stored(size, all_of_them, 70, rounds)
        walked, jumped, *shared = (
            [_stored(size, all_of_them, study, LENGTH * rounds) for study in range(first, first + TURNS)]
            for first in range(80, 100 + 10 * len(CLIENTS), 10)
        )
        jumped = [shuffled(keys) for keys in jumped]
        for question in CT:
            times = dict[str, list[float]]()
            yield from _compared(question, both, apart, times)
            yield from _by_one(question, _asked(question, both), warm, walked, times)
            asked = [*_asked(question, both), plain]
            yield from _by_one(question, asked, warm, jumped, times, IN_RANDOM_ORDER)
            for clients, series in zip(CLIENTS, shared, strict=True):
                yield from _by_several(question, _asked(question, both), series, clients)
    yield from _on_one_core(size, rounds)


FIRST = 300  # of the studies of which one slice each is asked for
NOTHING_AHEAD = "streamsrv with prefetch = 0"


def _stored(size: Size, those: Sequence[Server], study: int, instances: int) -> Sequence[data.Keys]:
    body = pixel_data.ct_slices(study, instances)
    path = body.write(size.folder / "ct.body")
    for server in those:
        store_study(server, path)
    path.unlink()
    return body.keys


def shuffled(keys: Sequence[data.Keys]) -> list[data.Keys]:
    """The same order whenever it is measured."""
    return random.Random(len(keys)).sample(keys, len(keys))


def _compared(
    question: Question, both: Sequence[Server], keys: Sequence[data.Keys], times: dict[str, list[float]]
) -> Iterator[Finding]:
    """The first requests warm processes up. A peer that fails or closes the connection says so."""
    measure = f"CT of 524 kB: {question.name}"
    failures: dict[str, str] = {}
    for number, key in enumerate(keys):
        for server in _asked(question, both):
            if server.name in failures:
                continue
            try:
                took = once(server, key.path + question.path, question.accept)
                times.setdefault(server.name, []).append(took * 1e3)
            except (OSError, RuntimeError) as error:
                failures[server.name] = f"failed: {str(error)[:60]}"
        if question.direct is not None:
            times.setdefault(LIBRARY, []).append(_called(question.direct, number) * 1e3)
    counted = {name: values[WARM:] for name, values in times.items() if name not in failures}
    yield from (median_row(measure, name, values, "ms") for name, values in counted.items())
    yield from (Row(measure, name, None, "ms", why) for name, why in failures.items())
    if not question.peer:
        yield Row(measure, "Orthanc", None, "ms", "its package crashes on this or does not know it")
    elif len(both) == 1:
        yield missing(measure, "Orthanc", "ms")
    yield median_row(measure, "streamsrv, asked again", _again(question, both[0], keys[WARM:]), "ms")
    yield from claimed(question, measure, counted) if question.direct is None else ()


def _again(question: Question, server: Server, keys: Sequence[data.Keys]) -> list[float]:
    """Twice on one connection, because each worker has a cache of its own."""
    with Client(server.address) as client:
        paths = [server.prefix + key.path + question.path for key in keys for _ in range(2)]
        return [client.get(path, question.accept, keep=True).seconds * 1e3 for path in paths][1::2]


def _asked(question: Question, both: Sequence[Server]) -> Sequence[Server]:
    return both if question.peer else both[:1]


def _called(direct: Callable[[Any], object], number: int) -> float:
    picture = pixel_data.ct_pictures()[number % pixel_data.SLICES]
    started = time.perf_counter()
    direct(picture)
    return time.perf_counter() - started


def claimed(question: Question, measure: str, times: dict[str, list[float]]) -> Iterator[Finding]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = medians.get("streamsrv")
    if ours and question.at_least and "Orthanc" in medians:
        ratio, least = medians["Orthanc"] / ours, question.at_least
        yield Claim(f"{measure}, in relation to Orthanc", ratio, "x", at_least=least)
    if ours and LIBRARY in medians:
        ratio = ours / medians[LIBRARY]
        yield Claim(f"{measure}, in relation to the {LIBRARY}", ratio, "x", at_most=AT_MOST)


def once(server: Server, path: str, accept: str) -> float:
    with Client(server.address) as client:
        client.get("/health/live" if server.name == "streamsrv" else "/system")  # the connection is there
        response = client.get(server.prefix + path, accept, keep=True)
    if response.status != 200:
        raise RuntimeError(f"{server.name} answered {response.status}")
    return response.seconds


IN_RANDOM_ORDER = "in random order"


def _by_one(
    question: Question,
    those: Sequence[Server],
    warm: Sequence[data.Keys],
    series: Sequence[Sequence[data.Keys]],
    times: dict[str, list[float]],
    order: str = "",
) -> Iterator[Finding]:
    """One client, one connection, a whole series of each server in turn. It comes when nobody has been there
    for a moment, and whatever has to be started is there."""
    measure = f"CT frames a second, one client: {question.name}"
    rates, order = dict[str, float](), order or "frame after frame"
    spent, seconds = dict.fromkeys(those, 0.0), dict.fromkeys(those, 0.0)
    for server in those:
        together(2, server.address, [partial(_get, question, server, key) for key in warm])
    for keys in series:
        for server in those:
            time.sleep(ALONE)
            with Client(server.address) as client:
                before, started = processor_seconds(server.pid), time.perf_counter()
                for key in keys:
                    _get(question, server, key, client)
                seconds[server] += time.perf_counter() - started
                spent[server] += processor_seconds(server.pid) - before
    count = sum(map(len, series))
    for server in those:
        rates[server.name] = rate = count / seconds[server]
        yield _rate_row(measure, f"{server.name}, {order}", rate, spent[server] / count)
    if question.direct is not None and order != IN_RANDOM_ORDER:
        yield from _claims_of_walk(question, rates, statistics.median(times[LIBRARY][WARM:]))
    if question.scattered and order == IN_RANDOM_ORDER and "Orthanc" in rates:
        text = f"CT frames, one client, {order}: {question.name}, in relation to Orthanc"
        yield Claim(text, rates["streamsrv"] / rates["Orthanc"], "x", at_least=AT_LEAST)


ALONE = 1.2  # seconds


def _claims_of_walk(question: Question, rates: dict[str, float], library: float) -> Iterator[Finding]:
    text = f"CT frames, one client, frame after frame: {question.name}"
    if question.at_least and "Orthanc" in rates:
        ratio = rates["streamsrv"] / rates["Orthanc"]
        yield Claim(f"{text}, in relation to Orthanc", ratio, "x", at_least=question.at_least)
    ratio = 1e3 / rates["streamsrv"] / library
    yield Claim(f"{text}, time in relation to the {LIBRARY}", ratio, "x", at_most=AT_MOST)


def _get(question: Question, server: Server, key: data.Keys, client: Client) -> None:
    path = key.path + question.path
    if client.get(server.prefix + path, question.accept).status != 200:
        raise RuntimeError(path)


def _by_several(
    question: Question,
    those: Sequence[Server],
    series: Sequence[Sequence[data.Keys]],
    clients: int,
    where: str = "several clients",
) -> Iterator[Finding]:
    """Different frames by several clients, of each server in turn: how well the cores are used, and what a
    frame costs."""
    measure = f"CT frames a second, {where}: {question.name}"
    seconds, spent = dict.fromkeys(those, 0.0), dict.fromkeys(those, 0.0)
    failed: dict[Server, str] = {}
    for keys in series:
        for server in those:
            before = processor_seconds(server.pid)
            work = [partial(_get, question, server, key) for key in keys]
            try:
                seconds[server] += together(clients, server.address, work)
            except (OSError, RuntimeError) as error:
                failed[server] = f"failed: {error}"
            spent[server] += processor_seconds(server.pid) - before
    count, rates = sum(map(len, series)), dict[str, float]()
    for server in those:
        if server in failed:
            yield Row(measure, f"{server.name}, {clients} at once", None, "a second", failed[server])
            continue
        rates[server.name] = rate = count / seconds[server]
        yield _rate_row(measure, f"{server.name}, {clients} at once", rate, spent[server] / count)
    if question.scattered and clients == CLIENTS[-1] and {"streamsrv", "Orthanc"} <= rates.keys():
        text = f"CT frames, {where}, {clients} at once: {question.name}, in relation to Orthanc"
        yield Claim(text, rates["streamsrv"] / rates["Orthanc"], "x", at_least=AT_LEAST)


def _rate_row(measure: str, subject: str, rate: float, spent: float) -> Row:
    """`spent` are seconds of processor time a frame."""
    note = f"{rate * 0.524:.0f} MB/s, {spent * 1e3:.2f} ms of processor time each"
    return Row(measure, subject, rate, "a second", note)


def _on_one_core(size: Size, rounds: int) -> Iterator[Finding]:
    """The servers share it in turns; their clients have the others."""
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    with contextlib.ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, first)
        ours = stack.enter_context(servers.streamsrv(size.folder / "one-core"))
        peer = stack.enter_context(servers.orthanc(size.folder / "one-core-peer"))
        os.sched_setaffinity(0, cores - first or cores)
        both = [server for server in (ours, peer) if server is not None]
        warm = _stored(size, both, 70, rounds)
        series = [_stored(size, both, study, LENGTH * rounds) for study in range(80, 80 + TURNS)]
        for question in CT:
            if question.scattered:
                for server in both:
                    together(2, server.address, [partial(_get, question, server, key) for key in warm])
                yield from _by_several(question, both, series, CLIENTS[-1], "one core")


def processor_seconds(pid: int) -> float:
    """Of the process tree, threads that have ended included."""
    ticks = 0
    for process in family_of(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/stat").read_text()
            ticks += sum(map(int, text.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
