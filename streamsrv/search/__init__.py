"""Search transactions (PS3.18 10.6): six resources, one function from a request to an answer.

`parameters` reads the query string, `order` knows in which order results come and where a page ends,
`attributes` makes each match into a dataset, `answers` puts them together.
"""

from streamsrv.search.answers import Indexed, answer
from streamsrv.search.parameters import SearchLimits

__all__ = ["Indexed", "SearchLimits", "answer"]
