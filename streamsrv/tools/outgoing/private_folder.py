"""The folder beside a de-identified export, for its owner alone: OUT.private.

    secret.json      the secret of the pseudonyms, and the profile of the export
    export.sqlite    the table of the export, with the original UIDs
    originals.csv    path and original UIDs of each file, on request
    look-at.csv      files whose pixels may show a name
    .part-N          instances as they were stored, for a moment

Rules
- Folder and secret are for their owner only (0700, 0600). Nothing of it is in OUT.
- Another profile, or none, is another export.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from streamsrv.config import SettingsError
from streamsrv.errors import StreamsrvError

SECRET = "secret.json"


def folder_of(out: Path) -> Path:
    """`.`, `/` and the like get the name of the folder that they are."""
    whole = out.resolve()
    return whole.with_name(f"{whole.name}.private")


def private_secret(out: Path, profile: list[str]) -> bytes:
    """The secret of the export, which the first run makes. Raises SettingsError if it had another profile."""
    folder = folder_of(out)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / SECRET
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path, profile)
    secret = secrets.token_bytes(32)
    with open(fd, "w", encoding="ascii") as file:
        json.dump({"secret": secret.hex(), "profile": profile}, file)
        file.flush()
        os.fsync(fd)
    return secret


def _read(path: Path, profile: list[str]) -> bytes:
    try:
        values = json.loads(path.read_text("ascii"))
        secret, known = bytes.fromhex(values["secret"]), values["profile"]
    except (ValueError, KeyError, TypeError) as fault:
        raise StreamsrvError(f"{path} is damaged: give another folder for the export") from fault
    if known != profile:
        raise SettingsError(
            f"{path.parent} is of an export with the profile {','.join(known)}: give another folder"
        )
    return secret


def require_none(out: Path) -> None:
    """Raises SettingsError if the files of OUT are de-identified."""
    if (folder_of(out) / SECRET).exists():
        raise SettingsError(f"{out} has a de-identified export: give another folder, or --deidentify")
