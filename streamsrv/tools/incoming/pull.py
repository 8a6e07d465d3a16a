"""The verb `pull`: brings the studies of another DICOMweb server into the folder of a store, or to a server.
The work is in mirror.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamsrv.client import credentials
from streamsrv.client.changes import RemoteChanges
from streamsrv.client.credentials import service_url
from streamsrv.client.downloads import RemoteInstances
from streamsrv.client.studies import RemoteStudies
from streamsrv.config import SettingsError, add_config_argument, refuse_platform, settings_of
from streamsrv.tools.file_names import safe_name
from streamsrv.tools.incoming.landing import Destination, ServiceDestination
from streamsrv.tools.incoming.mirror import COUNTED, Mirror
from streamsrv.tools.incoming.pulled import PulledInstances
from streamsrv.tools.incoming.run_report import RunReport
from streamsrv.tools.progress import ProgressLine
from streamsrv.tools.search_words import query_pairs

EXAMPLE = """\
Examples: all studies of Orthanc into a store, also beside its server; those of this year to a server.

    streamsrv pull --from http://orthanc:8042/dicom-web --user anna --data data
    streamsrv pull --from https://old.example/v2 --token-file old --query 'StudyDate=2026-' \\
      --to https://new.example/v2 --to-token-file new

Repeat the command to go on, or to bring new instances. The exit code is 0 if every instance is there,
1 if one has failed, which is named.
"""


def add_pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    url = "the base URL of the server to read"
    add("--from", dest="source", metavar="URL", type=service_url, required=True, help=url)
    add_config_argument(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", metavar="DIR", help="the folder of a store, also beside its server")
    to = "the base URL of a server to store to"
    where.add_argument("--to", dest="target", metavar="URL", type=service_url, help=to)
    add("--query", default="", help="a search: attributes with values, joined by & [default: everything]")
    add("--run", metavar="FILE", type=Path, help="the memory of the run; default: see the manual")
    add("--every-instance", action="store_true", help="compare lists of instances, not only their numbers")
    add("--again", action="store_true", help="bring all instances again, also those that are there")
    add("--parallel", metavar="N", type=int, default=2, help="studies at once (2)")
    add("--retries", metavar="N", type=int, default=8, help="further attempts at a busy service (8)")
    add("--timeout", metavar="S", type=float, default=300.0, help="seconds of silence before giving up (300)")
    add("--quiet", action="store_true", help="no progress, and no summary unless something failed")
    add("--json", action="store_true", help="one JSON document on standard output instead of text")
    credentials.add_arguments(parser, title="credentials for --from")
    credentials.add_arguments(parser, "to-", "credentials for --to")


def run_pull(args: argparse.Namespace) -> int:
    """Raises SettingsError for a wrong query, StreamsrvError if a service fails as a whole."""
    if args.parallel < 1:
        raise SettingsError("--parallel is at least 1")
    parameters = query_pairs(args.query)
    login = credentials.credentials_of(args, args.source)
    with contextlib.ExitStack() as held:
        remote = RemoteInstances(args.source, timeout=args.timeout, retries=args.retries, login=login)
        held.callback(remote.close)
        destination, folder = destination_of(args, held)
        target = args.target or str(Path(args.data).resolve())
        file = args.run or folder / table_name(args.source, args.target or "")
        table = held.enter_context(contextlib.closing(PulledInstances(file, args.source, target)))
        report = RunReport(COUNTED, aloud=not args.json)
        changes = RemoteChanges(remote, args.source)
        mirror = Mirror(RemoteStudies(remote), changes, destination, table, report)
        with ProgressLine(sys.stderr, shown=not args.quiet) as line:
            mirror.run(parameters, args.parallel, line, every_instance=args.every_instance, again=args.again)
    return report.print(as_json=args.json, quiet=args.quiet)


def destination_of(args: argparse.Namespace, held: contextlib.ExitStack) -> tuple[Destination, Path]:
    """The destination, and the folder for the table of the run. `held` closes it."""
    if args.target:
        login = credentials.credentials_of(args, args.target, "to-")
        return ServiceDestination(
            args.target, retries=args.retries, timeout=args.timeout, login=login
        ), Path()
    reason = refuse_platform()
    if reason:
        raise SettingsError(f"--data: {reason}")
    linux_only: Any = importlib.import_module("streamsrv.tools.incoming.store_landing")
    opened: tuple[Destination, Path] = linux_only.opened(settings_of(args), "pull", held)
    return opened


def table_name(source: str, target: str) -> str:
    digest = hashlib.sha256(f"{source} {target}".encode()).hexdigest()[:8]
    return f"pull-{safe_name(urlsplit(source).hostname or '')}-{digest}.sqlite"


VERBS = {"pull": (add_pull_arguments, run_pull)}
