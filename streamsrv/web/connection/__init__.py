"""Connections: they are accepted, read and closed here, and each request is answered."""
