"""Frames of what has very many: a loop of 20,000 encapsulated frames, a whole slide of 100,000 tiles; one at
a time at random places, and in lists.

Orthanc reads the whole instance for each request, so it is asked a few times, and of the loop only.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from perf import data, servers
from perf.flood import flood
from perf.load import FRAME, Client, answered, percentile
from perf.measures import Size, store_study, stored
from perf.report import Finding, Row, median_row
from perf.servers import Server

TILE = 21_000
ASKED = 500  # frames by one client
ROUNDS = 3
LISTS = (10, 100)  # frames a request
CLIENTS = (1, 16)
DIFFERENT = 2_000  # requests, in turn
PEER = 3  # requests


def frame_lists(size: Size) -> Iterator[Finding]:
    loop = data.multi_frame(90, size.loop, TILE)
    slide = data.pyramid(91, size.slide, TILE)
    path = size.folder / "many.body"
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "many"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        for body, asked in ((loop, (ours, peer)), (slide, (ours,))):
            body.write(path)
            for server in asked:
                if server is not None:
                    store_study(server, path)
        path.unlink()
        yield from _places(f"a loop of {size.loop:,} frames", ours, peer, loop.keys[0].path, size.loop)
        yield from _places(
            f"a slide of {size.slide:,} tiles", ours, None, slide.keys[0].path, size.slide * 3 // 4
        )
        yield from _rates(size, "a loop", ours, [(loop.keys[0].path, size.loop)])
        yield from _rates(size, "a slide", ours, _levels(slide, size.slide))


def _levels(slide: data.Body, tiles: int) -> list[tuple[str, int]]:
    """Path and number of tiles of each level that has more than a few."""
    found = []
    for key in slide.keys:
        count = max(1, tiles * 3 // 4)
        found.append((key.path, count))
        tiles -= count
    return [(path, count) for path, count in found if count >= max(LISTS)] or found[:1]


def _places(what: str, ours: Server, peer: Server | None, path: str, frames: int) -> Iterator[Finding]:
    """The first frame, the last, and any: what costs the same at every place has one cost."""
    numbers = random.Random(1)
    places: dict[str, Callable[[], int]] = {
        "the first": lambda: 1,
        "the last": lambda: frames,
        "any": lambda: numbers.randrange(1, frames + 1),
    }
    for name, place in places.items():
        measure = f"one frame of {what}: {name}"
        times = _times(ours, path, [place() for _ in range(ASKED)])
        note = f"p95 {percentile(times, 0.95):.3g}, p99 {percentile(times, 0.99):.3g}, {len(times)} requests"
        yield Row(measure, "streamsrv", statistics.median(times), "ms", note)
        if peer is not None:
            yield median_row(measure, "Orthanc", _times(peer, path, [place() for _ in range(PEER)]), "ms")


def _times(server: Server, path: str, numbers: Sequence[int]) -> list[float]:
    """Milliseconds."""
    times = []
    with Client(server.address) as client:
        for number in numbers:
            response = client.get(f"{server.prefix}{path}/frames/{number}", FRAME)
            stored(response.status, f"{server.name}'s frame")
            times.append(response.seconds * 1e3)
    return times


def _rates(size: Size, what: str, ours: Server, parts: Sequence[tuple[str, int]]) -> Iterator[Finding]:
    numbers = random.Random(2)

    def paths(count: int) -> list[str]:
        made = []
        for _ in range(DIFFERENT):
            path, frames = numbers.choice(parts)
            chosen = ",".join(str(numbers.randrange(1, frames + 1)) for _ in range(min(count, frames)))
            made.append(f"{ours.prefix}{path}/frames/{chosen}")
        return made

    for clients in CLIENTS:
        for count in (1, *LISTS):
            ask, asked = (answered if count == 1 else flood), paths(count)
            answers = [ask(ours.address, asked, FRAME, clients, size.seconds / 2) for _ in range(ROUNDS)]
            last = answers[-1]
            note = f"{count * last.rate:,.0f} frames a second, {last.megabytes:,.0f} MB/s; {last.note}"
            measure = f"lists of {count} frames of {what}, {clients} at once"
            if count == 1:
                measure = f"frames of {what} at random, {clients} at once"
            yield median_row(measure, "streamsrv", [one.rate for one in answers], "a second", note)
