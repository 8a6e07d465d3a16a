"""Grants: documents of the kind `access`, one for each key. A grant gives rights to the holder of a secret.

    KIND-DIGEST.json    DIGEST is the SHA-256 of the secret, in hex

They are files in DATA/access/, or rows of the database of a cluster (store/documents.py).

The name of a document is the digest of the secret. So a worker finds a grant with one look-up, and a new
grant works at once. No secrets are compared, so the time of a look-up tells nothing about them.

Rules of this file
- Its checksum covers its text: a damaged grant grants nothing, and the log names it.
- One writer at a time, so that a name is given once.
- The folder is for its owner only (0700): a user who can write to it can make a grant.
- `KnownGrants` reads a grant again when its file has changed. A file that was written within RACY seconds
  before it was read is read again: two changes within one tick of the clock have the same times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from streamsrv.errors import RuleError, StoreCorrupt
from streamsrv.query.rules import Rule, rule_from
from streamsrv.settings import Settings
from streamsrv.store import (
    DocumentChange,
    DocumentDamaged,
    Documents,
    FolderDocuments,
    NamedText,
    open_documents,
)
from streamsrv.web.access.principal import Right, named_rights, rights_from

FOLDER = "access"
KEY = "key"
# Tells a key from other tokens, and lets scanners find keys that were published by mistake.
KEY_PREFIX = "streamsrv_"
KEY_BYTES = 32
_FILE = re.compile(r"([a-z]+)-([0-9a-f]{64})\.json")
LONGEST_NAME = 64  # characters
# Seconds: the clock of a file system ticks less often than every 10 ms.
RACY = 0.1
# Grants that a worker remembers.
MOST = 4096


class GrantDamaged(StoreCorrupt):
    """A grant cannot be read; `detail` names it."""


class Grant(NamedTuple):
    """The rights of the holder of a secret. `kind` is "key" or a share or session. `rule` limits the
    visible studies. `created` and `until` are in seconds of `time.time()`. `extra` belongs to the kind."""

    kind: str
    name: str
    digest: str
    rights: Right
    rule: Rule | None
    created: float
    until: float = math.inf
    extra: Mapping[str, Any] = {}

    @property
    def file(self) -> str:
        return file_of(self.kind, self.digest)

    def text(self) -> str:
        row = {
            "kind": self.kind,
            "name": self.name,
            "digest": self.digest,
            "rights": named_rights(self.rights),
            "rule": None if self.rule is None else self.rule.document,
            "created": self.created,
            "until": None if math.isinf(self.until) else self.until,
            "extra": dict(self.extra),
        }
        return json.dumps(row | {"checksum": _checksum(row)}, indent=1) + "\n"


def file_of(kind: str, digest: str) -> str:
    return f"{kind}-{digest}.json"


def is_name(text: str) -> bool:
    """Names go into logs. A colon ends the user of Basic authentication (RFC 7617 2)."""
    sane = text.isprintable() and ":" not in text and text == text.strip()
    return sane and 0 < len(text) <= LONGEST_NAME


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _checksum(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"streamsrv grant").hexdigest()


def _parsed(text: bytes, file: str) -> Grant:
    """Raises ValueError, KeyError, TypeError, AttributeError and RuleError."""
    row = json.loads(text)
    if row.pop("checksum") != _checksum(row):
        raise ValueError("its checksum is wrong")
    until = math.inf if row["until"] is None else float(row["until"])
    rule = None if row["rule"] is None else rule_from(row["rule"])
    rights, extra = rights_from(row["rights"]), row["extra"]
    grant = Grant(row["kind"], row["name"], row["digest"], rights, rule, row["created"], until, extra)
    if grant.file != file:
        raise ValueError("its contents belong to another file")
    return grant


def grant_in(file: NamedText, where: str) -> Grant:
    """Raises GrantDamaged. `where` names the file."""
    if isinstance(file.text, DocumentDamaged):
        raise GrantDamaged(file.text.detail) from None
    try:
        return _parsed(file.text, file.name)
    except (ValueError, KeyError, TypeError, AttributeError, RuleError) as error:
        reason = str(error) if type(error) is ValueError else "it is not the text that was written"
        raise GrantDamaged(f"{where} grants nothing: {reason}. Remove it, and make a new key") from None


class GrantChange:
    """The calls that change grants, within `Grants.changing`."""

    def __init__(self, change: DocumentChange) -> None:
        self.texts = change

    def write(self, grant: Grant) -> None:
        """Makes or replaces the grant of this secret."""
        self.texts.write(grant.file, grant.text().encode())

    def remove(self, grant: Grant) -> None:
        self.texts.remove(grant.file)


class Grants:
    """All grants of a store, for the verbs and the workers. All calls block."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def names(self, kind: str = "") -> list[str]:
        """The files of all grants, or of one kind. Raises StoreError."""
        return [name for name in self.documents.names(kind and f"{kind}-", ".json") if _FILE.fullmatch(name)]

    def all(self, kind: str = "") -> Iterator[Grant | GrantDamaged]:
        """Yields each grant, or its error. Raises StoreError."""
        for found in self.documents.all(kind and f"{kind}-", ".json"):
            if _FILE.fullmatch(found.name):
                try:
                    yield grant_in(found, self.where(found.name))
                except GrantDamaged as error:
                    yield error

    def where(self, file: str) -> str:
        return f"{self.documents.where}/{file}"

    def find(self, kind: str, digest: str) -> Grant | None:
        """The grant of a digest, also if it has ended. Raises GrantDamaged and StoreError."""
        file = file_of(kind, digest)
        try:
            text = self.documents.read(file)
        except DocumentDamaged as error:
            raise GrantDamaged(error.detail) from None
        return None if text is None else grant_in(NamedText(file, text), self.where(file))

    @contextlib.contextmanager
    def changing(self) -> Iterator[GrantChange]:
        """Excludes all other writers. Raises StoreError."""
        with self.documents.changing() as change:
            yield GrantChange(change)

    def copy_to(self, other: Grants, kinds: Sequence[str]) -> list[GrantDamaged]:
        """Makes the grants of these kinds at another place equal to those here. Returns the errors of
        damaged ones, which are left out. Raises StoreError."""
        damaged = []
        with other.changing() as change:
            former = set(other.names())
            for grant in (grant for kind in kinds for grant in self.all(kind)):
                if isinstance(grant, GrantDamaged):
                    damaged.append(grant)
                else:
                    change.write(grant)
                    former.discard(grant.file)
            for name in former:
                change.texts.remove(name)
        return damaged

    def named(self, kind: str, name: str) -> Grant | None:
        found = (grant for grant in self.all(kind) if isinstance(grant, Grant) and grant.name == name)
        return next(found, None)


