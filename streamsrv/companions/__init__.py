"""Processes beside the workers: scrub and metrics."""
