"""The verb `import`: copies DICOM files of a folder into the folder of a store, without HTTP.

Strategy: each file goes into a segment in pieces, and a batch of files is one transaction with one sync. The
table of the run (imported.py) makes a run that is repeated go on.

Rules
- The source is only read, by root also if the owner of the store may not.
- A file that is stored already is a success. A refused file is named with the reason, and others follow.
- The files of a batch and one piece of a file are in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from streamsrv.client.files import FoundFile, examine, files_under
from streamsrv.client.verb import Verdict
from streamsrv.config import SettingsError, add_config_argument, settings_of
from streamsrv.errors import InstanceRefused, NotDicom, StreamsrvError
from streamsrv.tools.file_names import safe_name
from streamsrv.tools.incoming.imported import ImportedFiles
from streamsrv.tools.incoming.landing import Landing
from streamsrv.tools.incoming.orthanc_storage import Attachment, AttachmentDamaged, attachments
from streamsrv.tools.incoming.run_report import FAILED, RunReport
from streamsrv.tools.incoming.store_landing import opened
from streamsrv.tools.ownership import as_root
from streamsrv.tools.progress import ProgressLine

EXAMPLE = """\
Examples: the files of a folder; the storage folder of an Orthanc that is stopped.

    streamsrv import folder ~/archive --data data
    streamsrv import orthanc /var/lib/orthanc/db-v6 --data data

Repeat the command to go on. The exit code is 0 if every DICOM file is in the store, 1 if one was refused,
which is named.
"""
PIECE = 1 << 20
EARLIER, SKIPPED = "done before", Verdict.SKIPPED.value
COUNTED = (Verdict.STORED.value, Verdict.ALREADY.value, EARLIER, SKIPPED, FAILED)

Item = TypeVar("Item")


class SourceFile(NamedTuple):
    """`attachment` or `found` says how it is read."""

    path: Path
    attachment: Attachment | None = None
    found: FoundFile | None = None

    def pieces(self) -> Iterator[bytes]:
        """Raises OSError, AttachmentDamaged."""
        with as_root():
            file = self.path.open("rb", buffering=0)
        with file:
            if self.attachment is not None:
                yield from self.attachment.pieces(file)
                return
            if self.found is not None and self.found.head:
                yield self.found.head
            while piece := file.read(PIECE):
                yield piece


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("kind", choices=("folder", "orthanc"), help="any files, or the storage folder of Orthanc")
    add("source", metavar="DIR", type=Path, help="the folder of the files, which is only read")
    add_config_argument(parser)
    add("--data", metavar="DIR", help="the folder of the store, also beside its server", required=True)
    add("--add-meta", action="store_true", help="also datasets without preamble or file meta information")
    add("--orthanc-index", metavar="FILE", type=Path, help="the index of Orthanc [default: DIR/index]")
    add("--run", metavar="FILE", type=Path, help="the memory of the run; default: see the manual")
    add("--quiet", action="store_true", help="no progress, and no summary unless something failed")
    add("--json", action="store_true", help="one JSON document on standard output instead of text")


def run_import(args: argparse.Namespace) -> int:
    """Raises SettingsError for arguments of the other kind, StreamsrvError if there is no folder."""
    if args.add_meta and args.kind == "orthanc":
        raise SettingsError("--add-meta belongs to `import folder`")
    if args.orthanc_index and args.kind == "folder":
        raise SettingsError("--orthanc-index belongs to `import orthanc`")
    if not args.source.is_dir():
        raise StreamsrvError(f"{args.source} is no folder")
    report = RunReport(COUNTED, aloud=not args.json)
    with contextlib.ExitStack() as held:
        destination, folder = opened(settings_of(args), "import", held)
        landing = held.enter_context(contextlib.closing(destination.landing()))
        file = args.run or folder / table_name(args.source)
        table = held.enter_context(contextlib.closing(ImportedFiles(file)))
        line = held.enter_context(ProgressLine(sys.stderr, shown=not args.quiet))
        run = FilesImport(landing, table, report, line)
        if args.kind == "orthanc":
            run.take_all(orthanc_files(args.source, args.orthanc_index))
        else:
            run.take_all(folder_files(args.source, report, add_meta=args.add_meta, quiet=args.quiet))
    if report.is_empty():
        raise StreamsrvError(f"{args.source} has no DICOM file")
    return report.print(as_json=args.json, quiet=args.quiet)


def table_name(source: Path) -> str:
    digest = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]
    return f"import-{safe_name(source.resolve().name)}-{digest}.sqlite"


def orthanc_files(folder: Path, index: Path | None) -> Iterator[SourceFile]:
    for attachment in rooted(attachments(folder, index)):
        yield SourceFile(attachment.path, attachment=attachment)


def folder_files(folder: Path, report: RunReport, *, add_meta: bool, quiet: bool) -> Iterator[SourceFile]:
    """Files that are no DICOM files are skipped and named."""
    for path, _ in rooted(files_under([folder])):
        try:
            with as_root():
                found = examine(path, add_meta=add_meta)
        except NotDicom as fault:
            report.add(SKIPPED)
            if not quiet:
                print(f"skipped {path}: {fault.detail}", file=sys.stderr)
        except (InstanceRefused, OSError) as fault:
            report.fail(f"{path}: {getattr(fault, 'detail', None) or getattr(fault, 'strerror', fault)}")
        else:
            yield SourceFile(path, found=found)


def rooted(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each of which is found by root."""
    while True:
        with as_root():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


class FilesImport:
    """One run."""

    def __init__(self, landing: Landing, table: ImportedFiles, report: RunReport, line: ProgressLine) -> None:
        self._landing = landing
        self._table = table
        self._report = report
        self._line = line
        self._waiting: dict[str, tuple[Path, os.stat_result]] = {}  # of the batch

    def take_all(self, files: Iterator[SourceFile]) -> None:
        """Raises StreamsrvError if nothing more can be stored."""
        for file in files:
            try:
                self._take(file)
            except (OSError, AttachmentDamaged) as fault:
                self._report.fail(f"{file.path}: {getattr(fault, 'strerror', None) or fault}")
            if self._landing.is_full:
                self._flush()
            self._line.show(self._report.line)
        self._flush()

    def _take(self, file: SourceFile) -> None:
        with as_root():
            state = file.path.stat()
        if self._table.has(file.path, state):
            self._report.add(EARLIER)
            return
        label = str(len(self._waiting))
        length = self._landing.take(label, file.pieces())
        self._waiting[label] = file.path, state
        self._report.count_bytes(length)

    def _flush(self) -> None:
        done = []
        for landed in self._landing.flush():
            path, state = self._waiting[landed.label]
            if landed.verdict is Verdict.FAILED:
                self._report.fail(f"{path}: {landed.text}")
            else:
                self._report.add(landed.verdict.value)
                done.append((path, state))
        self._table.add(done)
        self._waiting.clear()


VERBS = {"import": (add_import_arguments, run_import)}
