"""Pages that were answered lately, as long as nothing was committed since.

Strategy: what a search finds depends on its request and on the state of the index alone, and the number of
the index's last commit, of any process, tells one state from another. So a page is kept with that number,
read before the search began; the first request after a commit forgets all pages together. While studies
arrive this gains little; most of the time none do, and everyone asks for the same list.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MOST_BYTES = 8 << 20
A_PAGE = 1_000  # bytes, about: its key, its headers

Page = TypeVar("Page")


@dataclass(slots=True)
class _State(Generic[Page]):
    """Pages of one moment. What a thread brings too late, of an earlier moment, is never looked for."""

    moment: int
    pages: dict[Hashable, Page] = field(default_factory=dict)
    size: int = 0


class Pages(Generic[Page]):
    """Of one index. Any thread may use it."""

    def __init__(self) -> None:
        self._state: _State[Page] = _State(-1)

    def get(self, moment: int, key: Hashable) -> Page | None:
        state = self._state
        return state.pages.get(key) if state.moment == moment else None

    def put(self, moment: int, key: Hashable, page: Page, size: int) -> None:
        state = self._state
        if state.moment != moment or state.size + size + A_PAGE > MOST_BYTES:
            state = self._state = _State(moment)
        if size + A_PAGE <= MOST_BYTES:
            state.pages[key] = page
            state.size += size + A_PAGE
