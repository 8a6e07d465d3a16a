"""The page at `/`, for people: study list, upload, pictures, attributes.

Strategy: the page is an HTML document, a style sheet and ES modules from `files/`. It asks the DICOMweb
service at `v2/`, as any viewer does. Two more documents are made here: `server.json` lists the rights of
clients and the viewers, `dictionary.json` has the names of all standard attributes.

Rules of this file
- All URLs in the page are relative, so a proxy may add a path before it.
- `/` is HTML only for clients that name `text/html` in Accept. Other clients get the 404 of a path without
  version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from streamsrv import __version__
from streamsrv.dicom.tags import attribute_names
from streamsrv.errors import NotFound
from streamsrv.web.access.browser.visitor import Visitor
from streamsrv.web.pages.static import NEVER, StaticFile, file_answer, in_memory
from streamsrv.wire.accept import parse_accept
from streamsrv.wire.answers import Computed, Request
from streamsrv.wire.resources import Target, no_version

INDEX, FACTS, DICTIONARY, HTML = "index.html", "server.json", "dictionary.json", "text/html"
# Relative to the page; `{study}` stands for the Study Instance UID.
VIEWER = {"name": "OHIF", "url": "viewer/viewer?StudyInstanceUIDs={study}"}
# Scripts and styles of this server alone, none of them inline. Without Trusted Types no script can turn text
# into HTML. A rendered report is a frame, and has a policy of its own.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_FILES = Path(__file__).with_name("files")


class Page:
    """`has_viewer` says whether a viewer is installed; it is asked for each request."""

    def __init__(self, has_viewer: Callable[[], bool]) -> None:
        self._has_viewer = has_viewer

    def answer(self, request: Request, target: Target, visitor: Visitor) -> Computed:
        """Raises NotFound, PreconditionFailed and RangeNotSatisfiable."""
        if target.file == FACTS:
            return file_answer(request, self._facts(visitor), POLICY)
        if target.file == DICTIONARY:
            return file_answer(request, self._dictionary, POLICY)
        if not target.file:
            if not _accepts_html(request.headers.get("accept")):
                raise no_version()
            return file_answer(request, self._files[INDEX], POLICY, (("Vary", "Accept"),))
        if target.file not in self._files:
            raise NotFound("the page has no such file")
        return file_answer(request, self._files[target.file], POLICY)

    @cached_property
    def _files(self) -> Mapping[str, StaticFile]:
        return {path.name: in_memory(path.name, path.read_bytes()) for path in _FILES.iterdir()}

    @cached_property
    def _dictionary(self) -> StaticFile:
        text = json.dumps(dict(attribute_names()), ensure_ascii=False, separators=(",", ":"))
        return in_memory(DICTIONARY, text.encode())

    def _facts(self, visitor: Visitor) -> StaticFile:
        facts = {
            "version": __version__,
            "viewers": [VIEWER] if self._has_viewer() else [],
            **visitor.facts(),
        }
        return in_memory(FACTS, json.dumps(facts).encode(), NEVER)


def _accepts_html(accept: str | None) -> bool:
    return any(asked.media_type == HTML and asked.quality > 0 for asked in parse_accept(accept))
