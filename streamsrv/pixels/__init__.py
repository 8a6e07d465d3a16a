"""Pixels that are decoded, encoded or rendered: the pool, its tasks, prefetching, and each kind of result."""
