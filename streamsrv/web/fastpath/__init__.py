"""Requests that are answered from parsed headers or from a cached frame."""
