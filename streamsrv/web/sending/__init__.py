"""Answers on their way to the socket."""
