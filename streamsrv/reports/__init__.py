"""Structured Reports as pages for readers."""
