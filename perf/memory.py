"""Bounded memory: how much the server's own memory grows while it takes and gives what no memory could hold.

Bodies come from a generator, so that a 10 GB instance lies on the disk once: in the store. The limits are
those that the project promises; the growth counts from the server as it stood ready, before its first
request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perf import data, servers
from perf.load import AS_STORED, Client, together
from perf.measures import stored
from perf.report import Claim, Finding, Row
from perf.servers import MemorySampler, Server

FRAME = 512 * 1024
ONE_AT_A_TIME = 50  # MB
EIGHT_AND_EIGHT = 200  # MB


@dataclass(frozen=True, slots=True)
class MemorySize:
    folder: Path
    large: int = 10 * 10**9  # bytes of the one instance
    instances: int = 2_000
    each: int = 10**9  # bytes of each of the eight uploads


def bounded_memory(size: MemorySize) -> Iterator[Finding]:
    with servers.streamsrv(size.folder / "memory") as server:
        before = servers.private_bytes(server.pid)
        yield Row("memory", "ready, no request yet", before / 1e6, "MB", "RssAnon + RssShmem, all processes")
        large = data.multi_frame(10, max(1, size.large // FRAME), FRAME)
        many = data.ct_study(11, size.instances)
        what = f"one instance of {large.length / 1e9:.3g} GB"
        yield from _grown(server, before, f"{what} in", partial(upload, server, large), ONE_AT_A_TIME)
        yield from _grown(server, before, f"{what} out", partial(download, server, large), ONE_AT_A_TIME)
        what = f"{size.instances} instances of 526 kB"
        yield from _grown(server, before, f"{what} in", partial(upload, server, many), ONE_AT_A_TIME)
        yield from _grown(server, before, f"{what} out", partial(download, server, many), ONE_AT_A_TIME)
        yield from _grown(
            server,
            before,
            f"eight uploads of {size.each / 1e9:.3g} GB and eight downloads at once",
            partial(eight_and_eight, server, size, (large, many)),
            EIGHT_AND_EIGHT,
        )


def _grown(
    server: Server, before: int, what: str, work: Callable[[], float], limit: int
) -> Iterator[Finding]:
    with MemorySampler(server.pid, before) as memory:
        rate = work()
    yield Row("memory growth", what, memory.growth / 1e6, "MB", f"at {rate:.0f} MB/s")
    yield Claim(f"memory grows little: {what}", memory.growth / 1e6, "MB", at_most=limit)


def upload(server: Server, body: data.Body) -> float:
    """MB/s."""
    with Client(server.address) as client:
        return put(server, body, client)


def put(server: Server, body: data.Body, client: Client) -> float:
    response = client.post_chunks(f"{server.prefix}/studies", data.CONTENT_TYPE, body.length, body.chunks())
    stored(response.status, f"a store of {body.length} bytes")
    return body.length / 1e6 / response.seconds


def download(server: Server, body: data.Body) -> float:
    """MB/s."""
    with Client(server.address) as client:
        return get(server, body, client)


def get(server: Server, body: data.Body, client: Client) -> float:
    response = client.get(f"{server.prefix}/studies/{body.keys[0].study}", AS_STORED)
    stored(response.status, "a retrieve")
    framing = len(body.keys) * 1000 + 1000
    if abs(response.length - body.length) > framing:
        raise RuntimeError(f"{body.length} bytes went in, {response.length} came out")
    return response.length / 1e6 / response.seconds


def eight_and_eight(server: Server, size: MemorySize, there: tuple[data.Body, data.Body]) -> float:
    """Four of the uploads are one large instance, four are studies; the downloads take what is there
    already."""
    frames = max(1, size.each // FRAME)
    bodies = [
        data.multi_frame(20 + n, frames, FRAME) if n % 2 else data.ct_study(20 + n, frames) for n in range(8)
    ]
    work = [partial(put, server, body) for body in bodies]
    work += [partial(get, server, there[n % 2]) for n in range(8)]
    seconds = together(16, server.address, work)
    moved = sum(body.length for body in bodies) + 4 * sum(body.length for body in there)
    return moved / 1e6 / seconds
