"""Check, audit, compact, reindex, scrub and info: work on a whole store."""
