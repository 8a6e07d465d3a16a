"""The verb `streamsrv store PATH... --url URL`: sends Part 10 files to a DICOMweb service (STOW-RS, PS3.18
10.5).

verb        arguments, threads, progress bar, exit code
tally       what became of every file, judged by the response dataset
connection  one HTTP connection: batches go out, response datasets come back
files       the walk over the paths, cut into batches
"""

from streamsrv.client.verb import add_arguments, run

__all__ = ["add_arguments", "run"]
