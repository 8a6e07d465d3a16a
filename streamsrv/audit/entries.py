"""One entry of the audit trail, and its JSON.

An event is a family of messages of DICOM PS3.15 A.5.3. Ordinary requests make one entry for each principal,
study, event, outcome and minute (`AuditEntry.key`).
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import orjson

MINUTE = 60  # seconds
ANONYMOUS = "anonymous"
SERVER = "streamsrv"  # the user of entries about the server itself


# Controls that JSON does not escape: terminals obey some of them, and some programs end a line there.
_CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")


class Event(enum.StrEnum):
    """The events. The comment names the message of PS3.15 A.5.3."""

    __hash__ = str.__hash__  # that of an enumeration is a function in Python

    STARTED = "application-start"  # Application Activity
    STOPPED = "application-stop"
    LOG_USED = "audit-log-used"  # Audit Log Used
    LOGIN = "login"  # User Authentication
    LOGOUT = "logout"
    QUERY = "query"  # Query
    ACCESSED = "instances-accessed"  # DICOM Instances Accessed: metadata, frames, pictures, bulk values
    SENT = "instances-sent"  # DICOM Instances Transferred: whole instances to the client
    STORED = "instances-stored"  # DICOM Instances Transferred: instances from the client
    DELETED = "instances-deleted"  # DICOM Instances Accessed: a series or instance of a study
    STUDY_DELETED = "study-deleted"  # DICOM Study Deleted
    REFUSED = "access-refused"  # Security Alert: a right is missing
    BURST = "burst-refused"  # Security Alert: too many requests
    RIGHTS_CHANGED = "rights-changed"  # Security Alert: a key, share or rule was made or revoked
    RECORDING_RESUMED = "recording-resumed"  # Security Alert: entries could not be written for a while
    LINE_TORN = "line-torn"  # Security Alert: a process died while it wrote the line before
    FILES_REMOVED = "files-removed"  # Security Alert: files older than `audit_keep_days`


# Each of these events is an entry, also several in one minute.
SINGLE = frozenset((Event.DELETED, Event.STUDY_DELETED, Event.RIGHTS_CHANGED))


class EventOutcome(enum.IntEnum):
    """EventOutcomeIndicator of PS3.15 A.5.1."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


# The minute since 1970, and the fields in which two entries of one minute differ.
EntryKey: TypeAlias = tuple[int | str, ...]


class AuditEntry(NamedTuple):
    """`at` is in seconds since 1970. `user` is the name of the principal, `client` the address. `query` is
    the path and the query of a search, as sent. `request` is the request id. `detail` is a word or a
    sentence."""

    at: float
    event: Event
    outcome: EventOutcome = EventOutcome.SUCCESS
    user: str = ""
    client: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    patient_id: str = ""
    patient_name: str = ""
    query: str = ""
    request: str = ""
    detail: str = ""

    @property
    def key(self) -> EntryKey:
        """Entries with equal keys are one entry. An unknown user is told by the address."""
        client = self.client if self.user == ANONYMOUS else ""
        request = self.request if self.event in SINGLE else ""
        what = self.study, self.series, self.instance, self.query, self.detail, request
        return int(self.at) // MINUTE, self.event, int(self.outcome), self.user, client, *what

    def text(self, number: int) -> bytes:
        """The JSON object without its closing brace; empty fields are left out."""
        values: dict[str, Any] = {"n": number, "at": timestamp(self.at)}
        values |= {name: value for name, value in zip(self._fields[1:], self[1:], strict=True) if value != ""}
        values["outcome"] = int(self.outcome)
        return json_of({name: _storable(value) for name, value in values.items()})[:-1]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> AuditEntry:
        """From the JSON object of a line. Raises KeyError or ValueError if it is no entry."""
        texts = {name: str(values[name]) for name in cls._fields[3:] if name in values}
        return cls(
            seconds(str(values["at"])), Event(values["event"]), EventOutcome(values["outcome"]), **texts
        )


def json_of(values: Mapping[str, Any]) -> bytes:
    """A line of JSON without control characters."""
    return _CONTROLS.sub(_escaped, orjson.dumps(values))


def _escaped(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())


def _storable(value: Any) -> Any:
    """A lone surrogate is not UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def timestamp(at: float) -> str:
    """RFC 3339 in UTC, to a millisecond."""
    whole = int(at)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((at - whole) * 1000):03d}Z"


def seconds(text: str) -> float:
    """Seconds since 1970 of a text of RFC 3339. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()
