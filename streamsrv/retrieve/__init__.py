"""Retrieve transactions (PS3.18 10.4): from a request and its target resource to an answer. No socket.

Start with `resources` (one plan for each kind of target resource), `answering` (the parts of every answer),
then `plans` (which instances, and their bytes) and `pixels` (frames that are made).
"""

from streamsrv.retrieve.resources import Retrieve

__all__ = ["Retrieve"]
