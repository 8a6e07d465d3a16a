"""A bucket behind an S3 gateway: limits of time, and errors in the words of this store.

Strategy: obstore signs, pools connections, and repeats requests that may be repeated. Its calls release the
GIL, so threads run them at the same time.

Rules of this file
- No call waits without a limit: a connection CONNECT seconds, each byte that is waited for FIRST_BYTE
  seconds. The transfer of a part may take longer.
- Correctness does not rest on conditional requests, nor on a listing of the bucket: tools list it.
- The log has the error of the gateway. The client gets a sentence without URL and key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from streamsrv.errors import BucketUnreachable, ObjectGone, SegmentGone, StoreCorrupt, StoreError
from streamsrv.store.fileops import Buffer
from streamsrv.store.objects.aws_files import configured

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Config

AnyStore: TypeAlias = AzureStore | GCSStore | HTTPStore | LocalStore | MemoryStore | S3Store

CONNECT = timedelta(seconds=1)
FIRST_BYTE = timedelta(seconds=5)
# A part has to go out at 0.8 MB/s or faster.
PART_TRANSFER = timedelta(seconds=10)
# After a failure a request is repeated this often, within the time for a first byte.
REPEATS = 2
PART = 8 << 20
# Bytes of a long range that are handed over together, while they are in the cache of the processor.
PIECE = 256 << 10
# Parts of one object that are on their way at the same time.
PARTS_AT_ONCE = 3
_STATUS = re.compile(r"status code: (\d{3})")
# Failures that may pass, as those of 500 and more.
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

log = logging.getLogger("streamsrv.store")


class ListedObject(NamedTuple):
    """`modified` are seconds since 1970, by the clock of the bucket."""

    key: str
    length: int
    modified: float


class Bucket:
    """Objects under one prefix. Any thread may call it; all calls block."""

    def __init__(self, reading: AnyStore, writing: AnyStore, part: int = PART) -> None:
        self._reading = reading
        self._writing = writing
        self.part = part
        # The key of an object that is there as long as the store is.
        self.proof = ""

    def upload(self, key: str) -> ObjectUpload:
        """The object is there after `complete`, with all bytes, else never. The key must be fresh."""
        return ObjectUpload(self._writing, key, self.part)

    def read(self, key: str, offset: int, length: int) -> Buffer:
        """Bytes of an object. Raises SegmentGone, BucketUnreachable, StoreError, and StoreCorrupt if the
        object ends before."""
        try:
            with _translated("reading from"):
                found = memoryview(obstore.get_range(self._reading, key, start=offset, length=length))
        except SegmentGone:
            self._prove()
            raise
        _require_length(offset, len(found), length)
        return found

    def has(self, key: str) -> bool:
        """Whether there is such an object. Raises BucketUnreachable, StoreError."""
        try:
            self.length(key)
        except SegmentGone:
            self._prove()
            return False
        return True

    def pieces(self, key: str, offset: int, length: int) -> Iterator[Buffer]:
        """The bytes of `read`, as they arrive: a long range is never whole in memory."""
        if length <= 2 * PIECE:
            yield self.read(key, offset, length)
            return
        options: GetOptions = {"range": (offset, offset + length)}
        found = 0
        try:
            with _translated("reading from"):
                answer = obstore.get(self._reading, key, options=options)
                for piece in answer.stream(min_chunk_size=PIECE):
                    found += len(piece)
                    yield piece
        except SegmentGone:
            self._prove()
            raise
        _require_length(offset, found, length)

    def _prove(self) -> None:
        """A gateway that finds nothing does not tell that an object is gone."""
        try:
            if self.proof:
                self.length(self.proof)
        except SegmentGone:
            raise BucketUnreachable(f"the gateway finds no object, and not even {self.proof}") from None

    def length(self, key: str) -> int:
        with _translated("reading from"):
            found: int = obstore.head(self._reading, key)["size"]
        return found

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        """The objects whose keys begin with `prefix`, a path that ends with a slash."""
        with _translated("listing"):
            for page in obstore.list(self._reading, prefix):
                for each in page:
                    yield ListedObject(each["path"], each["size"], each["last_modified"].timestamp())

    def content(self, key: str) -> bytes:
        """A whole object, which is short. Raises SegmentGone."""
        with _translated("reading from"):
            return bytes(obstore.get(self._reading, key).bytes())

    def put(self, key: str, content: bytes) -> None:
        """A short object."""
        with _translated("writing to"):
            obstore.put(self._writing, key, content)

    def remove(self, key: str) -> None:
        """Succeeds if there is no such object. Raises BucketUnreachable, StoreError."""
        try:
            with _translated("removing from"):
                obstore.delete(self._writing, key)
        except SegmentGone:
            self._prove()


class ObjectUpload:
    """An object on its way, written by one thread at a time. Ends with `complete` or `abort`."""

    def __init__(self, store: AnyStore, key: str, part: int) -> None:
        self._store = store
        self._key = key
        self._length = 0
        self._file = obstore.open_writer(store, key, buffer_size=part, max_concurrency=PARTS_AT_ONCE)
        self._ended = False

    def write(self, part: bytes) -> None:
        """Takes a part of `Bucket.part` bytes; the last one may be shorter. Waits while PARTS_AT_ONCE others
        are on their way. An error may be that of an earlier part."""
        with _translated("writing to"):
            self._file.write(part)
        self._length += len(part)

    def complete(self) -> None:
        """The object is there when this returns: the bucket has been asked for its length."""
        self._ended = True
        with _translated("writing to"):
            self._file.close()
            found = obstore.head(self._store, self._key)["size"]
        if found != self._length:
            raise StoreCorrupt(f"the bucket has {found} bytes of an object of {self._length}")

    def abort(self) -> None:
        """Nothing of the object can be read, and the parts are removed if the gateway answers. Safe to call
        twice, and after `complete`."""
        if self._ended:
            return
        self._ended = True
        error = StoreError("the transaction has ended")
        try:
            self._file.__exit__(type(error), error, None)
        except (BaseError, OSError) as failure:
            log.warning("parts of an upload stay in the bucket: %s", _first_line(failure))


def opened(url: str, *, endpoint: str = "") -> Bucket:
    """The bucket of `s3://bucket/prefix`. Credentials, region and endpoint come from the variables and files
    of the AWS tools (aws_files.py); `endpoint` replaces theirs. Raises StoreError."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise StoreError("the place of segments is not a URL like s3://bucket/prefix")
    config: S3Config = configured(os.environ)
    if endpoint:
        config["endpoint"] = endpoint

    def made(wait: timedelta) -> S3Store:
        plain = config.get("endpoint", "").startswith("http://")
        client: ClientConfig = {"connect_timeout": CONNECT, "read_timeout": wait, "allow_http": plain}
        retries: RetryConfig = {"max_retries": REPEATS, "retry_timeout": FIRST_BYTE}
        prefix = parts.path.strip("/") or None
        return S3Store(
            parts.netloc, prefix=prefix, config=config, client_options=client, retry_config=retries
        )

    return Bucket(made(FIRST_BYTE), made(PART_TRANSFER))


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise _error(error, doing) from error


def _error(error: BaseException, doing: str) -> StoreError:
    """An upload raises all errors as OSError, so the status in the text decides."""
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    if "NoSuchBucket" in text:
        return StoreError("there is no such bucket: make it, or name another one")
    if isinstance(error, FileNotFoundError) or status == HTTPStatus.NOT_FOUND:
        return ObjectGone("an object is gone")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return StoreCorrupt("an object ends before the bytes that are wanted")
    log.error("%s the bucket: %s", doing, _first_line(error))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return StoreError(
            f"{doing} the bucket failed: it refuses the credentials, or gives them no right to this bucket. "
            "See AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the profile of AWS_PROFILE"
        )
    if 400 <= status < 500 and status not in _PASSING:
        return StoreError(f"{doing} the bucket failed: the gateway refuses the request")
    return BucketUnreachable(f"{doing} the bucket failed: the gateway does not answer")


def _require_length(offset: int, found: int, wanted: int) -> None:
    if found != wanted:
        raise StoreCorrupt(f"an object ends at byte {offset + found}, not at {offset + wanted}")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
