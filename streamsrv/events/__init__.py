"""Changes of the store, as it tells them to clients: the change feed. Knows no socket."""

from streamsrv.events.feed import ChangeFeed
from streamsrv.events.parameters import FEED_PARAMETERS, MOST, feed_default

__all__ = ["FEED_PARAMETERS", "MOST", "ChangeFeed", "feed_default"]
