"""The rights of the client of a request: the one place that decides them, for requests and for the page."""

from __future__ import annotations

from typing import NamedTuple

from streamsrv.errors import Forbidden
from streamsrv.settings import Settings


class Rights(NamedTuple):
    """All clients may search and retrieve."""

    store: bool
    delete: bool

    def check(self, method: str) -> None:
        """Raises Forbidden."""
        if (method == "POST" and not self.store) or (method == "DELETE" and not self.delete):
            raise Forbidden("this server is read-only")


def rights_of(settings: Settings) -> Rights:
    return Rights(store=not settings.read_only, delete=not settings.read_only)
