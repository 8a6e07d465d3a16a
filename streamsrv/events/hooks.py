"""Hooks: URLs that the changes are sent to, and peers that new studies are forwarded to. Their files, and the
signature of a message.

    DATA/hooks/NAME.json        the hook, with its secret
    DATA/hooks/NAME.state       its cursor and its last failure
    DATA/hooks/NAME.dead        the messages that were given up, a line each
    DATA/hooks/NAME.again       those of them that are sent again

Rules
- A file is written under another name, synced, and renamed. The folder is for its owner only (0700).
- A process that sends holds a flock on the folder, so that only one does.
- Messages are signed as Standard Webhooks: HMAC-SHA-256 of id, time and body, joined by dots.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from streamsrv.errors import RuleError, StoreError
from streamsrv.events.tail import COMPLETE
from streamsrv.query.rules import Rule, rule_from

FOLDER = "hooks"
ASSOCIATIONS = ("aet://", "aets://")  # URLs of DICOM peers, as aet://TITLE@HOST:PORT; the second is TLS
SECRET_PREFIX = "whsec_"
HOOK_EVENTS = ("create", "update", "delete", COMPLETE)
RESET = "reset"
# Of the files of a hook. The cursor is copied first: events behind it may arrive twice, and none is missing.
ENDINGS = ("state", "dead", "again", "json")
Pairs: TypeAlias = tuple[tuple[str, str], ...]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Hook(NamedTuple):
    """`events` are names out of HOOK_EVENTS. With `local`, loopback and link-local addresses are allowed. The
    hook is told of the studies that `rule` shows. One that forwards sends instances that match `query`, and
    has `login`: the credentials, as names of arguments and files."""

    name: str
    url: str
    events: tuple[str, ...]
    secret: str
    created: float
    local: bool = False
    rule: Rule | None = None
    forwards: bool = False
    query: Pairs = ()
    login: Pairs = ()

    @property
    def document(self) -> dict[str, object]:
        """The hook as JSON."""
        return self._asdict() | {"rule": None if self.rule is None else self.rule.document}


class HookState(NamedTuple):
    """`last_id` is the id of the last event that was delivered or given up. Times are in seconds since 1970;
    0 is never."""

    last_id: str = ""
    delivered: int = 0
    dead: int = 0
    attempts: int = 0  # of the event that waits
    refused: int = 0  # of these, those that count for its end as a dead letter
    waiting: int = 0  # changes behind the cursor
    error: str = ""
    last_success: float = 0.0


def is_hook_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header webhook-signature."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class Hooks:
    """The folder of all hooks of a store."""

    def __init__(self, data: Path) -> None:
        self.folder = data / FOLDER

    @contextlib.contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether this process sends: False while another one does. Makes the folder."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(fd)

    def all(self) -> Iterator[Hook]:
        """In the order of their names. A file that cannot be read is left out."""
        for path in sorted(self.folder.glob("*.json")):
            if (hook := self.named(path.stem)) is not None:
                yield hook

    def named(self, name: str) -> Hook | None:
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RuleError):
            return _hook_from(json.loads((self.folder / f"{name}.json").read_bytes()))
        return None

    def add(self, hook: Hook) -> None:
        """Raises StoreError if there is a hook of this name."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if (self.folder / f"{hook.name}.json").exists():
            raise StoreError(f"there is a hook {hook.name!r} already: remove it, or take another name")
        self._write(f"{hook.name}.json", hook.document)

    def remove(self, name: str) -> None:
        for ending in reversed(ENDINGS):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.folder / f"{name}.{ending}")

    def state(self, name: str) -> HookState:
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return HookState(**json.loads((self.folder / f"{name}.state").read_bytes()))
        return HookState()

    def save(self, name: str, state: HookState) -> None:
        """Durable."""
        self._write(f"{name}.state", state._asdict())

    def bury(self, name: str, message: bytes) -> None:
        """Adds a message that was given up. Durable."""
        fd = os.open(
            self.folder / f"{name}.dead", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(fd, message + b"\n")
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def dead(self, name: str) -> list[str]:
        return self._lines(name, "dead")

    def again(self, name: str) -> list[str]:
        """The dead letters that are to be sent again."""
        return self._lines(name, "again")

    def send_again(self, name: str) -> int:
        """Returns the number of dead letters. Raises StoreError while former ones are being sent again."""
        dead = self.dead(name)
        if self.again(name):
            raise StoreError(f"the former dead letters of {name!r} are still being sent")
        if dead:
            os.rename(self.folder / f"{name}.dead", self.folder / f"{name}.again")
        return len(dead)

    def forget_again(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.folder / f"{name}.again")

    def _lines(self, name: str, ending: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / f"{name}.{ending}").read_text().splitlines()
        return []

    def copy_to(self, other: Hooks) -> list[str]:
        """Makes the hooks in another folder equal to those here. Returns the names of those that cannot be
        read. Raises OSError."""
        if not self.folder.is_dir() and not other.folder.is_dir():
            return []
        other.folder.mkdir(mode=0o700, exist_ok=True)
        kept = set[str]()
        for ending in ENDINGS:
            for path in self.folder.glob(f"*.{ending}"):
                with contextlib.suppress(FileNotFoundError):
                    other._put(path.name, path.read_bytes())
                    kept.add(path.name)
        for path in other.folder.iterdir():
            if path.name not in kept:
                path.unlink()
        return self.unreadable()

    def unreadable(self) -> list[str]:
        """The names of hooks whose files cannot be read."""
        return sorted(path.stem for path in self.folder.glob("*.json") if self.named(path.stem) is None)

    def _write(self, file: str, row: dict[str, object]) -> None:
        self._put(file, json.dumps(row).encode())

    def _put(self, file: str, body: bytes) -> None:
        draft = self.folder / f".{file}.draft"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", closefd=False) as out:
                out.write(body)
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(self.folder / file)


def _hook_from(row: dict[str, Any]) -> Hook:
    """Raises ValueError, TypeError, LookupError or RuleError."""
    pairs = {name: tuple((str(key), str(value)) for key, value in row[name]) for name in ("query", "login")}
    rule = None if row["rule"] is None else rule_from(row["rule"])
    return Hook(**row | pairs | {"events": tuple(row["events"]), "rule": rule})
