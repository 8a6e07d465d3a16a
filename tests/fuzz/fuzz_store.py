"""Readers of the data folder and of settings: identity, records, configuration."""

import os
import tempfile
from pathlib import Path

from fuzz_targets import target

from streamsrv.config import SettingsError, from_toml
from streamsrv.errors import StoreError, WrongStore
from streamsrv.store.folder import Layout, identity_of
from streamsrv.store.segments.manifest import MAGIC, ManifestFormat, Slot, State, slot_offset
from streamsrv.store.segments.records import (
    SEGMENT_MAGIC,
    DamagedBytes,
    FoundRecord,
    HeaderDamaged,
    RecordFormat,
    RecordHeader,
    RecordKind,
    TombstoneDamaged,
    is_file_header_damaged,
    pack_file_header,
    pack_ids,
    unpack_ids,
)

FORMAT = RecordFormat(b"k" * 32)
SEGMENT = 3
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
FOLDER = Path(tempfile.mkdtemp(prefix="streamsrv-fuzz-", dir=MEMORY))


def record(offset, payload, kind=RecordKind.INSTANCE):
    header = RecordHeader(kind, bytes([offset % 251] * 16), 1_700_000_000_000_000, len(payload), bytes(20), 0)
    return FORMAT.pack(header, SEGMENT, offset) + payload


@target(HeaderDamaged, words=[FORMAT.marker, b"\1\1", b"\1\2"])
def record_header(content):
    header = FORMAT.unpack(content, SEGMENT, 0)
    assert FORMAT.pack(header, SEGMENT, 0) == content[:104]


@target(WrongStore, words=[SEGMENT_MAGIC, FORMAT.fingerprint, FORMAT.marker])
def segment_head(content):
    if not is_file_header_damaged(content, FORMAT, Path("3")):
        assert content == pack_file_header(FORMAT, SEGMENT)


@target(words=[FORMAT.marker, record(0, b"ab"), record(106, b"cdef"), b"\1\3"])
def segment_walk(content):
    """Records and damage together are the whole file, up to a pending record."""
    descriptor = os.memfd_create("segment")
    try:
        os.write(descriptor, content)
        at = 0
        for step in FORMAT.walk(descriptor, SEGMENT, len(content), start=0):
            assert step.offset == at, (step, at)
            assert isinstance(step, (FoundRecord, DamagedBytes))
            at = step.end
            if isinstance(step, FoundRecord) and step.header.kind is RecordKind.PENDING:
                return
        assert at == len(content)
    finally:
        os.close(descriptor)


MANIFEST = ManifestFormat(FORMAT.fingerprint)
SLOTS = [MANIFEST.pack(1, Slot(State.GROWING, 300)), MANIFEST.pack(2, Slot(State.SEALED, 1 << 30)), bytes(16)]


@target(WrongStore, words=[MAGIC, FORMAT.fingerprint, MANIFEST.header(), *SLOTS])
def manifest(content):
    """What is read is there to the byte, or is told as damage."""
    slots = MANIFEST.slots(content)
    assert slots.header_damaged == (content[:64] != MANIFEST.header())
    for segment, slot in slots.known.items():
        at = slot_offset(segment)
        assert content[at + 1 : at + 16] == MANIFEST.pack(segment, slot)[1:]
    assert not set(slots.known) & set(slots.damaged)


@target(TombstoneDamaged, words=[pack_ids([b"i" * 16]), bytes(16)])
def tombstone(content):
    """A change that is not told changes no id."""
    ids = unpack_ids(content)
    whole = pack_ids(ids)
    assert len(whole) == len(content)
    length = 16 * len(ids)
    first, second = content[:length], content[len(content) - length :]
    assert whole[:length] in (first, second)


@target(
    StoreError,
    words=[b"store_id", b"secret", b"format_version", b" = ", b'"', b"00", b"1", b"[a]", b"\n", b"#"],
)
def identity(content):
    (FOLDER / "store.toml").write_bytes(content)
    found = identity_of(Layout(FOLDER))
    assert len(found.secret) == 32


@target(
    SettingsError,
    words=[
        b"[http]\n",
        b"port = ",
        b"host = ",
        b"[",
        b"]",
        b'"',
        b"true",
        b"allowed_hosts = ",
        b"workers = ",
        b"1e99",
        b"\n",
        b"nan",
    ],
)
def settings_file(content):
    file = FOLDER / "streamsrv.toml"
    file.write_bytes(content)
    from_toml(file)
