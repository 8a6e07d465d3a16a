"""Frames into pictures for browsers."""
