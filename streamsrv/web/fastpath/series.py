"""Frames that have to be made, asked for in known words (fastpath/headers.py): of each series the second one
and all that follow.

Strategy: as the express lane does for stored frames, the usual answer is kept as a template, with marks where
the next one differs: the instance, the number, what is said of the frame. So of a request for another frame
of the series no more is read than that, and its answer is the template filled in. Waiting for the frame, and
all that may go wrong meanwhile, is `Known`'s as ever.

Why nothing can be smuggled: only words that Tornado has read before, from the same peer, for a path that
differs in a UID and a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from streamsrv.errors import NotAcceptable, WouldBlock
from streamsrv.web.admission import Job
from streamsrv.web.fastpath.templates import Knowledge, SeriesTemplate, render_series
from streamsrv.web.head import Head
from streamsrv.wire.answers import Computed

TEMPLATES = 256  # of some 4 kB
# Path of the series, UID of the instance, number of the frame.
_FRAME = re.compile(r"(.*/series/[0-9.]{1,64})/instances/([0-9.]{1,64})/frames/([1-9][0-9]{0,9})")
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_Key = tuple[bytes, str, str]  # words, peer, path of the series


def _frame_in(head: Head) -> re.Match[str] | None:
    """What a request in known words asks for, if that is one frame."""
    return _FRAME.fullmatch(head.path) if head.words and not head.query else None


class HotSeries:
    """Of one worker. A longer URL than `max_url` bytes is refused the usual way."""

    def __init__(self, max_url: int) -> None:
        self._max_url = max_url
        self._templates: dict[_Key, SeriesTemplate] = {}

    def job(self, head: Head, usual: Callable[[], Computed]) -> tuple[Job, str] | None:
        """What to do with a request, and the client's address for the log; None unless its series is known.
        `usual` computes what it would be without."""
        found = _frame_in(head)
        if found is None:
            return None
        series, instance, number = found.groups()
        template = self._templates.get((head.words, head.peer, series))
        if template is None or _UID.fullmatch(instance) is None:
            return None
        if len(head.path) > self._max_url:
            return None
        asked = _Asked(template, head, instance, number, usual)
        return Job(asked.compute, inline=True), template.client

    def learn(self, head: Head, client: str, known: Knowledge) -> None:
        """A frame was made for this request, and sent."""
        found = _frame_in(head)
        series = known.hot_series(head) if found is not None else None
        if found is None or series is None:
            return
        key = head.words, head.peer, found[1]
        while len(self._templates) >= TEMPLATES and key not in self._templates:
            del self._templates[next(iter(self._templates))]
        self._templates[key] = render_series(series, head, client, known)


class _Asked:
    """One request. What is not answered at once, or by what was waited for, is computed the usual way from
    then on: that knows what else would be acceptable, and why a frame cannot be made."""

    def __init__(
        self, template: SeriesTemplate, head: Head, instance: str, number: str, usual: Callable[[], Computed]
    ) -> None:
        self._template = template
        self._head = head
        self._instance, self._number = instance, number
        self._usual = usual
        self._is_first = True

    def compute(self) -> Computed:
        if not self._is_first:
            return self._usual()
        self._is_first = False
        written = partial(self._template.written, self._head, self._instance, self._number)
        try:
            made = self._template.series.frame(self._instance, int(self._number))
        except WouldBlock as blocked:
            blocked.then(written)
            raise
        except NotAcceptable:
            made = None
        return self._usual() if made is None else written(made)
