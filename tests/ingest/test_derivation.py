"""Metadata on their way into the index."""

import random
from concurrent.futures import ThreadPoolExecutor

import zstandard

from streamsrv.dicom.series_template import SeriesReader
from streamsrv.ingest.derivation import IDLE_READERS, MetadataChunks, ReaderPool
from streamsrv.store.rows import METADATA_CHUNK, SHORT_TEXT


def chunks_of(text: bytes, step: int) -> list[bytes]:
    chunks = MetadataChunks()
    for at in range(0, len(text), step):
        chunks.add(text[at : at + step])
    frames, short = chunks.finish()
    assert not (frames and short)
    assert len(short) <= SHORT_TEXT
    return [*frames, *([zstandard.compress(short)] if short else [])]


def test_chunks_hold_the_text_and_no_more_than_they_may() -> None:
    text = random.Random(1).randbytes(3 * METADATA_CHUNK + 5)
    for step in (1000, METADATA_CHUNK, len(text)):
        parts = [zstandard.decompress(chunk) for chunk in chunks_of(text, step)]
        assert b"".join(parts) == text
        assert max(map(len, parts)) <= METADATA_CHUNK
    assert chunks_of(b"", 1) == []


def test_eight_threads_at_once() -> None:
    """They compress beside each other, since the compressor lets go of the interpreter."""

    def work(seed: int) -> bool:
        draw = random.Random(seed)
        texts = [bytes(draw.choices(range(64), k=draw.randrange(1, 9000))) for _ in range(20)]
        return all(zstandard.decompress(chunks_of(text, 4000)[0]) == text for text in texts * 20)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def test_what_one_request_has_learned_the_next_one_has() -> None:
    readers = ReaderPool()
    first, second = readers.acquire(), readers.acquire()
    assert first is not second
    readers.release(first)
    assert readers.acquire() is first
    many = [SeriesReader() for _ in range(IDLE_READERS + 3)]
    for each in many:
        readers.release(each)
    taken = [readers.acquire() for _ in many]
    assert sum(each in many for each in taken) == IDLE_READERS
