"""The web viewer (OHIF) that is installed in the folder of the store, at /viewer/.

    DATA/viewer/viewer.json    the table of its files, replaced by each installation (see tools/viewer.py)
    DATA/viewer/NAME/          the files of one installation

Rules of this file
- The table is read again when it has changed, so a viewer can be installed beside a running server.
- A file is served only if the table has it. A path without an extension is one of the viewer's own places
  (deep links), so the page answers.
- The viewer cannot sign its user in. Without a principal its places lead to the page of this server, which
  comes back to them (`#/viewer/...`, see files/app.js). Its other files are open.
- The viewer is code of others. Its policy lets it load and ask only this origin, and run only its own files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from streamsrv.errors import NotFound, ServerError
from streamsrv.settings import Settings
from streamsrv.web.access.principal import UNKNOWN, Principal, Right
from streamsrv.web.pages.static import (
    ASK,
    FOREVER,
    NEVER,
    StaticFile,
    file_answer,
    in_memory,
    media_type_of,
)
from streamsrv.wire.answers import Answer, Computed, Deferred, Request
from streamsrv.wire.codings import IDENTITY
from streamsrv.wire.resources import Target

PLACE = "/viewer/"
FOLDER, TABLE = "viewer", "viewer.json"
CONFIG, PAGE = "app-config.js", "index.html"
# The page has no other sources than this origin. Codecs and the loader of segmentations make functions from
# text. Workers are files and blobs, libraries add style elements, and a PDF is shown in an <object>.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{scripts}; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self' data: blob:; object-src 'self' blob:; "
    "frame-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_MISSING = (
    "no viewer is installed: run `streamsrv viewer install --data DIR` with the folder of this store, and "
    "load this page again"
)


class Installed(NamedTuple):
    """One installation. `stamp` identifies its table."""

    stamp: tuple[int, ...]
    files: Mapping[str, StaticFile]
    page: bytes


class Viewer:
    def __init__(self, settings: Settings) -> None:
        self._progressive = settings.viewer_progressive
        self._has_page = settings.browser
        self._folder = Path(settings.data) / FOLDER
        self._installed: Installed | None = None

    def answer(self, request: Request, target: Target, principal: Principal) -> Computed:
        """The answer to GET of a path at or below PLACE. Raises NotFound."""
        if request.path + "/" == PLACE:
            return Answer(308, [("Location", _prefix(request) + PLACE), ("Cache-Control", ASK)])
        return Deferred(lambda: self._answer(request, target.file, principal))

    def _answer(self, request: Request, name: str, principal: Principal) -> Computed:
        """Reads files, so a thread calls it."""
        installed = self._current()
        if name == CONFIG:
            text = config_text(_prefix(request), principal.rights, progressive=self._progressive)
            file = in_memory(CONFIG, text.encode(), NEVER)
        elif name == PAGE or (name not in installed.files and "." not in name.rpartition("/")[2]):
            if principal is UNKNOWN and self._has_page:
                return Answer(303, [("Location", _sign_in(request, name)), ("Cache-Control", NEVER)])
            page = _moved(installed.page, _prefix(request))
            return file_answer(request, in_memory(PAGE, page), policy_of(page))
        elif name in installed.files:
            file = installed.files[name]
        else:
            raise NotFound("the viewer has no such file")
        return file_answer(request, file, policy_of(b""))

    def installed(self) -> bool:
        return (self._folder / TABLE).exists()

    def _current(self) -> Installed:
        """Raises NotFound if no viewer is installed."""
        table = self._folder / TABLE
        try:
            found = os.stat(table)
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._installed is None or self._installed.stamp != stamp:
                self._installed = _read(self._folder, json.loads(table.read_bytes()), stamp)
        except FileNotFoundError:
            raise NotFound(_MISSING) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerError(f"{table} cannot be read: run `streamsrv viewer install` again") from None
        except OSError as error:
            raise ServerError(f"the viewer cannot be read: {error.strerror}") from None
        return self._installed


def _read(folder: Path, table: Mapping[str, Any], stamp: tuple[int, ...]) -> Installed:
    """Raises KeyError, TypeError and AttributeError for a malformed table."""
    place = folder / table["folder"]
    files = {name: _file(place / name, row) for name, row in table["files"].items()}
    return Installed(stamp, files, (place / PAGE).read_bytes())


def policy_of(page: bytes) -> str:
    """Allows the scripts that stand in the page, by their digests (CSP 3, 2.3.1)."""
    digests = (hashlib.sha256(script).digest() for script in _INLINE.findall(page))
    hashes = (f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return POLICY.format(scripts="".join(hashes))


def _file(path: Path, row: Mapping[str, Any]) -> StaticFile:
    codings: dict[str, bytes | Path] = {IDENTITY: path}
    codings |= {coding: coded_path(path, coding) for coding in row["codings"]}
    return StaticFile(media_type_of(path.name), row["digest"], codings, FOREVER if row["named"] else ASK)


def coded_path(path: Path, coding: str) -> Path:
    """The file with the same contents in a content coding."""
    return path.with_name(f"{path.name}.{coding}")


def _prefix(request: Request) -> str:
    """The path that a proxy adds before those of this server, without a slash at its end."""
    return urlsplit(request.base_url).path.rpartition("/")[0].rstrip("/")


def _sign_in(request: Request, name: str) -> str:
    """The address of the page that comes back to a place of the viewer after the sign-in."""
    query = f"?{urlencode(request.query)}" if request.query else ""
    return f"{_prefix(request)}/#{PLACE}{quote(name)}{query}"


def _moved(page: bytes, prefix: str) -> bytes:
    """The page for a server whose paths begin with `prefix`."""
    return page.replace(f'"{PLACE}'.encode(), f'"{prefix}{PLACE}'.encode()) if prefix else page


# The configuration of the viewer


# HTJ2K in the order of resolutions: a small picture from the first bytes of a frame, then the rest. The
# loader cannot set Accept, so the query does (PS3.18 8.3.3.1). `default` is for frames that are read ahead.
FIRST = 32 << 10  # bytes
_HTJ2K = {"urlArguments": "accept=image/jphc;transfer-syntax=1.2.840.10008.1.2.4.202"}
PROGRESSIVE = {
    "stages": [{"id": "first", "retrieveType": "first"}, {"id": "rest", "retrieveType": "rest"}],
    "retrieveOptions": {
        "default": {**_HTJ2K, "streaming": True, "decodeLevel": 1},
        "first": {**_HTJ2K, "rangeIndex": 0, "chunkSize": FIRST, "decodeLevel": 2},
        "rest": {**_HTJ2K, "rangeIndex": -1},
    },
}


def config_text(prefix: str, rights: Right, *, progressive: bool) -> str:
    """A script that sets `window.config`. `prefix` begins all paths of this server."""
    root = f"{prefix}/v2"
    source: dict[str, Any] = {
        "friendlyName": "streamsrv",
        "name": "streamsrv",
        "qidoRoot": root,
        "wadoRoot": root,
        "wadoUriRoot": f"{prefix}/wado",
        "qidoSupportsIncludeField": True,
        "supportsFuzzyMatching": True,
        "supportsWildcard": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "thumbnail",
        "thumbnailRequestStrategy": "fetch",
        "enableStudyLazyLoad": True,
        "dicomUploadEnabled": Right.STORE in rights,
        "singlepart": "bulkdata,video,pdf",
        "bulkDataURI": {"enabled": True},
        "omitQuotationForMultipartRequest": True,
    }
    if progressive:
        source["stackRetrieveOptions"] = PROGRESSIVE
    config = {
        "name": "streamsrv",
        "routerBasename": prefix + PLACE.rstrip("/"),
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showStudyList": True,
        "showWarningMessageForCrossOrigin": True,
        "showCPUFallbackMessage": True,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "groupEnabledModesFirst": True,
        "maxNumberOfWebWorkers": 3,
        "maxNumRequests": {"interaction": 100, "thumbnail": 5, "prefetch": 25},
        "defaultDataSourceName": "streamsrv",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "streamsrv",
                "configuration": source,
            }
        ],
    }
    return f"window.config = {json.dumps(config, indent=1)};\n"