def grants_in(data: Path) -> Grants:
    """Those of a folder of a store."""
    return Grants(FolderDocuments(data / FOLDER))


def grants_of(settings: Settings) -> Grants:
    """Those of a store: in its folder, or in the database of its cluster."""
    return Grants(open_documents(FOLDER, Path(settings.data), settings.index, settings.segments))


class KnownHere(Protocol):
    """The grants that one worker has found."""

    def find(self, kind: str, digest: str) -> Grant | None:
        """The grant of a secret with this digest, also if it has ended. Raises GrantDamaged, and OSError or
        Unauthorized."""

    def refresh(self) -> bool:
        """Whether one of them may not hold any more."""


class _Known(NamedTuple):
    grant: Grant
    stamp: tuple[int, ...]
    settled: bool  # the file is older than RACY


class KnownGrants:
    """Those that it has found in a folder. `clock` gives seconds as `time.time()`."""

    def __init__(self, grants: Grants, clock: Callable[[], float] = time.time) -> None:
        assert isinstance(grants.documents, FolderDocuments)
        self._files = grants.documents
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._dropped = False

    def find(self, kind: str, digest: str) -> Grant | None:
        file = file_of(kind, digest)
        known = self._known.get(file)
        if known is not None:
            return known.grant
        try:
            return self._read(file).grant
        except FileNotFoundError:
            return None

    def _read(self, file: str) -> _Known:
        """Raises FileNotFoundError, GrantDamaged, and another OSError of the machine."""
        try:
            text, found = self._files.content(file)
        except DocumentDamaged as error:
            raise GrantDamaged(error.detail) from None
        grant = grant_in(NamedText(file, text), str(self._files.path_of(file)))
        while len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
            self._dropped = True
        self._known[file] = known = _Known(grant, _stamp(found), self._is_settled(found))
        return known

    def _is_settled(self, found: os.stat_result) -> bool:
        return self._clock() - found.st_ctime > RACY

    def refresh(self) -> bool:
        """Looks at the file of each known grant. Returns whether one is gone, has changed, or is not watched
        any more."""
        changed, self._dropped = self._dropped, False
        now = self._clock()
        for file, known in list(self._known.items()):
            if known.grant.until <= now:  # its callers compare that time themselves
                del self._known[file]
                continue
            try:
                if known.settled and _stamp(os.stat(self._files.path_of(file))) == known.stamp:
                    continue
                del self._known[file]
                changed = self._read(file).grant != known.grant or changed
            except (OSError, GrantDamaged):
                self._known.pop(file, None)
                changed = True
        return changed

    def is_fresh(self) -> bool:
        return True

    async def fetched(self) -> None:
        """A file is read when it is asked for."""

    def fetch(self) -> None:
        """As `fetched`."""

    def forget(self, kind: str, digest: str) -> None:
        """`refresh` looks at its file."""

    def close(self) -> None:
        """Nothing is open."""


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_ctime_ns, found.st_size
