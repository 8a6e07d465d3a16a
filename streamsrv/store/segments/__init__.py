"""Segments, their records and their leases: the bytes of instances."""
