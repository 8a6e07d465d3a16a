"""Hooks: URLs that the changes are sent to, and peers that new studies are forwarded to. Their documents, and
the signature of a message.

    NAME.json        the hook, with its secret
    NAME.state       its cursor and its last failure
    NAME.dead        the messages that were given up, a line each
    NAME.again       those of them that are sent again

They are files in DATA/hooks/, or rows of the database of a cluster (store/documents.py).

Rules
- A process that sends has the lease of the hooks, so that only one does. It saves nothing without it.
- Messages are signed as Standard Webhooks: HMAC-SHA-256 of id, time and body, joined by dots.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from streamsrv.errors import RuleError, StoreError
from streamsrv.events.tail import COMPLETE
from streamsrv.query.rules import Rule, rule_from
from streamsrv.settings import Settings
from streamsrv.store import DocumentDamaged, Documents, FolderDocuments, Lease, open_documents

FOLDER = "hooks"
ASSOCIATIONS = ("aet://", "aets://")  # URLs of DICOM peers, as aet://TITLE@HOST:PORT; the second is TLS
SECRET_PREFIX = "whsec_"
HOOK_EVENTS = ("create", "update", "delete", COMPLETE)
# Of the names of documents. The cursor is copied first: events behind it may arrive twice, none is missing.
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
    """All hooks of a store. All calls block, and raise StoreError."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def sending(self) -> AbstractContextManager[Lease | None]:
        """The lease of the process that sends; None while another one has it."""
        return self.documents.leased()

    def all(self) -> Iterator[Hook]:
        """In the order of their names. A document that cannot be read is left out."""
        found = (_hook_of(each.text) for each in self.documents.all("", ".json"))
        yield from (hook for hook in found if hook is not None)

    def named(self, name: str) -> Hook | None:
        return _hook_of(self._text(name, "json"))

    def add(self, hook: Hook) -> None:
        """Raises StoreError if there is a hook of this name."""
        with self.documents.changing() as change:
            if self._text(hook.name, "json") is not None:
                raise StoreError(f"there is a hook {hook.name!r} already: remove it, or take another name")
            change.write(f"{hook.name}.json", json.dumps(hook.document).encode())

    def remove(self, name: str) -> None:
        with self.documents.changing() as change:
            for ending in reversed(ENDINGS):
                change.remove(f"{name}.{ending}")

    def state(self, name: str) -> HookState:
        text = self._text(name, "state")
        with contextlib.suppress(ValueError, TypeError):
            if isinstance(text, bytes):
                return HookState(**json.loads(text))
        return HookState()

    def save(self, hook: Hook, state: HookState, lease: Lease | None = None) -> None:
        """Durable. Does nothing if the hook was removed or is another one now. Raises LeaseLost."""
        with self.documents.changing(lease) as change:
            if self.named(hook.name) == hook:
                change.write(f"{hook.name}.state", json.dumps(state._asdict()).encode())

    def bury(self, name: str, message: bytes, lease: Lease | None = None) -> None:
        """Adds a message that was given up. Durable. Raises LeaseLost."""
        with self.documents.changing(lease) as change:
            change.append(f"{name}.dead", message + b"\n")

    def dead(self, name: str) -> list[str]:
        return self._lines(name, "dead")

    def again(self, name: str) -> list[str]:
        """The dead letters that are to be sent again."""
        return self._lines(name, "again")

    def send_again(self, name: str) -> int:
        """Returns the number of dead letters. Raises StoreError while former ones are being sent again."""
        with self.documents.changing() as change:
            dead = self.dead(name)
            if self.again(name):
                raise StoreError(f"the former dead letters of {name!r} are still being sent")
            if dead:
                change.rename(f"{name}.dead", f"{name}.again")
        return len(dead)

    def forget_again(self, name: str, lease: Lease | None = None) -> None:
        """Raises LeaseLost."""
        with self.documents.changing(lease) as change:
            change.remove(f"{name}.again")

    def _lines(self, name: str, ending: str) -> list[str]:
        text = self._text(name, ending)
        return text.decode().splitlines() if isinstance(text, bytes) else []

    def _text(self, name: str, ending: str) -> bytes | DocumentDamaged | None:
        try:
            return self.documents.read(f"{name}.{ending}")
        except DocumentDamaged as error:
            return error

    def copy_to(self, other: Hooks) -> list[str]:
        """Makes the hooks at another place equal to those here. Returns the names of those that cannot be
        read."""
        if not self.documents.names() and not other.documents.names():
            return []
        kept = set[str]()
        with other.documents.changing() as change:
            for ending in ENDINGS:
                for each in self.documents.all("", f".{ending}"):
                    if isinstance(each.text, DocumentDamaged):
                        raise each.text
                    change.write(each.name, each.text)
                    kept.add(each.name)
            for name in other.documents.names():
                if name not in kept:
                    change.remove(name)
        return self.unreadable()

    def unreadable(self) -> list[str]:
        """The names of hooks that cannot be read."""
        found = self.documents.all("", ".json")
        return [each.name.removesuffix(".json") for each in found if _hook_of(each.text) is None]


def hooks_in(data: Path) -> Hooks:
    """Those of a folder of a store."""
    return Hooks(FolderDocuments(data / FOLDER))


def hooks_of(settings: Settings) -> Hooks:
    """Those of a store: in its folder, or in the database of its cluster."""
    return Hooks(open_documents(FOLDER, Path(settings.data), settings.index, settings.segments))


def _hook_of(text: bytes | DocumentDamaged | None) -> Hook | None:
    """None if it cannot be read."""
    with contextlib.suppress(ValueError, TypeError, LookupError, RuleError):
        if isinstance(text, bytes):
            return _hook_from(json.loads(text))
    return None


def _hook_from(row: dict[str, Any]) -> Hook:
    """Raises ValueError, TypeError, LookupError or RuleError."""
    pairs = {name: tuple((str(key), str(value)) for key, value in row[name]) for name in ("query", "login")}
    rule = None if row["rule"] is None else rule_from(row["rule"])
    return Hook(**row | pairs | {"events": tuple(row["events"]), "rule": rule})
