"""Grants: the files of DATA/access/, one for each key. A grant gives rights to the holder of a secret.

    DATA/access/KIND-DIGEST.json    DIGEST is the SHA-256 of the secret, in hex

The name of a file is the digest of the secret. So a worker finds a grant with one look-up, and a new grant
works at once. No secrets are compared, so the time of a look-up tells nothing about them.

Rules of this file
- A file is written under another name, synced, and renamed. Its checksum covers its text: a damaged file
  grants nothing, and the log names it.
- Writers hold a flock on the folder, so that a name is given once.
- The folder is for its owner only (0700): a user who can write to it can make a grant.
- `KnownGrants` reads a grant again when its file has changed. A file that was written within RACY seconds
  before it was read is read again: two changes within one tick of the clock have the same times.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamsrv.errors import RuleError, StoreCorrupt, StoreError
from streamsrv.query.rules import Rule, rule_from
from streamsrv.web.access.principal import Right, named_rights, rights_from

FOLDER = "access"
KEY = "key"
# Tells a key from other tokens, and lets scanners find keys that were published by mistake.
KEY_PREFIX = "streamsrv_"
KEY_BYTES = 32
_FILE = re.compile(r"([a-z]+)-([0-9a-f]{64})\.json")
_DRAFT = ".draft"
LONGEST = 1 << 20  # bytes of a file
LONGEST_NAME = 64  # characters
# Seconds: the clock of a file system ticks less often than every 10 ms.
RACY = 0.1
# Grants that a worker remembers.
MOST = 4096


class GrantDamaged(StoreCorrupt):
    """The file of a grant cannot be read; `detail` names it."""


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
        return f"{self.kind}-{self.digest}.json"

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


def read_grant(path: Path) -> tuple[Grant, os.stat_result]:
    """Raises FileNotFoundError, GrantDamaged, and another OSError of the machine."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError as error:
        raise GrantDamaged(f"{path} cannot be read: {error.strerror}") from None
    except OSError:
        if path.is_symlink():
            raise GrantDamaged(f"{path} is a symbolic link") from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise GrantDamaged(f"{path} is not a file")
        text = os.read(fd, LONGEST)
    finally:
        os.close(fd)
    try:
        return _parsed(text, path.name), found
    except (ValueError, KeyError, TypeError, AttributeError, RuleError) as error:
        reason = str(error) if type(error) is ValueError else "it is not the text that was written"
        raise GrantDamaged(f"{path} grants nothing: {reason}. Remove it, and make a new key") from None


class Grants:
    """The folder, for the verbs and the workers. It need not exist to be read."""

    def __init__(self, data: Path) -> None:
        self.folder = data / FOLDER

    def paths(self, kind: str = "") -> list[Path]:
        """The files of all grants, or of one kind. Raises StoreError."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be read: {error.strerror}") from None
        found = [match for name in names if (match := _FILE.fullmatch(name))]
        return [self.folder / match[0] for match in found if not kind or match[1] == kind]

    def all(self, kind: str = "") -> Iterator[Grant | GrantDamaged]:
        """Yields the grant of each file, or its error."""
        for path in self.paths(kind):
            with contextlib.suppress(FileNotFoundError):
                try:
                    yield read_grant(path)[0]
                except GrantDamaged as error:
                    yield error

    def find(self, kind: str, digest: str) -> Grant | None:
        """The grant of a digest, also if it has ended. Raises GrantDamaged and OSError."""
        try:
            return read_grant(self.path_of(kind, digest))[0]
        except FileNotFoundError:
            return None

    def path_of(self, kind: str, digest: str) -> Path:
        return self.folder / f"{kind}-{digest}.json"

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Makes the folder and locks it for one writer; removes drafts of writers that died. Raises
        StoreError."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                make_private(self.folder)
                for draft in self.folder.glob(f"*{_DRAFT}"):
                    draft.unlink(missing_ok=True)
                yield
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written to: {error.strerror}") from None

    def copy_to(self, other: Grants, kinds: Sequence[str]) -> list[GrantDamaged]:
        """Makes the grants of these kinds in another folder equal to those here. Returns the errors of
        damaged ones, which are left out. Raises StoreError."""
        damaged = []
        with other.changing():
            former = {path.name for path in other.paths()}
            for grant in (grant for kind in kinds for grant in self.all(kind)):
                if isinstance(grant, GrantDamaged):
                    damaged.append(grant)
                else:
                    other.write(grant)
                    former.discard(grant.file)
            for name in former:
                os.unlink(other.folder / name)
        return damaged

    def named(self, kind: str, name: str) -> Grant | None:
        found = (grant for grant in self.all(kind) if isinstance(grant, Grant) and grant.name == name)
        return next(found, None)

    def write(self, grant: Grant) -> None:
        """Writes or replaces the file of this secret. Call it within `changing`."""
        path = self.folder / grant.file
        draft = path.with_suffix(_DRAFT)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(grant.text().encode())
            file.flush()
            os.fsync(fd)
        os.rename(draft, path)


def make_private(folder: Path) -> bool:
    """Takes the permissions of others from the folder. Returns whether they could write to it. Raises
    OSError."""
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    if mode & 0o077:
        os.chmod(folder, mode & 0o700)
    return bool(mode & 0o022)


class _Known(NamedTuple):
    grant: Grant
    stamp: tuple[int, ...]
    settled: bool  # the file is older than RACY


class KnownGrants:
    """The grants that one worker has found. `clock` gives seconds as `time.time()`."""

    def __init__(self, grants: Grants, clock: Callable[[], float] = time.time) -> None:
        self._grants = grants
        self._clock = clock
        self._known: dict[Path, _Known] = {}
        self._dropped = False

    def find(self, kind: str, digest: str) -> Grant | None:
        """The grant of a secret with this digest, also if it has ended. Raises GrantDamaged and OSError."""
        path = self._grants.path_of(kind, digest)
        known = self._known.get(path)
        if known is not None:
            return known.grant
        try:
            return self._read(path).grant
        except FileNotFoundError:
            return None

    def _read(self, path: Path) -> _Known:
        grant, found = read_grant(path)
        while len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
            self._dropped = True
        self._known[path] = known = _Known(grant, _stamp(found), self._is_settled(found))
        return known

    def _is_settled(self, found: os.stat_result) -> bool:
        return self._clock() - found.st_ctime > RACY

    def refresh(self) -> bool:
        """Looks at the file of each known grant. Returns whether one is gone, has changed, or is not watched
        any more."""
        changed, self._dropped = self._dropped, False
        now = self._clock()
        for path, known in list(self._known.items()):
            if known.grant.until <= now:  # its callers compare that time themselves
                del self._known[path]
                continue
            try:
                if known.settled and _stamp(os.stat(path)) == known.stamp:
                    continue
                del self._known[path]
                changed = self._read(path).grant != known.grant or changed
            except (OSError, GrantDamaged):
                self._known.pop(path, None)
                changed = True
        return changed


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_ctime_ns, found.st_size
