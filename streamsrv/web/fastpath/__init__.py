"""Requests that are answered with known headers or from a cached frame."""
