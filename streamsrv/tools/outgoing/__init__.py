"""Verbs that write stored instances to files."""
