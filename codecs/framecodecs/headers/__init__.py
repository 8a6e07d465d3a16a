"""Readers of the headers of compressed frames."""
