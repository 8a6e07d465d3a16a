"""HTTP and MIME without a socket: resources, representations, conditions, multipart, answers."""
