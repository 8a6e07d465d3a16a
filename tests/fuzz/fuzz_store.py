"""Readers of the data folder and of settings: identity, records, configuration."""

import os
import tempfile
from pathlib import Path

from fuzz_targets import target

from streamsrv.config import SettingsError, from_toml
from streamsrv.errors import StoreError, WrongStore
from streamsrv.store import segment_header
from streamsrv.store.folder import Layout, identity_of
from streamsrv.store.records import Damage, Found, Header, HeaderDamaged, Kind, RecordFormat

FORMAT = RecordFormat(b"k" * 32)
SEGMENT = 3
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
FOLDER = Path(tempfile.mkdtemp(prefix="streamsrv-fuzz-", dir=MEMORY))


def record(offset, payload, kind=Kind.INSTANCE):
    header = Header(kind, bytes([offset % 251] * 16), 1_700_000_000_000_000, len(payload), bytes(16), 0)
    return FORMAT.pack(header, SEGMENT, offset) + payload


@target(HeaderDamaged, words=[FORMAT.marker, b"\1\1", b"\1\2"])
def record_header(content):
    header = FORMAT.unpack(content, SEGMENT, 0)
    assert FORMAT.pack(header, SEGMENT, 0) == content[:104]


@target(WrongStore, words=[segment_header.MAGIC, FORMAT.fingerprint, FORMAT.marker])
def segment_head(content):
    if not segment_header.is_damaged(content, FORMAT, Path("3")):
        assert content == segment_header.pack(FORMAT, SEGMENT)


@target(words=[FORMAT.marker, record(0, b"ab"), record(106, b"cdef"), b"\1\3"])
def segment_walk(content):
    """Records and damage together are the whole file, up to a pending record."""
    descriptor = os.memfd_create("segment")
    try:
        os.write(descriptor, content)
        at = 0
        for step in FORMAT.walk(descriptor, SEGMENT, len(content), start=0):
            assert step.offset == at, (step, at)
            assert isinstance(step, (Found, Damage))
            at = step.end
            if isinstance(step, Found) and step.header.kind is Kind.PENDING:
                return
        assert at == len(content)
    finally:
        os.close(descriptor)


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
