"""Segments and the index: the only room that touches files and LMDB. Blocking; called from threads."""
