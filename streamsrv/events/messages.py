"""Events as text/event-stream (HTML Living Standard 9.2), and the positions in their ids.

An id is `EPOCH.SEQUENCE.COMPLETE`. The sequence of a change alone is a position too.
"""

from __future__ import annotations

import re

from streamsrv.errors import BadRequest
from streamsrv.events.tail import COMPLETE, RESET, EventPosition, ToldEvent

EVENT_STREAM = "text/event-stream"
# Milliseconds after which a browser connects again.
RETRY = b"retry: 2000\n\n"
_ID = re.compile(r"(?:([0-9a-f]{1,32})\.)?([0-9]{1,18})(?:\.([0-9]{1,18}))?")


def event_id(epoch: str, position: EventPosition) -> str:
    return f"{epoch}.{position.sequence}.{position.complete}"


def message_id(epoch: str, event: ToldEvent) -> str:
    """The id of an event for hooks, which each reader gives it. A position depends on the time of its reader,
    too. A reset has its place."""
    if event.name == COMPLETE:
        return event_id(epoch, EventPosition(event.position.complete, event.position.complete))
    own = event.position if event.name == RESET else EventPosition(event.position.sequence)
    return event_id(epoch, own)


def position_from(text: str, epoch: str) -> EventPosition | None:
    """The position of an id; None if it counts in another epoch. Raises BadRequest."""
    found = _ID.fullmatch(text.strip())
    if found is None:
        raise BadRequest("Last-Event-ID or offset is not the id of an event, or the sequence of a change")
    if found[1] not in (None, epoch):
        return None
    return EventPosition(int(found[2]), int(found[3] or 0))


def message(epoch: str, event: ToldEvent) -> bytes:
    named = b"event: complete\n" if event.name == COMPLETE else b""
    return b"id: %b\n%bdata: %b\n\n" % (event_id(epoch, event.position).encode(), named, event.data)


def place(epoch: str, position: EventPosition) -> bytes:
    """No event, but the client has its id when it connects again (9.2.6)."""
    return b"id: %b\n\n" % event_id(epoch, position).encode()


def beat(epoch: str, position: EventPosition) -> bytes:
    return b": still here\n" + place(epoch, position)


def reset(epoch: str, position: EventPosition) -> bytes:
    """The client has missed changes: it has to search again."""
    said = event_id(epoch, position).encode()
    return b'id: %b\nevent: reset\ndata: {"action":"reset","sequence":%d}\n\n' % (said, position.sequence)
