"""Objects of a bucket as files, for tools that read whole ones: past the cache, in bounded space."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

from streamsrv.errors import SegmentGone
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.objects.bucket import Bucket, ListedObject

PIECE = 8 << 20
# Objects that are copied at the same time.
AT_ONCE = 4

ObjectFile: TypeAlias = IO[bytes]
Item = TypeVar("Item")


def copy_of(
    bucket: Bucket, key: str, length: int, folder: Path, taken: Callable[[int], None] = lambda _: None
) -> ObjectFile:
    """A file without a name in `folder` that has the first `length` bytes of an object. `taken` gets the
    bytes of each read. Raises SegmentGone, BucketUnreachable, StoreError, OSError."""
    ops = FileOps()
    with contextlib.ExitStack() as held:
        file = held.enter_context(tempfile.TemporaryFile(prefix="object-", dir=folder, buffering=0))
        for offset in range(0, length, PIECE):
            piece = bucket.read(key, offset, min(PIECE, length - offset))
            write_all(ops, file.fileno(), [piece], offset)
            taken(len(piece))
        held.pop_all()
        return file


def copies_of(
    bucket: Bucket, objects: Iterable[ListedObject], folder: Path
) -> Iterator[tuple[ListedObject, ObjectFile | None]]:
    """Each object with a file of its bytes, as `files_of`."""
    return files_of(objects, lambda each: copy_of(bucket, each.key, each.length, folder))


def files_of(
    items: Iterable[Item], copied: Callable[[Item], ObjectFile]
) -> Iterator[tuple[Item, ObjectFile | None]]:
    """Each item, in their order, with a file that lasts until the next one is taken. None if its object is
    gone. Threads call `copied`, so AT_ONCE objects are in files at the same time. Raises as `copy_of`."""
    waiting: deque[tuple[Item, Future[ObjectFile]]] = deque()
    with ThreadPoolExecutor(AT_ONCE, "copy") as pool:
        try:
            for each in items:
                waiting.append((each, pool.submit(copied, each)))
                if len(waiting) == AT_ONCE:
                    yield from _taken(*waiting.popleft())
            while waiting:
                yield from _taken(*waiting.popleft())
        finally:
            for _, copy in waiting:
                copy.cancel()
                copy.add_done_callback(_dropped)


def _taken(each: Item, copy: Future[ObjectFile]) -> Iterator[tuple[Item, ObjectFile | None]]:
    try:
        file = copy.result()
    except SegmentGone:
        yield each, None
        return
    with file:
        yield each, file


def _dropped(copy: Future[ObjectFile]) -> None:
    if not copy.cancelled() and copy.exception() is None:
        copy.result().close()
