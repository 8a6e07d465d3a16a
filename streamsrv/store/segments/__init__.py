"""Segments, their records and their leases: where the bytes of instances lie."""
