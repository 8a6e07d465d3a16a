"""Files that root makes in the folder of another user belong to that user: the server can use them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def hand_over(data: Path, folder: Path | None) -> None:
    """Gives the folder, if there is one, and its files to the owner of `data`, if this process is root."""
    if folder is None:
        return
    owner = os.stat(data)
    if os.geteuid() == 0 and owner.st_uid != 0:
        for each in (folder, *folder.rglob("*")):
            os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)


@contextlib.contextmanager
def as_owner(data: Path) -> Iterator[None]:
    """Files that root makes meanwhile belong to the owner of `data`, at once. Root reads only files that the
    owner may read then, except within `as_root`."""
    owner = os.stat(data)
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    """Within `as_owner`: root can open all files again. For one thread."""
    owner = os.geteuid()
    if os.getresuid()[2] == 0 and owner != 0:
        os.seteuid(0)
        try:
            yield
        finally:
            os.seteuid(owner)
    else:
        yield
