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

from perf import data, servers
from perf.load import Client, together
from perf.measures import Size, store_study
from perf.pixel_data import LOOP_FRAMES, jpeg_slide, long_loop, native_loop
from perf.report import Claim, Finding, Row, median_row
from perf.servers import MemorySampler, Server
from perf.transcodes import CLIENTS, Question, claimed, ct, frames_as, once

ROUNDS = 25
LOOP_GROWTH = 100  # MB, the pixel processes included


RENDERED_FRAME = Question(
    "a frame of a multi-frame rendered", "/frames/{n}/rendered", "image/jpeg", at_least=200.0
)
DECODED_TILE = Question(
    "a JPEG tile of a slide decoded",
    "/frames/{n}",
    frames_as("application/octet-stream", "1.2.840.10008.1.2.1"),
)
RENDERED_TILE = Question(
    "a JPEG tile of a slide rendered", "/frames/{n}/rendered", "image/jpeg", at_least=50.0
)
# With a quality it is made, without one it goes out as it is stored.
REMADE_TILE = Question(
    "a JPEG tile of a slide rendered, quality 90", "/frames/{n}/rendered?quality=90", "image/jpeg"
)
TRANSCODED_FRAME = Question(
    "a frame of a multi-frame as JPEG-LS",
    "/frames/{n}",
    frames_as("image/jls", "1.2.840.10008.1.2.4.80"),
    at_least=2.0,
)
TILE_MILLISECONDS = 5.0


def pixels(size: Size) -> Iterator[Finding]:
    rounds = max(5, ROUNDS * size.instances // 400)
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "pixels"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        both = [server for server in (ours, peer) if server is not None]
        yield from ct(size, both, rounds)
        yield from _multi_frames(size, both, rounds)
    yield from _loop(size)


def _multi_frames(size: Size, both: Sequence[Server], rounds: int) -> Iterator[Finding]:
    frames = size.instances * 5 // 2
    for body, count, questions in (
        (native_loop(72, frames), frames, (RENDERED_FRAME, TRANSCODED_FRAME)),
        (jpeg_slide(73, size.tiles), size.tiles, (DECODED_TILE, REMADE_TILE, RENDERED_TILE)),
    ):
        path = body.write(size.folder / "multi.body")
        for server in both:
            store_study(server, path)
        for question in questions:
            measure = f"{question.name} ({count} frames, {body.length / 1e6:.0f} MB)"
            yield from _one_of_many(measure, question, both, rounds, body, count)
            if question is RENDERED_TILE:
                yield from _many_at_once(measure, question, both, rounds, body, count)


def _one_of_many(
    measure: str, question: Question, both: Sequence[Server], rounds: int, body: data.Body, count: int
) -> Iterator[Finding]:
    """Orthanc reads and decodes the whole instance for each: it is asked a few times only."""
    times = {}
    for server in both:
        asked = rounds + 3 if server.name == "streamsrv" else 6
        paths = [body.keys[0].path + question.path.format(n=1 + n * 7 % count) for n in range(asked)]
        times[server.name] = [once(server, one, question.accept) * 1e3 for one in paths][3:]
        yield median_row(measure, server.name, times[server.name], "ms")
    if question is DECODED_TILE:
        ours = statistics.median(times["streamsrv"])
        yield Claim(f"{question.name} takes a few milliseconds", ours, "ms", at_most=TILE_MILLISECONDS)
    yield from claimed(question, measure, times)


def _many_at_once(
    measure: str, question: Question, both: Sequence[Server], rounds: int, body: data.Body, count: int
) -> Iterator[Finding]:
    """Other ones, by several clients: each asks Orthanc once, and this server as often as alone."""
    for clients in CLIENTS:
        for server in both:
            asked = rounds * clients if server.name == "streamsrv" else clients
            numbers = [count - (clients * rounds + n) * 7 % count for n in range(asked)]
            paths = [body.keys[0].path + question.path.format(n=number) for number in numbers]
            work = [partial(_asked, server, path, question.accept) for path in paths]
            rate = asked / together(clients, server.address, work)
            yield Row(measure, f"{server.name}, {clients} at once", rate, "a second")


def _asked(server: Server, path: str, accept: str, client: Client) -> None:
    if client.get(server.prefix + path, accept, keep=True).status != 200:
        raise RuntimeError(path)


def _loop(size: Size) -> Iterator[Finding]:
    """A loop that is longer than any memory should be: decoded and encoded anew while it is sent."""
    frames = max(2_000, LOOP_FRAMES * size.instances // 400)
    body = long_loop(74, frames)
    with servers.streamsrv(size.folder / "loop") as server:
        store_study(server, body.write(size.folder / "loop.body"))
        once(server, body.keys[0].path + "/frames/1", DECODED_TILE.accept)
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
