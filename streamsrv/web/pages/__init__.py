"""Pages for browsers, and the one way from a file to an answer."""
