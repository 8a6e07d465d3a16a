"""HTTP and MIME without a socket: multipart, content negotiation, target resources, answers."""
