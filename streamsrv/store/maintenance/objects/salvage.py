"""The objects of a bucket for `salvage`: without their database, and without store.toml.

The bucket is listed. Each object is a file in the folder of the run while it is read. The tombstones of the
bucket are read as segments: they have the ids of deleted and replaced records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from streamsrv.store.maintenance.objects.reading import copies_of
from streamsrv.store.maintenance.salvage import Salvage
from streamsrv.store.objects import bucket as buckets
from streamsrv.store.objects.bucket import ListedObject
from streamsrv.store.objects.layout import SEGMENTS, TOMBSTONES


class StoredBucket:
    """The bucket of `s3://bucket/prefix`. Raises StoreError, also for wrong credentials."""

    def __init__(self, url: str) -> None:
        self._bucket = buckets.opened(url)

    def size(self) -> int:
        """Bytes of all objects."""
        return sum(each.length for each in self._listed())

    def _listed(self) -> Iterator[ListedObject]:
        for prefix in (SEGMENTS, TOMBSTONES):
            yield from self._bucket.listed(prefix)

    def take(self, salvage: Salvage, folder: Path, progress: Callable[[int], None]) -> Iterator[int]:
        """Yields the size of each object when it is done. An object that was removed meanwhile is passed
        over."""
        fresh = (each for each in self._listed() if not salvage.is_done(each.key))
        for each, file in copies_of(self._bucket, fresh, folder):
            if file is not None:
                lists = each.key.startswith(SEGMENTS)
                salvage.take_object(each.key, file.fileno(), each.length, progress, lists=lists)
            yield each.length
