"""The principal of a request: its authentication, and its rights."""
