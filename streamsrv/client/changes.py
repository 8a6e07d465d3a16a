"""The change feed of a DICOMweb service, as Microsoft's server and this one have it.

Strategy: version 1 counts by sequence. Later versions ask for a window of time, which begins at the last
known change; the changes of that moment that are known already are skipped by their sequence.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from streamsrv.client.connection import ReplyError
from streamsrv.client.downloads import DownloadFailed, InstanceGone, RemoteInstances

PAGE = 100  # changes: both versions allow as many
AGAIN = frozenset(("update", "delete"))


class ChangeMark(NamedTuple):
    """A change, by its sequence and its time as the service writes it; (0, "") is before the first one."""

    sequence: int
    time: str


class ChangesLost(Exception):
    """The service does not have all changes since a mark."""


class RemoteChanges:
    """Raises ReplyError, DownloadFailed, ServiceRefused, OSError."""

    def __init__(self, remote: RemoteInstances, url: str) -> None:
        self.mark = ChangeMark(0, "")  # of the newest change that was seen
        self._remote = remote
        self._counts = urlsplit(url).path.rstrip("/").endswith("/v1")

    def find(self) -> bool:
        """Looks for the newest change. False if the service has no change feed, or does not show it."""
        try:
            found = self._get("/changefeed/latest?includeMetadata=false")
        except (InstanceGone, DownloadFailed, ReplyError):
            return False
        if found is None:
            return True
        try:
            self.mark = ChangeMark(int(found["sequence"]), str(found["timestamp"]))
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def replaced(self, since: ChangeMark) -> Iterator[tuple[str, str, str]]:
        """Study, series and SOP Instance UID of instances that were replaced or deleted behind a mark. Raises
        ChangesLost."""
        if self.mark.sequence < since.sequence:
            raise ChangesLost("the change feed of the service has begun again")
        for change in self._behind(since):
            if str(change.get("action")).lower() in AGAIN:
                study, series, instance = (
                    str(change.get(f"{level}InstanceUid", "")) for level in ("study", "series", "sop")
                )
                yield study, series, instance

    def _behind(self, since: ChangeMark) -> Iterator[dict[str, Any]]:
        """The changes behind a mark."""
        after, offset, former = since.sequence, 0, set[int]()
        while True:
            words: dict[str, object] = {"limit": PAGE, "includeMetadata": "false"}
            if self._counts:
                words["offset"] = after
            else:
                words |= {"offset": offset} | ({"startTime": since.time} if since.time else {})
            page = self._page(words)
            if not page:
                return
            found = {change["sequence"] for change in page}
            if found <= former:
                raise ReplyError("the change feed of the service gives the same changes again and again")
            for change in page:
                if change["sequence"] > since.sequence:
                    self.mark = ChangeMark(change["sequence"], str(change.get("timestamp", "")))
                    yield change
            after, offset, former = page[-1]["sequence"], offset + len(page), found

    def _page(self, words: dict[str, object]) -> list[dict[str, Any]]:
        try:
            page = self._get(f"/changefeed?{urlencode(words)}") or []
        except InstanceGone as fault:
            raise ChangesLost(str(fault)) from fault
        if not isinstance(page, list) or not all(
            isinstance(each, dict) and isinstance(each.get("sequence"), int) for each in page
        ):
            raise ReplyError("the change feed of the service is no list of changes")
        return page

    def _get(self, path: str) -> Any:
        def read(response: http.client.HTTPResponse) -> Any:
            body = response.read()
            try:
                return json.loads(body) if body else None
            except ValueError as fault:
                raise ReplyError("the change feed of the service is no JSON") from fault

        return self._remote.retrieve(path, [("Accept", "application/json")], read)
