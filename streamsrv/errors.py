"""The errors of streamsrv.

    StreamsrvError
    |-- RequestError                 the whole request is refused: 4xx, see `status`
    |   |-- BadRequest               400  malformed UID, parameter or body
    |   |   `-- MultipartError       400  malformed multipart body
    |   |-- Unauthorized             401  no valid credentials; `reason` is for the log
    |   |   |-- KeysPending          401  the keys of the issuer are being fetched: ask once more
    |   |   |   |-- KeysMissing      503  no key of the issuer was ever fetched, with Retry-After
    |   |   |   |-- RenewalPending   401  a session is being renewed: ask once more
    |   |   |   `-- GrantPending     503  a key or session has to be looked up: ask once more
    |   |   `-- PinRequired          401  a share link needs its PIN
    |   |-- Forbidden                403  not allowed: Host not expected, store is read-only
    |   |-- NotFound                 404  there is no such resource
    |   |-- MethodNotAllowed         405  `allow` lists the methods of the resource
    |   |-- NotAcceptable            406  `acceptable` lists the possible representations
    |   |-- RequestTimeout           408  the client is slower than the minimum rate
    |   |-- ChangesGone              410  the oldest changes are not kept any more
    |   |-- LengthRequired           411  the request has neither Content-Length nor chunked encoding
    |   |-- PreconditionFailed       412  If-Match, If-None-Match or If-Unmodified-Since does not hold
    |   |-- ContentTooLarge          413  a limit of the settings is exceeded
    |   |-- URITooLong               414
    |   |-- UnsupportedMediaType     415  `supported` lists the possible media types
    |   |-- RangeNotSatisfiable      416
    |   |-- TooManyRequests          429  with Retry-After
    |   `-- HeadersTooLarge          431
    |-- InstanceError                one SOP instance is refused, the request continues
    |   |-- NotDicom                 43264 (A900) not a Part 10 file, unreadable, a UID missing or malformed
    |   |-- StudyMismatch            43265 (A901) the study differs from the one in the target URI
    |   |-- SopMismatch              43265 (A901) class or UID differ from those of a C-STORE request
    |   |-- AlreadyStored            45070 (B00E) an instance with the same three UIDs is stored
    |   |-- InstanceRefused          272   (0110) readable, but over a limit of the server
    |   `-- NotAuthorized            292   (0124) outside the rule of the client
    |-- RuleError                    a rule of access that cannot be read
    `-- ServerError                  5xx, a fault of the server or its machine
        |-- Overloaded               503  with Retry-After
        |-- InsufficientStorage      507  less free space than `min_free`
        `-- StoreError               500  the store cannot execute the request
            |-- StoreLocked               another process holds the store
            |-- StoreCorrupt              bytes on disk differ from the written bytes
            |   |-- WrongStore            a file belongs to another store
            |   `-- InstanceDamaged       damaged bytes of an instance; `study`, `series`, `sop_instance`
            |   `-- CommitConflict        another writer was there first: decide again
            |-- IndexFailed          503  this process cannot use the index any more and must end
            |-- IndexUnreachable    503  the database of the index does not answer, with Retry-After
            |-- BucketUnreachable    503  the bucket of the segments does not answer, with Retry-After
            |-- UploadExpired        503  an object was removed, because its node was silent: try again
            `-- SegmentGone               compaction has removed a segment: look up again
                `-- ObjectGone            the segment is an object of a bucket

`detail` is a sentence for the user. It names the fault and its place (tag, byte offset), and never contains a
value of a patient's attribute.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


class StreamsrvError(Exception):
    """Base class. `detail` is a sentence for the user."""

    status = 500
    title = "Internal Server Error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RequestError(StreamsrvError):
    status = 400
    title = "Bad Request"


class BadRequest(RequestError):
    pass


class MultipartError(BadRequest):
    """A multipart body breaks RFC 2046. `offset` counts bytes from the start of the request body."""

    def __init__(self, detail: str, offset: int) -> None:
        super().__init__(f"{detail} (at byte {offset} of the request body)")
        self.offset = offset


class Unauthorized(RequestError):
    """`reason` is a sentence for the log; the client gets `detail`, which does not tell it. `challenges` are
    values of WWW-Authenticate (RFC 9110 11.6.1)."""

    status = 401
    title = "Unauthorized"

    def __init__(self, reason: str, detail: str = "the credentials of this request are not valid") -> None:
        super().__init__(detail)
        self.reason = reason
        self.challenges: tuple[str, ...] = ()


class KeysPending(Unauthorized):
    """The keys of the issuer are being fetched: the same request may succeed in a moment."""


class KeysMissing(KeysPending):
    """No key of the issuer is known yet, so no token can be judged. The client keeps its token."""

    status = 503
    title = "Service Unavailable"
    retry_after = 5  # seconds


class RenewalPending(KeysPending):
    """The session of a browser is being renewed at the issuer."""


class GrantPending(KeysPending):
    """A key or session is being looked up in the database: the same request may succeed in a moment."""

    status = 503
    title = "Service Unavailable"
    retry_after = 1  # seconds


class PinRequired(Unauthorized):
    """The share link is known, and its PIN is missing."""

    needs = "pin"


class Forbidden(RequestError):
    status = 403
    title = "Forbidden"


class NotFound(RequestError):
    status = 404
    title = "Not Found"


class MethodNotAllowed(RequestError):
    status = 405
    title = "Method Not Allowed"

    def __init__(self, detail: str, allow: Sequence[str]) -> None:
        super().__init__(detail)
        self.allow = tuple(allow)


class NotAcceptable(RequestError):
    status = 406
    title = "Not Acceptable"

    def __init__(self, detail: str, acceptable: Sequence[str]) -> None:
        super().__init__(detail)
        self.acceptable = tuple(acceptable)


class RequestTimeout(RequestError):
    status = 408
    title = "Request Timeout"


class ChangesGone(RequestError):
    status = 410
    title = "Gone"


class LengthRequired(RequestError):
    status = 411
    title = "Length Required"


class PreconditionFailed(RequestError):
    status = 412
    title = "Precondition Failed"


class ContentTooLarge(RequestError):
    status = 413
    title = "Content Too Large"


class URITooLong(RequestError):
    status = 414
    title = "URI Too Long"


class UnsupportedMediaType(RequestError):
    status = 415
    title = "Unsupported Media Type"

    def __init__(self, detail: str, supported: Sequence[str]) -> None:
        super().__init__(detail)
        self.supported = tuple(supported)


class RangeNotSatisfiable(RequestError):
    """`length` of the whole representation, for `Content-Range: bytes */length` (RFC 9110 14.4)."""

    status = 416
    title = "Range Not Satisfiable"

    def __init__(self, detail: str, length: int) -> None:
        super().__init__(detail)
        self.length = length


class TooManyRequests(RequestError):
    """`retry_after` in whole seconds."""

    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class HeadersTooLarge(RequestError):
    status = 431
    title = "Request Header Fields Too Large"


class InstanceError(StreamsrvError):
    """`offset` counts bytes from the start of the Part 10 file. `tag` has eight hex digits. `failure_reason`
    is the value of (0008,1197)."""

    status = 409
    title = "Conflict"
    failure_reason = 272  # PS3.18 Table I.2-2: processing failure

    def __init__(self, detail: str, *, offset: int | None = None, tag: str | None = None) -> None:
        where = [f"tag {tag}"] if tag else []
        if offset is not None:
            where.append(f"byte {offset} of the instance")
        super().__init__(f"{detail} (at {', '.join(where)})" if where else detail)
        self.offset = offset
        self.tag = tag


class NotDicom(InstanceError):
    failure_reason = 43264


class StudyMismatch(InstanceError):
    failure_reason = 43265


class SopMismatch(InstanceError):
    failure_reason = 43265


class AlreadyStored(InstanceError):
    failure_reason = 45070


class InstanceRefused(InstanceError):
    failure_reason = 272


class NotAuthorized(InstanceError):
    failure_reason = 292


class RuleError(StreamsrvError):
    """A rule of access cannot be read. `detail` names the attribute, never its value."""


class ServerError(StreamsrvError):
    pass


class Overloaded(ServerError):
    """`retry_after` in whole seconds."""

    status = 503
    title = "Service Unavailable"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class InsufficientStorage(ServerError):
    status = 507
    title = "Insufficient Storage"


class StoreError(ServerError):
    pass


class StoreLocked(StoreError):
    pass


class StoreCorrupt(StoreError):
    pass


class WrongStore(StoreCorrupt):
    pass


class CommitConflict(StoreCorrupt):
    """The index differs from the decision about these instances. Nothing was written."""


class IndexFailed(StoreError):
    """LMDB refuses all further transactions of this process. A new process can open the index again."""

    status = 503
    title = "Service Unavailable"
    retry_after = 1  # seconds


class AnnouncementLost(StoreError):
    """A removal was announced to other nodes, and the database has lost that. Nothing was written."""

    status = 503
    title = "Service Unavailable"
    retry_after = 1  # seconds


class IndexUnreachable(StoreError):
    """The database of the index does not answer. The same request may succeed later."""

    status = 503
    title = "Service Unavailable"
    retry_after = 1  # seconds


class BucketUnreachable(StoreError):
    """The bucket of the segments does not answer. The same request may succeed later."""

    status = 503
    title = "Service Unavailable"
    retry_after = 1  # seconds


class UploadExpired(StoreError):
    """The object of a store transaction was removed, because its node had not renewed it for too long."""

    status = 503
    title = "Service Unavailable"
    retry_after = 1  # seconds


class InstanceDamaged(StoreCorrupt):
    """The stored bytes of an instance differ from the received bytes. `count` instances are damaged; this is
    the first one."""

    def __init__(self, study: str, series: str, sop_instance: str, reason: str, count: int = 1) -> None:
        others = f"; {count} instances of the target resource are damaged" if count > 1 else ""
        super().__init__(
            f"the stored bytes of SOP instance {sop_instance} are damaged ({reason}): store it again{others}"
        )
        self.study = study
        self.series = series
        self.sop_instance = sop_instance


class SegmentGone(StoreError):
    """`lost` is the reason of the damage if an instance lives in the segment."""

    lost = "the file of its segment is missing"


class ObjectGone(SegmentGone):
    lost = "its object is not in the bucket"


NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))
NO_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
# Faults of the machine, not of this program.
OUTSIDE = NO_SPACE | NO_DESCRIPTORS | {errno.EIO, errno.EROFS}


def system_error(error: OSError, doing: str) -> ServerError:
    """The answer after a failed system call. `doing` names the failed step, without a path."""
    if error.errno in NO_SPACE:
        return InsufficientStorage(f"the disk is full ({doing})")
    if error.errno in NO_DESCRIPTORS:
        return Overloaded("the server has no file descriptor left: try again")
    return StoreError(f"{doing} failed: {error.strerror}")
