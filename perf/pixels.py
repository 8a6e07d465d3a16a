"""Questions about pixels: what a frame costs that has to be made, beside Orthanc with its GDCM plugin in the
same run; and whether a loop that no memory could hold is made in bounded memory.

Every request asks for a frame or picture that nobody has asked for before, so no cache answers.
"""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from perf import data, servers
from perf.load import Client, together
from perf.measures import Size, missing, store_study
from perf.pixel_data import LOOP_FRAMES, jpeg_slide, long_loop, native_loop
from perf.report import Claim, Finding, Row, median_row
from perf.servers import MemorySampler, Server

ROUNDS = 25
LOOP_GROWTH = 100  # MB, the pixel processes included


class Question(NamedTuple):
    """`accepts` is what both servers take; `peer` says whether Orthanc's package survives it."""

    name: str
    path: str  # below an instance, with {n} for the number of the request
    accept: str
    peer: bool = True


def _frames(media_type: str, uid: str) -> str:
    return f'multipart/related; type="{media_type}"; transfer-syntax={uid}'


CT = [
    Question("JPEG lossless", "/frames/1", _frames("image/jpeg", "1.2.840.10008.1.2.4.70")),
    Question("JPEG-LS", "/frames/1", _frames("image/jls", "1.2.840.10008.1.2.4.80")),
    Question("JPEG extended", "/frames/1", _frames("image/jpeg", "1.2.840.10008.1.2.4.51")),
    Question("JPEG 2000", "/frames/1", _frames("image/jp2", "1.2.840.10008.1.2.4.90"), peer=False),
    Question("RLE", "/frames/1", _frames("image/dicom-rle", "1.2.840.10008.1.2.5"), peer=False),
    Question("HTJ2K RPCL", "/frames/1", _frames("image/jphc", "1.2.840.10008.1.2.4.202"), peer=False),
    Question("rendered as JPEG", "/rendered", "image/jpeg"),
    Question("rendered as PNG", "/rendered", "image/png"),
]
RENDERED_FRAME = Question("a frame of a multi-frame rendered", "/frames/{n}/rendered", "image/jpeg")
DECODED_TILE = Question(
    "a JPEG tile of a slide decoded",
    "/frames/{n}",
    _frames("application/octet-stream", "1.2.840.10008.1.2.1"),
)
TRANSCODED_FRAME = Question(
    "a frame of a multi-frame as JPEG-LS", "/frames/{n}", _frames("image/jls", "1.2.840.10008.1.2.4.80")
)
TILE_MILLISECONDS = 5.0
# In relation to Orthanc. One CT in another syntax is what the codec takes, on both sides: no claim.
AT_LEAST = {"rendered as JPEG": 1.0, RENDERED_FRAME.name: 200.0, TRANSCODED_FRAME.name: 2.0}


