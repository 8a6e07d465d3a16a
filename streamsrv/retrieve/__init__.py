"""Retrieve transactions (PS3.18 10.4): from a request and its target resource to an answer. No socket.

Start with `resources` (one plan for each kind of target resource) and `answering` (the parts of every
answer). `plans` selects instances and their bytes, `pixels` makes frames.
"""

from streamsrv.retrieve.resources import Retrieve

__all__ = ["Retrieve"]
