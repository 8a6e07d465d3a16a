"""Search transactions (PS3.18 10.6): six resources, one function from a request to an answer.

`parameters` reads the query string. `order` sorts results and makes cursors. `attributes` makes a dataset of
each match. `exact` is the short way for one value. `answers` joins them.
"""

from streamsrv.search.answers import Searches
from streamsrv.search.parameters import SearchLimits

__all__ = ["SearchLimits", "Searches"]
