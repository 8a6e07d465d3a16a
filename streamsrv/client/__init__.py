"""The verb `streamsrv store PATH... --url URL`: sends Part 10 files to a DICOMweb service (STOW-RS,
PS3.18 10.5).

verb        arguments, threads, progress bar, exit code; the result of each file
files       the files in batches; the file meta information that some lack
connection  one HTTP connection
credentials  tokens, passwords, certificates: from arguments and files to headers and a TLS context
"""

from streamsrv.client.verb import add_arguments, run

__all__ = ["VERBS", "add_arguments", "run"]

VERBS = {"store": (add_arguments, run)}
