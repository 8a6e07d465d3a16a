"""The verb `streamsrv store PATH... --url URL`: sends Part 10 files to a DICOMweb service (STOW-RS,
PS3.18 10.5).

verb        arguments, threads, progress bar, exit code
tally       the result of each file, from the response dataset
connection  one HTTP connection: requests and response datasets
files       the files of the paths, in batches
"""

from streamsrv.client.verb import add_arguments, run

__all__ = ["add_arguments", "run"]
