"""DATA/lost+found: bytes that recovery cuts off a segment are copied there first.

    DATA/lost+found/SSSSSSSS-BEGIN-END[-N].part     bytes BEGIN to END of segment S, as they were

A part holds a request that was never acknowledged, according to index and manifest. If they are damaged or
older than the segment, it may hold acknowledged data, so only a person deletes it. No program reads these
files.

Rules of this file
- A part is durable before the segment is cut.
- Nothing is kept of a transaction that aborts, nor of a cut that begins with a valid PENDING record: neither
  was acknowledged. So a large upload whose worker is killed takes no space.
"""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

from streamsrv.store.fileops import FileOps, copy_all
from streamsrv.store.folder import Layout

log = logging.getLogger("streamsrv.store")


def keep(layout: Layout, ops: FileOps, fd: int, segment: int, begin: int, end: int) -> Path:
    """Copy bytes of a segment durably, and log it. Raises OSError."""
    folder = layout.lost_and_found
    if not folder.exists():
        ops.make_folder(folder)
        ops.sync_folder(layout.root)
    path, target = _create(ops, folder, f"{segment:08d}-{begin}-{end}")
    try:
        copy_all(ops, fd, begin, target, 0, end - begin)
        ops.sync(target)
    except OSError:
        ops.unlink(path)
        raise
    finally:
        os.close(target)
    ops.sync_folder(folder)
    log.warning("bytes %d to %d of segment %d were not acknowledged: moved to %s", begin, end, segment, path)
    return path


def take_file(layout: Layout, ops: FileOps, segment: int, length: int) -> Path:
    """Move the file of a segment there instead of removing it, and log it."""
    folder = layout.lost_and_found
    ops.make_folder(folder)
    path, target = _create(ops, folder, f"{segment:08d}-0-{length}")
    os.close(target)
    ops.rename(layout.segment(segment), path)
    ops.sync_folder(folder)
    ops.sync_folder(layout.root)
    log.warning("segment %d has damaged records: moved to %s", segment, path)
    return path


def parts(layout: Layout) -> list[Path]:
    folder = layout.lost_and_found
    return sorted(folder.glob("*.part")) if folder.is_dir() else []


def _create(ops: FileOps, folder: Path, stem: str) -> tuple[Path, int]:
    for number in itertools.count(1):
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}.part"
        try:
            return path, ops.create(path)
        except FileExistsError:
            continue
    raise AssertionError
