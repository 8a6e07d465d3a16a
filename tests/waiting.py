"""Waiting for a state, and never for a time: a loaded machine is slow."""

import time

PATIENCE = 60.0  # seconds


def waited(condition, what="it never came true", patience=PATIENCE):
    """The result of `condition`, as soon as it is true."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.005)
    return found
