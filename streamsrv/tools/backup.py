"""The verbs `backup` and `restore`: a store in another folder, and a store from it. The work is in
store/maintenance/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from streamsrv.config import SettingsError, settings_of
from streamsrv.store.maintenance.backup import back_up
from streamsrv.store.maintenance.restore import restore, verify_backup
from streamsrv.store.maintenance.scrub import Pace
from streamsrv.tools import beside
from streamsrv.tools.ownership import hand_over
from streamsrv.tools.progress import ProgressLine
from streamsrv.verbs import (
    add_index_argument,
    add_store_arguments,
    byte_count,
    deriver,
    open_store,
    print_findings,
)

BUCKET = (
    "backup copies segments in a folder, and `segments` names a bucket: first back up the database with "
    "pg_dump or pg_basebackup, then copy or replicate the bucket with its own tools"
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_store_arguments(parser)
    parser.add_argument(
        "--rate",
        type=byte_count,
        default=0,
        metavar="BYTES",
        help="the highest read rate a second, such as 100M [default: no limit]",
    )


def add_backup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DEST", type=Path, help="the folder of the backup")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="copy nothing: compare every byte of the backup with its digests; needs no store",
    )
    add_index_argument(parser)
    _add_arguments(parser)


def add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DEST", type=Path, help="the folder of the backup")
    _add_arguments(parser)


def run_backup(args: argparse.Namespace) -> int:
    if args.verify and args.data is not None:
        raise SettingsError("--verify reads the backup alone: leave out --data")
    pace = Pace(args.rate)
    with ProgressLine(sys.stderr) as progress:
        if args.verify:
            report = verify_backup(args.folder, pace.take, progress.draw)
            report.findings += beside.faults(args.folder)
        else:
            settings = settings_of(args)
            if settings.segments:
                raise SettingsError(BUCKET)
            with open_store(settings, read_only=True) as store:
                report = back_up(store, args.folder, pace.take, progress.draw)
            report.findings += beside.save(settings, args.folder)
    return print_findings(args, report.findings, report.counts())


def run_restore(args: argparse.Namespace) -> int:
    """Raises SettingsError without --data: the folder of the settings may be that of a server."""
    if args.data is None:
        raise SettingsError("restore needs --data, the new folder of the store")
    settings = settings_of(args)
    with ProgressLine(sys.stderr) as progress:
        report = restore(
            args.folder, Path(settings.data), deriver(settings), Pace(args.rate).take, progress.draw
        )
    report.findings += beside.bring_back(args.folder, settings)
    hand_over(Path(settings.data), Path(settings.data))
    counts = {"instances": report.instances, "segments": report.segments}
    return print_findings(args, report.findings, counts)


VERBS = {
    "backup": (add_backup_arguments, run_backup),
    "restore": (add_restore_arguments, run_restore),
}
