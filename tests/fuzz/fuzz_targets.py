"""Every reader of foreign bytes, with the errors that it may raise.

A target is a function of one `bytes`. It raises the errors that its reader documents, and AssertionError if
the reader breaks its promise. Any other exception is a defect.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FuzzTarget:
    """`errors` are the documented ones. `words` are pieces of the format, for the mutator."""

    name: str
    run: object
    errors: tuple
    words: tuple

    def check(self, content):
        """Run it. AssertionError or an undocumented exception says that the reader is wrong."""
        try:
            self.run(content)
        except self.errors:
            pass


TARGETS = {}


def target(*errors, words=()):
    def enter(run):
        TARGETS[run.__name__] = FuzzTarget(run.__name__, run, errors, tuple(words))
        return run

    return enter


def all_targets():
    """Imports the modules that define them: a fuzzer instruments what is imported here."""
    import fuzz_codecs  # noqa: F401
    import fuzz_dicom  # noqa: F401
    import fuzz_http  # noqa: F401
    import fuzz_store  # noqa: F401

    return TARGETS
