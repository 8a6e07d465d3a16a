"""The studies that a DICOMweb service has, and their instances as they are retrieved (PS3.18 10.4, 10.6).

Strategy: one request gives a study, a series or an instance, as multipart/related of application/dicom. The
parts are given while they arrive, in pieces.

Rules
- A part counts only with the delimiter behind it, and an answer only if it is whole.
"""

from __future__ import annotations

import http.client
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from streamsrv.client.connection import JsonDataset, ReplyError
from streamsrv.client.downloads import PIECE, AnswerCut, DownloadFailed, RemoteInstances
from streamsrv.errors import RequestError
from streamsrv.wire.mediatypes import DICOM
from streamsrv.wire.multipart import (
    NO_LIMIT,
    Event,
    MultipartLimits,
    MultipartParser,
    PartBegin,
    PartEnd,
    Payload,
    boundary_of,
    content_type_of,
)

AS_STORED = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
STUDY, SERIES, INSTANCE, INSTANCES_IN_STUDY = "0020000D", "0020000E", "00080018", "00201208"
PartPieces: TypeAlias = Iterator[bytes | memoryview]


class FoundStudy(NamedTuple):
    """`instances` is their number, or -1 if the service does not tell it."""

    uid: str
    instances: int


class RemoteStudies:
    """Each thread has its own connection."""

    def __init__(self, remote: RemoteInstances) -> None:
        self._remote = remote

    def studies(self, parameters: Sequence[tuple[str, str]]) -> Iterator[FoundStudy]:
        """The studies that match. Raises ReplyError, DownloadFailed, InstanceGone, ServiceRefused, OSError;
        so do the other calls."""
        asked = [*parameters, ("includefield", INSTANCES_IN_STUDY)]
        for found in self._remote.search(asked, "/studies"):
            uid = _first(found, STUDY)
            if not uid:
                raise ReplyError("a result of the search for studies has no Study Instance UID")
            count = _first(found, INSTANCES_IN_STUDY)
            yield FoundStudy(uid, int(count) if count.isdecimal() else -1)

    def instances(self, study: str) -> Iterator[tuple[str, str]]:
        """Series and SOP Instance UID of each instance."""
        for found in self._remote.search((), f"{path_of(study)}/instances"):
            series, uid = _first(found, SERIES), _first(found, INSTANCE)
            if not (series and uid):
                raise ReplyError("a result of the search for instances has no series or SOP Instance UID")
            yield series, uid

    def retrieve(
        self, path: str, take: Callable[[Iterator[PartPieces]], None], *, again: bool = False
    ) -> None:
        """Calls `take` with the instances at `path`, once. With `again` it is called once more after an
        answer that ended early; else that raises AnswerEnded."""

        def read(response: http.client.HTTPResponse) -> None:
            try:
                take(iter(InstanceParts(response)))
            except (http.client.IncompleteRead, ConnectionError, TimeoutError) as fault:
                if again:
                    raise
                self._remote.drop()
                raise AnswerEnded(f"the answer ended early: {path}") from fault
            except BaseException:
                self._remote.drop()
                raise

        self._remote.retrieve(path, [("Accept", AS_STORED)], read)


class AnswerEnded(Exception):
    """The service ended the connection within an answer. The instances before are whole."""


class InstanceParts:
    """The instances of one answer. Each is an iterator of its pieces; a piece is valid until the next one is
    taken. Raises ReplyError if the answer is none of instances, AnswerCut if it ends early."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self._parser: MultipartParser | None = None
        self._events = deque[Event]()
        kind = response.getheader("Content-Type", "")
        try:
            media_type = content_type_of(kind)
            if media_type.type != DICOM:
                self._parser = MultipartParser(boundary_of(media_type), MultipartLimits(parts=NO_LIMIT))
        except RequestError as fault:
            raise DownloadFailed(f"HTTP status {response.status} with {kind or 'no content type'}") from fault

    def __iter__(self) -> Iterator[PartPieces]:
        if self._parser is None:
            yield self._whole()
            return
        while (event := self._next()) is not None:
            if isinstance(event, PartBegin):
                kind = event.headers.get("content-type", DICOM)
                if kind.partition(";")[0].strip().lower() != DICOM:
                    raise DownloadFailed(f"a part of the answer is {kind}")
                yield self._payload()

    def _whole(self) -> PartPieces:
        while piece := self._response.read(PIECE):
            yield piece
        if self._response.length:
            raise AnswerCut("the answer ended early")

    def _payload(self) -> PartPieces:
        while (event := self._next()) is not None and not isinstance(event, PartEnd):
            if isinstance(event, Payload):
                yield event.view

    def _next(self) -> Event | None:
        """None behind the last part."""
        assert self._parser is not None
        while not self._events:
            piece = self._response.read(PIECE)
            if not piece:
                self._end(self._parser)
                return None
            try:
                self._events.extend(self._parser.feed(piece))
            except RequestError as fault:
                raise ReplyError(f"the answer is no multipart body: {fault.detail}") from fault
        return self._events.popleft()

    def _end(self, parser: MultipartParser) -> None:
        try:
            parser.close()
        except RequestError as fault:
            raise AnswerCut("the answer ended early") from fault
        if self._response.length:
            raise AnswerCut("the answer ended early")


def path_of(study: str, series: str = "", instance: str = "") -> str:
    """The path of a study, of a series or of an instance."""
    parts = zip(("studies", "series", "instances"), (study, series, instance), strict=True)
    return "".join(f"/{kind}/{quote(uid, safe='')}" for kind, uid in parts if uid)


def _first(found: JsonDataset, tag: str) -> str:
    element: Any = found.get(tag, {})
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
