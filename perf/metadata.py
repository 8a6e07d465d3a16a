"""The metadata of 400 CT instances: the first request after the store, then many; plain and gzip; beside
nginx with the same JSON in a file, and beside Orthanc.

nginx's gzip is the file compressed beforehand (gzip_static), the cheapest there can be.
"""

from __future__ import annotations

import gzip
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

from perf import data, servers
from perf.flood import flood
from perf.load import Answered, Client
from perf.measures import Size, forget, missing, store_study, stored
from perf.report import Claim, Finding, Row, median_row
from perf.servers import Server

JSON = "application/dicom+json"
CLIENTS = (1, 16)
ROUNDS = 3
FIRST_MS, NGINX = 10.0, 0.5
PEER_FIRST = 2


def study_metadata(size: Size) -> Iterator[Finding]:
    files = size.folder / "nginx"
    files.mkdir()
    with ExitStack() as stack:
        ours = stack.enter_context(servers.streamsrv(size.folder / "metadata"))
        peer = stack.enter_context(servers.orthanc(size.folder / "peer"))
        yield from _first(size, ours, peer)
        body = data.ct_study(100, size.instances)
        path = body.write(size.folder / "study.body")
        url = f"/studies/{body.keys[0].study}/metadata"
        for server in (ours, peer):
            if server is not None:
                store_study(server, path)
        with Client(ours.address) as client:
            text = client.get(ours.prefix + url, JSON, keep=True).payload
        (files / "metadata.json").write_bytes(text)
        (files / "metadata.json.gz").write_bytes(gzip.compress(text, 6))
        web = stack.enter_context(servers.nginx(files))
        for encoding in ("identity", "gzip"):
            for clients in CLIENTS:
                yield from _again(size, ours, peer, web, url, encoding, clients)


def _first(size: Size, ours: Server, peer: Server | None) -> Iterator[Finding]:
    """Each of a study that was stored just now."""
    measure = f"metadata of {size.instances} instances, the first request after the store"
    for server, rounds in ((ours, size.rounds), (peer, PEER_FIRST)):
        if server is None:
            yield missing(measure, "Orthanc", "ms")
            continue
        times = []
        for number in range(rounds + 1):
            body = data.ct_study(101 + number, size.instances)
            store_study(server, body.write(size.folder / "study.body"))
            path = f"{server.prefix}/studies/{body.keys[0].study}/metadata"
            with Client(server.address) as client:
                response = client.get(path, JSON)
            stored(response.status, f"{server.name}'s metadata")
            times.append(response.seconds * 1e3)
            forget(server, body.keys[0].study)
        yield median_row(measure, server.name, times[1:], "ms")
        if server is ours:
            yield Claim(measure, statistics.median(times[1:]), "ms", at_most=FIRST_MS)


def _again(
    size: Size,
    ours: Server,
    peer: Server | None,
    web: Server | None,
    url: str,
    encoding: str,
    clients: int,
) -> Iterator[Finding]:
    how = "plain" if encoding == "identity" else encoding
    measure = f"metadata of {size.instances} instances, {how}, {clients} at once"
    subjects = {"streamsrv": (ours, ours.prefix + url)}
    if web is not None:
        subjects["nginx"] = (web, "/metadata.json")
    _known_to_all(ours, url, encoding)
    found: dict[str, list[Answered]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, (server, path) in subjects.items():
            answers = flood(server.address, [path], JSON, clients, size.seconds / 2, encoding)
            found[name].append(answers)
    for name, each in found.items():
        note = f"{each[-1].megabytes:,.0f} MB/s; {each[-1].note}"
        yield median_row(measure, name, [one.rate for one in each], "a second", note)
    if web is None:
        yield missing(measure, "nginx", "a second")
    elif encoding == "identity":
        relation = statistics.median(
            a.rate / b.rate for a, b in zip(found["streamsrv"], found["nginx"], strict=True)
        )
        yield Claim(f"{measure}, in relation to nginx", relation, "x", at_least=NGINX)
    if peer is not None and encoding == "identity" and clients == 1:
        yield _peer_row(measure, peer, url)


def _known_to_all(ours: Server, url: str, encoding: str) -> None:
    """Each worker makes the text once, and sends it in chunks while it does; later answers have a length."""
    in_a_row = 0
    while in_a_row < 16:
        with Client(ours.address) as client:
            answer = client.get(ours.prefix + url, JSON, encoding, keep=True)
        in_a_row = in_a_row + 1 if "content-length" in answer.headers else 0


def _peer_row(measure: str, peer: Server, url: str) -> Row:
    """Its answers are in chunks, which `perf.flood` does not read."""
    count, began = 10, time.perf_counter()
    with Client(peer.address) as client:
        for _ in range(count):
            stored(client.get(peer.prefix + url, JSON, keep=True).status, "Orthanc's metadata")
    return Row(measure, "Orthanc", count / (time.perf_counter() - began), "a second")
