"""The verb `streamsrv store PATH... --url URL`: sends Part 10 files to a DICOMweb service (STOW-RS,
PS3.18 10.5).

verb        arguments, threads, progress bar, exit code; the result of each file
connection  the files in batches; one HTTP connection
"""

from streamsrv.client.verb import add_arguments, run

__all__ = ["add_arguments", "run"]
