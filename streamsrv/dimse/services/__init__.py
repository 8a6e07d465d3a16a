"""The operations of each service, from a request to its final response."""
