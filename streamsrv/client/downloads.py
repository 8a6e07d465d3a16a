"""The instances that a DICOMweb service finds, and their bytes (QIDO-RS and WADO-RS, PS3.18 10.4, 10.6).

Strategy: pages of search results, by the link `next` of an answer, else by `offset`. Each instance is one
request for its stored transfer syntax, so that nothing is transcoded; a condition spares bytes that the
client has already.

Rules
- A lost connection and a 429, 502, 503 or 504 are tried again, after growing waits. A 401 or an invalid
  certificate ends everything.
- An answer counts only if it has the length that it states.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

from streamsrv.client.connection import Reply, ReplyError, ServiceConnection, ServiceRefused
from streamsrv.client.credentials import Credentials, same_origin

PAGE = 200  # search results: some services allow no more
PIECE = 1 << 20
LONGEST_WAIT = 60.0  # seconds between two attempts
MOST_ERROR = 64 << 10  # bytes of a refusal that are read
BUSY = frozenset((429, 502, 503, 504))
_NEXT = re.compile(r'<([^>]*)>[^,]*;\s*rel="?next"?')

Result = TypeVar("Result")


class DownloadFailed(Exception):
    """The service does not give this resource. The message has the status."""


class AnswerCut(ConnectionError):
    """The service ends the connection within an answer: it may be damaged there."""


class InstanceGone(Exception):
    """The service has no such instance (any more)."""


class DownloadConnection(ServiceConnection):
    """GET requests to one service. For one thread."""

    def __init__(
        self, url: str, timeout: float, retries: int, credentials: Credentials | None = None
    ) -> None:
        super().__init__(url, timeout, credentials)
        self._url = url
        self._retries = retries

    def get(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        read: Callable[[http.client.HTTPResponse], Result],
    ) -> Result:
        """The result of `read`, which is called again after a lost connection. Raises OSError,
        ReplyError, DownloadFailed, InstanceGone and ServiceRefused."""
        if not same_origin(self._url, url):
            raise ReplyError(f"the service links to another origin: {url.partition('?')[0]}")
        renewed = False
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                with self._closing_on_faults():
                    response = self._request(url, headers)
                    if response.status in (200, 204, 206, 304):
                        return self._whole(response, read)
                    reply = Reply(response.status, _headers_of(response), response.read(MOST_ERROR))
                    self.close()
            except (ConnectionError, TimeoutError) as fault:
                if last and isinstance(fault, AnswerCut):
                    raise DownloadFailed(str(fault)) from fault
                if last:
                    raise
                time.sleep(_growing(attempt))
                continue
            if reply.status == 401 and not renewed:
                renewed = True
                self._credentials.refused()
            elif reply.status in BUSY and not last:
                told = "retry-after" in reply.headers
                time.sleep(min(LONGEST_WAIT, reply.retry_after()) if told else _growing(attempt))
            else:
                raise _refusal(reply)
        raise _refusal(reply)

    def _request(self, url: str, headers: Sequence[tuple[str, str]]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        self._http.putrequest("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        for name, value in (*headers, *self._request_headers()):
            self._http.putheader(name, value)
        self._http.endheaders()
        return self._http.getresponse()

    def _whole(
        self, response: http.client.HTTPResponse, read: Callable[[http.client.HTTPResponse], Result]
    ) -> Result:
        try:
            result = read(response)
        except (http.client.IncompleteRead, ConnectionError) as fault:
            raise AnswerCut("the answer ended early") from fault
        if response.length:
            raise AnswerCut("the answer ended early")
        if not response.isclosed():
            self.close()
        return result


class RemoteInstances:
    """A service as the source of instances. Each thread has its own connection. Close it."""

    def __init__(
        self, url: str, *, timeout: float = 300.0, retries: int = 8, login: Credentials | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._open: list[DownloadConnection] = []
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._options = timeout, retries, login

    def close(self) -> None:
        for each in self._open:
            each.close()

    def _connection(self) -> DownloadConnection:
        found: DownloadConnection | None = getattr(self._mine, "connection", None)
        if found is None:
            found = self._mine.connection = DownloadConnection(self._url, *self._options)
            with self._lock:
                self._open.append(found)
        return found

    def search(
        self, parameters: Sequence[tuple[str, str]], path: str = "/instances"
    ) -> Iterator[dict[str, Any]]:
        """The datasets of all results of the search at `path`, in pages of PAGE."""
        offset, last = 0, list[dict[str, Any]]()
        url = f"{self._url}{path}?{_query([*parameters, ('limit', str(PAGE))])}"
        while url:
            page, link = self._connection().get(url, [("Accept", "application/dicom+json")], _page)
            if page == last and len(page) >= PAGE:
                raise ReplyError("the service gives the same page of a search twice: it ignores `offset`")
            if not page or page == last:
                return
            yield from page
            offset, last = offset + len(page), page
            following = [*parameters, ("limit", str(PAGE)), ("offset", str(offset))]
            url = urljoin(url, link) if link else f"{self._url}{path}?{_query(following)}"

    def retrieve(
        self,
        path: str,
        headers: Sequence[tuple[str, str]],
        read: Callable[[http.client.HTTPResponse], Result],
    ) -> Result:
        """The result of `read`, as DownloadConnection.get. Raises the same errors."""
        return self._connection().get(f"{self._url}{path}", headers, read)

    def drop(self) -> None:
        """Closes the connection of this thread: the rest of an answer is not read."""
        self._connection().close()

    def fetch(
        self,
        instance: tuple[str, str, str],
        syntax: str,
        version: str,
        begin: Callable[[], None],
        write: Callable[[bytes], None],
    ) -> tuple[str, str] | None:
        """Calls `begin`, then `write` with the pieces of the file; again after a lost connection. Returns the
        ETag, or `-` if there is none, and the transfer syntax. None if the ETag is `version`."""
        study, series, uid = (quote(each, safe="") for each in instance)
        headers = [("Accept", f"application/dicom; transfer-syntax={syntax or '*'}")]
        if version not in ("", "-"):
            headers.append(("If-None-Match", version))

        def read(response: http.client.HTTPResponse) -> tuple[str, str] | None:
            if response.status == 304:
                response.read()
                return None
            kind = response.getheader("Content-Type", "")
            if response.status != 200 or not kind.startswith("application/dicom"):
                raise DownloadFailed(f"HTTP status {response.status} with {kind or 'no content type'}")
            begin()
            while piece := response.read(PIECE):
                write(piece)
            sent = re.search(r"transfer-syntax=\"?([0-9.]+)", kind)
            return response.getheader("ETag") or "-", sent[1] if sent else syntax

        return self.retrieve(f"/studies/{study}/series/{series}/instances/{uid}", headers, read)


def _growing(attempt: int) -> float:
    """Seconds to wait after this attempt, from 0 on."""
    return min(LONGEST_WAIT, 0.1 * 2.0**attempt)


def _query(parameters: Sequence[tuple[str, str]]) -> str:
    return urlencode(parameters, safe=",*:-", quote_via=quote)


def _page(response: http.client.HTTPResponse) -> tuple[list[dict[str, Any]], str]:
    """The datasets, and the link to the next page or ""."""
    body = response.read()
    try:
        page = json.loads(body) if body else []
    except ValueError:
        page = None
    if not isinstance(page, list) or not all(isinstance(each, dict) for each in page):
        raise ReplyError("the answer of a search is no list of DICOM JSON datasets")
    link = _NEXT.search(response.getheader("Link", ""))
    return page, link[1] if link else ""


def _headers_of(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _refusal(reply: Reply) -> Exception:
    if reply.status == 401:
        return ServiceRefused(reply.explanation())
    if reply.status in (404, 410):
        return InstanceGone(reply.explanation())
    return DownloadFailed(reply.explanation())
