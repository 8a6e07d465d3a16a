"""Changes of the store, as it tells them to clients: the change feed and events. Knows no socket."""

from streamsrv.events.feed import ChangeFeed
from streamsrv.events.parameters import FEED_PARAMETERS, MOST, feed_default
from streamsrv.events.tail import ChangeTail, EventPosition, TailSource, ToldEvent

__all__ = [
    "FEED_PARAMETERS",
    "MOST",
    "ChangeFeed",
    "ChangeTail",
    "EventPosition",
    "TailSource",
    "ToldEvent",
    "feed_default",
]
