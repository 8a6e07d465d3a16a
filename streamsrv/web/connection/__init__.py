"""One connection: listener, stream, exchange, body, threads, and the end."""
