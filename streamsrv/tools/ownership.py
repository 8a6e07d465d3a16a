"""Files that root makes in the folder of another user belong to that user: the server can use them."""

from __future__ import annotations

import os
from pathlib import Path


def hand_over(data: Path, folder: Path) -> None:
    """Gives the folder and its files to the owner of `data`, if this process is root."""
    owner = os.stat(data)
    if os.geteuid() == 0 and owner.st_uid != 0:
        for each in (folder, *folder.rglob("*")):
            os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)
