"""Measures of instances that leave: exports to files, and forwarding to peers."""
