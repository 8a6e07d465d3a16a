"""A small world to test the store in: instances that are made up, and what storing one takes."""

import json

from streamsrv.dicom.instance import BulkValue, FrameKind
from streamsrv.errors import NotDicom
from streamsrv.store.rows import InstanceKey, InstanceRow, NewInstance, OnDuplicate
from streamsrv.store.store import Store, StoreOptions

OPTIONS = StoreOptions(segment_size=64 << 10, min_free=0)
HEAD = b"made-up instance\n"
PIXEL_FACTS = 8 | 2 << 9


def key_of(study, series=1, instance=1):
    return InstanceKey(f"1.{study}", f"1.{study}.{series}", f"1.{study}.{series}.{instance}")


def payload_of(key, size=200, fill="x"):
    """An "instance" that says its own key, so that it can be derived from its bytes alone."""
    head = HEAD + " ".join(key).encode() + b"\n"
    body = (fill.encode() * size)[: max(size - len(head), 0)]
    return head + body


def learn(read, row_facts):
    """The NewInstance of a payload: what the Part 10 reader and Ingest do for real ones."""
    text = read(0, 512)
    if not text.startswith(HEAD):
        raise NotDicom("not a made-up instance")
    key = InstanceKey(*text[len(HEAD) :].split(b"\n", 1)[0].decode().split(" "))
    length = row_facts["location"].length
    metadata = json.dumps({"00080018": {"vr": "UI", "Value": [key.instance]}, "n": length}).encode()
    attributes = {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": f"Name^{key.study}"}]},
        "00100020": {"vr": "LO", "Value": [f"P{key.study}"]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00080020": {"vr": "DA", "Value": ["20240102"]},
    }
    row = InstanceRow(
        key=key,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax="1.2.840.10008.1.2.1",
        dataset_offset=len(HEAD),
        deflated=False,
        pixel_offset=100,
        pixel_length=length - 100,
        rows=2,
        columns=3,
        pixel_facts=PIXEL_FACTS,
        samples_per_pixel=1,
        bits_allocated=8,
        frame_kind=FrameKind.TABLE,
        number_of_frames=1,
        frame_base=0,
        frame_stride=0,
        metadata_length=len(metadata),
        metadata_slots=0,
        **row_facts,
    )
    table = (100).to_bytes(8, "little") + (length - 100).to_bytes(8, "little")
    bulk = [BulkValue("7FE00010", "OW", 100, length - 100)]
    return NewInstance(row, [], table, bulk, attributes, metadata)


def derive(record):
    """As check and reindex want it."""
    return describe(record)


def describe(record):
    return learn(
        record.pread,
        {
            "location": record.location,
            "record_id": record.record_id,
            "stored_at": record.stored_at,
            "digest": record.digest,
        },
    )


def add(transaction, payload, window=64, original=None):
    """One record, its payload in pieces; returns what commit wants of it."""
    transaction.open_record(original)
    for at in range(0, len(payload), window * 3):
        piece = memoryview(payload)[at : at + window * 3]
        transaction.write([piece[:window], piece[window:]])
    record = transaction.close_record()
    return record, describe(record)


def put(store, *payloads, on_duplicate=OnDuplicate.REFUSE):
    """Store payloads in one request."""
    transaction = store.begin()
    try:
        return transaction.commit([add(transaction, payload) for payload in payloads], on_duplicate)
    finally:
        transaction.abort()


def get(store, key):
    """The stored bytes, or None."""
    rows = store.lookup(*key)
    if not rows:
        return None
    location = rows[0].location
    with store.open_segments([location.segment]) as lease:
        return lease.pread(location.segment, location.offset, location.length)


def open_store(folder, **options):
    return Store.open(folder, options.pop("options", OPTIONS), **options)
