"""Frames that are decoded, transcoded or rendered: the pool, its tasks, prefetch, and each kind of result."""
