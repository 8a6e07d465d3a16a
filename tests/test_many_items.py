"""Instances of very many items: read in linear time, beside others, and no longer than their client waits.

`SOAK=20 python -m pytest tests/test_many_items.py` reads one of 5 million elements and items.
"""

import gc
import json
import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile_files import SEQUENCE_END, UNDEFINED, dataset, element, instance, item, new_uid, part10
from hostile_world import DEADLINE, DICOM, SENTINEL, Probes, World, connect, converse, head, post, replies

from streamsrv.dicom.part10 import read_instance
from streamsrv.dicom.series_template import SeriesReader
from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import BadRequest
from streamsrv.ingest import Ingest
from streamsrv.store.store import Store, StoreOptions

SOAK = int(os.environ.get("SOAK", "1"))
PER_FRAME = 0x52009230
# Elements and items of one frame, and their bytes.
FRAME = item(
    element(0x00209111, "SQ", item(element(0x00209157, "UL", struct.pack("<II", 1, 2))))
    + element(0x00209113, "SQ", item(element(0x00200032, "DS", b"1\\2\\3 ")))
)
IN_A_FRAME = 7


def enhanced(frames, **uids):
    return part10(dataset(**uids) + element(PER_FRAME, "SQ", FRAME * frames + SEQUENCE_END, UNDEFINED))


def empty_items(number, **uids):
    return part10(dataset(**uids) + element(PER_FRAME, "SQ", item() * number))


def seconds(file, read=read_instance):
    """Processor time of one reading."""
    began = time.process_time()
    read(
        lambda offset, length: file[offset : offset + length],
        len(file),
        keep=frozenset(),
        emit=lambda text: None,
        limits=ReadLimits(),
    )
    return time.process_time() - began


@pytest.mark.no_cover
@pytest.mark.parametrize("make", [enhanced, empty_items])
def test_time_is_linear(make):
    """Twice as many take twice as long, and what comes before in a series changes nothing."""
    number = 5_000 if make is enhanced else 80_000
    once, twice = make(number), make(2 * number)
    ratio = min(seconds(twice) / seconds(once) for _ in range(2))
    assert ratio < 3
    read = SeriesReader().read
    alone = min(seconds(once) for _ in range(3))
    again = [seconds(once, read) for _ in range(4)]
    assert min(again[1:]) < 2 * alone


def test_the_garbage_collector_does_not_visit_items_that_wait():
    file = enhanced(2_000)
    seconds(file)
    before = [generation["collections"] for generation in gc.get_stats()]
    seconds(file)
    after = [generation["collections"] for generation in gc.get_stats()]
    assert sum(after) - sum(before) <= 3


def test_a_kept_sequence_has_all_items():
    file, texts = enhanced(300), []
    kept = read_instance(
        lambda offset, length: file[offset : offset + length],
        len(file),
        keep=frozenset(("52009230",)),
        emit=texts.append,
        limits=ReadLimits(),
    ).attributes["52009230"]
    frame = {
        "00209111": {"vr": "SQ", "Value": [{"00209157": {"vr": "UL", "Value": [1, 2]}}]},
        "00209113": {"vr": "SQ", "Value": [{"00200032": {"vr": "DS", "Value": [1, 2, 3]}}]},
    }
    assert (
        kept == {"vr": "SQ", "Value": [frame] * 300} == json.loads(b"".join(texts), strict=False)["52009230"]
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("items"), workers=1)
    yield world
    world.end()


def test_an_enhanced_instance_goes_in_and_stops_nobody(hostile):
    """100,000 elements and items; with SOAK 5 million."""
    frames = (5_000_000 if SOAK > 1 else 100_000) // IN_A_FRAME
    study = new_uid()
    file = enhanced(frames, study=study)
    with Probes(hostile) as probes:
        reply, alive = replies(converse(hostile.origin, post(DICOM, file) + SENTINEL, seconds=60 * SOAK))
    assert (reply.status, alive.body) == (200, b"alive\n"), reply
    assert probes.percentile(0.99) < 1
    if SOAK == 1:
        (metadata,) = hostile.get(f"/v2/studies/{study}/metadata").json()
        assert len(metadata["52009230"]["Value"]) == frames


def test_many_long_headers_in_one_body_do_not_stop_the_loop(hostile):
    """Each is short enough to be read between two reads of the socket, but for its elements."""
    files = [empty_items(100_000) for _ in range(8)]
    with Probes(hostile) as probes:
        reply = hostile.store(*files)
    assert reply.status == 200, reply
    assert max(probes.seconds) < 2


def test_searches_that_read_long_metadata_stop_no_other(hostile):
    """Sixty at once of one client, by an attribute that is not indexed. Most wait without a thread."""
    elements = b"".join(struct.pack("<HH2sH", 0x0029, tag, b"LO", 0) for tag in range(0x1000, 0xF000))
    nested = element(0x00291000, "SQ", item(elements) * 8)
    assert hostile.answered(post(DICOM, part10(dataset({0x00291000: nested})))).status == 200
    asked = [head(f"GET /v2/instances?0029EEEE=x{number}", "Connection: close") for number in range(60)]
    with ThreadPoolExecutor(60) as threads, Probes(hostile) as probes:
        searches = [threads.submit(converse, hostile.origin, each) for each in asked]
        time.sleep(0.5)
        began = time.monotonic()
        assert hostile.store(instance()).status == 200
        took = time.monotonic() - began
        told = [reply for each in searches for reply in replies(each.result())]
    assert {204} <= {reply.status for reply in told} <= {204, 503}
    assert all("retry-after" in reply.headers for reply in told if reply.status == 503)
    assert len(told) == 60
    print(f"the store beside took {took:.2f} s, the slowest probe {max(probes.seconds):.2f} s")
    assert max(took, *probes.seconds) < 5


def test_reading_stops_when_the_client_has_left(hostile):
    """A client that closes leaves nothing."""
    study, log = new_uid(), hostile.server.log
    began, until = log.stat().st_size, time.monotonic() + DEADLINE
    with connect(hostile.origin) as gone:
        gone.sendall(post(DICOM, empty_items(2_000_000, study=study)))
    while " 499 " not in log.read_text()[began:]:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert hostile.get(f"/v2/studies/{study}").status == 404


def test_a_reading_that_is_stopped_ends_at_the_next_window(tmp_path):
    with Store.open(tmp_path / "data", StoreOptions(min_free=0)) as store:
        ingest = Ingest(store, content_type="application/dicom")
        ingest.begin()
        file = empty_items(400_000)
        for at in range(0, len(file), 1 << 20):
            ingest.feed(file[at : at + (1 << 20)])
        ingest.stop()
        began = time.process_time()
        with pytest.raises(BadRequest, match="the client left"):
            ingest.finish()
        assert time.process_time() - began < 0.3
        ingest.abort()
