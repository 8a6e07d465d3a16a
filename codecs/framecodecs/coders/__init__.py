"""One module for each codec."""