def pixels(size: Size) -> Iterator[Finding]:
    rounds = max(5, ROUNDS * size.instances // 400)
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "pixels"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        both = [server for server in (ours, peer) if server is not None]
        yield from _ct(size, both, rounds)
        yield from _multi_frames(size, both, rounds)
    yield from _loop(size)


def _ct(size: Size, both: Sequence[Server], rounds: int) -> Iterator[Finding]:
    study = data.ct_study(70, rounds + 3)
    body = study.write(size.folder / "ct.body")
    for server in both:
        store_study(server, body)
    for question in CT:
        paths = [keys.path + question.path for keys in study.keys]
        yield from _compared(f"CT of 524 kB: {question.name}", question, both, paths)
    many = data.ct_study(71, 4 * rounds)
    store_study(both[0], many.write(size.folder / "many.body"))
    yield from _rates(both[0], many)


def _compared(
    measure: str, question: Question, both: Sequence[Server], paths: Sequence[str]
) -> Iterator[Finding]:
    """The first three requests warm processes up. A peer that fails or closes the connection says so."""
    times: dict[str, list[float]] = {}
    for server in both:
        if server.name != "streamsrv" and not question.peer:
            yield Row(measure, server.name, None, "ms", "its package crashes on this or does not know it")
            continue
        try:
            times[server.name] = [_once(server, path, question.accept) * 1e3 for path in paths][3:]
            yield median_row(measure, server.name, times[server.name], "ms")
        except (OSError, RuntimeError) as error:
            yield Row(measure, server.name, None, "ms", f"failed: {str(error)[:60]}")
    if len(both) == 1:
        yield missing(measure, "Orthanc", "ms")
    yield from _claimed(measure, question, times)


def _once(server: Server, path: str, accept: str) -> float:
    with Client(server.address) as client:
        client.get("/health/live" if server.name == "streamsrv" else "/system")  # the connection is there
        response = client.get(server.prefix + path, accept, keep=True)
    if response.status != 200:
        raise RuntimeError(f"{server.name} answered {response.status}")
    return response.seconds


def _rates(server: Server, study: data.Body) -> Iterator[Finding]:
    """Different frames, one and four at once: how well several cores are used."""
    for question in (CT[1], CT[3], CT[6]):
        for clients, part in (
            (1, study.keys[: len(study.keys) // 2]),
            (4, study.keys[len(study.keys) // 2 :]),
        ):
            paths = [server.prefix + keys.path + question.path for keys in part]

            def ask(path: str, accept: str, client: Client) -> None:
                if client.get(path, accept, keep=True).status != 200:
                    raise RuntimeError(path)

            work = [partial(ask, path, question.accept) for path in paths]
            rate = len(work) / together(clients, server.address, work)
            measure = f"CT frames a second: {question.name}"
            yield Row(measure, f"streamsrv, {clients} at once", rate, "a second", f"{rate * 0.524:.0f} MB/s")


def _multi_frames(size: Size, both: Sequence[Server], rounds: int) -> Iterator[Finding]:
    frames = size.instances * 5 // 2
    for body, count, questions in (
        (native_loop(72, frames), frames, (RENDERED_FRAME, TRANSCODED_FRAME)),
        (jpeg_slide(73, size.tiles), size.tiles, (DECODED_TILE,)),
    ):
        path = body.write(size.folder / "multi.body")
        for server in both:
            store_study(server, path)
        for question in questions:
            measure = f"{question.name} ({count} frames, {body.length / 1e6:.0f} MB)"
            yield from _one_of_many(measure, question, both, rounds, body, count)


def _one_of_many(
    measure: str, question: Question, both: Sequence[Server], rounds: int, body: data.Body, count: int
) -> Iterator[Finding]:
    """Orthanc reads and decodes the whole instance for each: it is asked a few times only."""
    times = {}
    for server in both:
        asked = rounds + 3 if server.name == "streamsrv" else 6
        paths = [body.keys[0].path + question.path.format(n=1 + n * 7 % count) for n in range(asked)]
        times[server.name] = [_once(server, one, question.accept) * 1e3 for one in paths][3:]
        yield median_row(measure, server.name, times[server.name], "ms")
    if question is DECODED_TILE:
        ours = statistics.median(times["streamsrv"])
        yield Claim(f"{question.name} takes a few milliseconds", ours, "ms", at_most=TILE_MILLISECONDS)
    yield from _claimed(measure, question, times)


def _claimed(measure: str, question: Question, times: dict[str, list[float]]) -> Iterator[Finding]:
    if "Orthanc" in times and question.name in AT_LEAST:
        ratio = statistics.median(times["Orthanc"]) / statistics.median(times["streamsrv"])
        yield Claim(f"{measure}, in relation to Orthanc", ratio, "x", at_least=AT_LEAST[question.name])


def _loop(size: Size) -> Iterator[Finding]:
    """A loop that is longer than any memory should be: decoded and encoded anew while it is sent."""
    frames = max(2_000, LOOP_FRAMES * size.instances // 400)
    body = long_loop(74, frames)
    with servers.streamsrv(size.folder / "loop") as server:
        store_study(server, body.write(size.folder / "loop.body"))
        _once(server, body.keys[0].path + "/frames/1", DECODED_TILE.accept)
        before = servers.private_bytes(server.pid)
        for name, uid in (("decoded", "1.2.840.10008.1.2.1"), ("as JPEG-LS", "1.2.840.10008.1.2.4.80")):
            with MemorySampler(server.pid, before) as memory:
                seconds, received = _streamed(server, body.keys[0].path, uid)
            measure = f"an RLE loop of {frames} frames of 65 kB {name}"
            note = f"{received / 1e6:.0f} MB; memory grew by {memory.growth / 1e6:.0f} MB"
            yield Row(measure, "streamsrv", frames / seconds, "frames/s", note)
            yield Claim(f"memory grows little: {measure}", memory.growth / 1e6, "MB", at_most=LOOP_GROWTH)


def _streamed(server: Server, path: str, uid: str) -> tuple[float, int]:
    """Seconds and bytes of an answer that is thrown away as it comes."""
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={uid}'
    connection = http.client.HTTPConnection(*server.address, timeout=600)
    started, received = time.perf_counter(), 0
    connection.request("GET", server.prefix + path, headers={"Accept": accept})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"a long loop answered {answer.status}")
    while chunk := answer.read(1 << 20):
        received += len(chunk)
    connection.close()
    return time.perf_counter() - started, received
