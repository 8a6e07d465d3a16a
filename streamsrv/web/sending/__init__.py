"""Answers onto the wire."""
