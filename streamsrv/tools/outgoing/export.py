"""The verb `export`: stored instances as files, from the folder of a store or from a service.

Strategy: a search names the instances, and each of `--parallel` threads copies the next one. A copy gets its
name when it is complete. The table of the files (exported.py) makes a run that is repeated go on.

Rules
- The bytes are those that were stored. An instance that the service can only send otherwise has failed.
- One page of search results and one piece of a file for each thread are in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from streamsrv.client import credentials
from streamsrv.client.connection import ReplyError, ServiceRefused
from streamsrv.client.credentials import service_url
from streamsrv.client.downloads import DownloadFailed, InstanceGone, RemoteInstances
from streamsrv.config import SettingsError, add_config_argument, refuse_platform, settings_of
from streamsrv.dicom.instance import JsonDataset
from streamsrv.errors import StoreError, StreamsrvError
from streamsrv.query.attributes import QUERY_ATTRIBUTES
from streamsrv.tools.file_names import FilePattern
from streamsrv.tools.outgoing.deidentified import REMARKS, CannotDeidentify, Deidentifier
from streamsrv.tools.outgoing.dicomdir import NoRecord, records_of
from streamsrv.tools.outgoing.exported import ExportedFile, ExportedFiles, ExportItem, Fetched
from streamsrv.tools.outgoing.private_folder import folder_of, private_secret, require_none
from streamsrv.tools.outgoing.profile import Profile, profile_of, table_of_actions
from streamsrv.tools.progress import ProgressLine
from streamsrv.tools.search_words import query_pairs

EXAMPLE = """\
Examples: all CT of 2024 from a store; everything from a server, by patient and day.

    streamsrv export /mnt/out --data data --query 'StudyDate=2024-&Modality=CT'
    streamsrv export /mnt/out --url https://pacs.example/v2 --token-file key \\
      --layout '{PatientID}/{StudyDate}/{SOPInstanceUID}.dcm'

The exit code is 0 if every instance is there, 1 if one is missing, which is named.
"""
LAYOUT = "{PatientID}/{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm"
# Keyword -> tag of the attributes that a path may have.
ATTRIBUTES = {row.keyword: row.tag for row in QUERY_ATTRIBUTES if "." not in row.tag and row.vr != "SQ"}
IDENTITY = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
SYNTAX = "00083002"  # Available Transfer Syntax UID
LOOK_AT = "look-at.csv"
MOST_FAULTS = 1_000  # that are kept for --json


class InstanceSource(Protocol):
    """StoreSource, or ServiceSource."""

    def items(self) -> Iterator[ExportItem]: ...

    def fetch(
        self, item: ExportItem, version: str, begin: Callable[[], None], write: Callable[[bytes], None]
    ) -> Fetched | None: ...

    def close(self) -> None: ...


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="the folder of the files; it may exist")
    add_config_argument(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", metavar="DIR", help="the folder of the store, also beside its server")
    where.add_argument("--url", type=service_url, help="base URL with version: http://127.0.0.1:8943/v2")
    add("--query", default="", help="a search: attributes with values, joined by & [default: everything]")
    add("--layout", default=None, help=f"the path of each file [default: {LAYOUT}]")
    shown = "`basic`, with options of PS3.15 Annex E behind commas, such as basic,retain-dates"
    add("--deidentify", metavar="PROFILE", help=shown)
    words = "the words that stay in descriptions, with the option clean-descriptors"
    add("--keep-words", metavar="FILE", type=Path, help=words)
    add("--original-uids", action="store_true", help="with --deidentify: a list of them in OUT.private")
    add(
        "--dicomdir",
        action="store_true",
        help="names of DICOM media (DICOM/D0000000/F0000000), and a DICOMDIR",
    )
    add("--parallel", metavar="N", type=int, default=2, help="files at once (2)")
    add("--retries", metavar="N", type=int, default=8, help="further attempts at a busy service (8)")
    add("--timeout", metavar="S", type=float, default=300.0, help="seconds of silence before giving up (300)")
    add("--quiet", action="store_true", help="no progress, and no summary unless something failed")
    add("--json", action="store_true", help="one JSON document on standard output instead of text")
    credentials.add_arguments(parser)


def run_export(args: argparse.Namespace) -> int:
    """Raises SettingsError for a wrong layout or query, StreamsrvError if the search fails."""
    if args.dicomdir and args.layout is not None:
        raise SettingsError("--dicomdir has a layout of its own: leave out --layout")
    identity = set(IDENTITY) if args.deidentify else ATTRIBUTES
    pattern = FilePattern(args.layout or LAYOUT, identity)
    if args.original_uids and not args.deidentify:
        raise SettingsError("--original-uids can only be given with --deidentify")
    if args.keep_words and not args.deidentify:
        raise SettingsError("--keep-words can only be given with --deidentify")
    profile = profile_of(args.deidentify, args.keep_words) if args.deidentify else None
    if args.parallel < 1:
        raise SettingsError("--parallel is at least 1")
    parameters = query_pairs(args.query)
    tags = {ATTRIBUTES[keyword] for keyword in pattern.keywords}
    source = source_of(args, parameters, tags)
    try:
        args.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        report = None if args.json else print_fault
        export = Export(args.out, source, pattern, report=report, has_directory=args.dicomdir)
        if profile is not None:
            export.deidentify(profile, original_uids=args.original_uids)
        else:
            require_none(args.out)
        with ProgressLine(sys.stderr, shown=not args.quiet) as line:
            export.run(args.parallel, line)
    finally:
        source.close()
    counts = export.counts
    if args.json:
        print(json.dumps({"ok": not export.failed, **counts, **export.remarks, "failures": export.faults}))
    elif not args.quiet or export.failed:
        print(", ".join(f"{count} {name}" for name, count in counts.items()))
        if args.deidentify:
            print(
                "the pixels are as they were: "
                + ", ".join(f"{n} {name}" for name, n in export.remarks.items())
            )
    if export.look_at:
        print(
            f"warning: files whose pixels may show a name: {export.look_at}. Look at them before you give "
            f"them away. {folder_of(args.out) / LOOK_AT} lists them",
            file=sys.stderr,
        )
    return 1 if export.failed else 0


def source_of(
    args: argparse.Namespace, parameters: Sequence[tuple[str, str]], tags: Collection[str]
) -> InstanceSource:
    if args.url:
        login = credentials.credentials_of(args, args.url)
        remote = RemoteInstances(args.url, timeout=args.timeout, retries=args.retries, login=login)
        return ServiceSource(remote, parameters, tags)
    reason = refuse_platform()
    if reason:
        raise SettingsError(f"--data: {reason}")
    linux_only: Any = importlib.import_module("streamsrv.tools.outgoing.store_source")
    source: InstanceSource = linux_only.open_source(settings_of(args), parameters, tags)
    return source


def print_fault(text: str) -> None:
    print(f"failed  {text}")


class ServiceSource:
    """The instances that a service finds."""

    def __init__(
        self, remote: RemoteInstances, parameters: Sequence[tuple[str, str]], tags: Collection[str]
    ) -> None:
        self._remote = remote
        self._parameters = [*parameters, ("includefield", ",".join(sorted({*tags, SYNTAX})))]

    def close(self) -> None:
        self._remote.close()

    def items(self) -> Iterator[ExportItem]:
        try:
            for found in self._remote.search(self._parameters):
                study, series, uid = (value_of(found, tag) for tag in ("0020000D", "0020000E", "00080018"))
                if not (study and series and uid):
                    raise StreamsrvError("a result of the search has no study, series or SOP Instance UID")
                yield ExportItem(study, series, uid, value_of(found, SYNTAX), found)
        except (OSError, ReplyError, DownloadFailed, InstanceGone) as fault:
            raise StreamsrvError(f"the search failed: {fault}") from fault

    def fetch(
        self, item: ExportItem, version: str, begin: Callable[[], None], write: Callable[[bytes], None]
    ) -> Fetched | None:
        try:
            found = self._remote.fetch(item.key, item.syntax, version, begin, write)
        except InstanceGone as fault:
            raise LookupError(str(fault)) from fault
        except (ConnectionError, TimeoutError) as fault:
            raise StreamsrvError(
                f"the service does not answer: {fault}: repeat the command to go on"
            ) from fault
        return Fetched(*found) if found else None


def value_of(attributes: JsonDataset, tag: str) -> str:
    """The values of an attribute as text. A person name is its alphabetic form, or another that it has."""
    element: Any = attributes.get(tag, {})
    values = []
    for value in element.get("Value", ()):
        if isinstance(value, dict):
            value = next(filter(None, map(value.get, ("Alphabetic", "Ideographic", "Phonetic"))), "")
        values.append(str(value))
    return "-".join(values)


class PartialFile:
    """One copy in progress: a file without its name yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("wb")
        self.begin()

    def begin(self) -> None:
        """Also again, after a lost connection."""
        self._stream.seek(0)
        self._stream.truncate()
        self.length, self.sha256 = 0, hashlib.sha256()

    def write(self, piece: bytes) -> None:
        self._stream.write(piece)
        self.sha256.update(piece)
        self.length += len(piece)

    def close(self) -> None:
        self._stream.close()


class Export:
    """One run. `report` is called with each failure."""

    def __init__(
        self,
        out: Path,
        source: InstanceSource,
        pattern: FilePattern,
        *,
        report: Callable[[str], None] | None = None,
        has_directory: bool = False,
    ) -> None:
        self._out = out
        self._has_directory = has_directory
        self._source = source
        self._pattern = pattern
        self._report = report
        self._lock = threading.Lock()
        self._stopped: BaseException | None = None
        self.counts = dict.fromkeys(("exported", "unchanged", "gone", "failed"), 0)
        self.remarks: dict[str, int] = {}
        self.bytes = 0
        self.faults: list[str] = []
        self._private: Path | None = None
        self._deidentifier: Deidentifier | None = None
        self._has_originals = False
        self.look_at = 0  # files whose pixels may show a name

    def deidentify(self, profile: Profile, *, original_uids: bool) -> None:
        """The files are to be de-identified. Raises SettingsError."""
        table_of_actions()
        secret = private_secret(self._out, profile.texts)
        self._private = folder_of(self._out)
        self._deidentifier = Deidentifier(secret, profile)
        self._has_originals = original_uids
        self.remarks = dict.fromkeys(REMARKS, 0)

    @property
    def failed(self) -> int:
        return self.counts["failed"]

    def run(self, parallel: int, line: ProgressLine) -> None:
        """Raises StreamsrvError if nothing more can be exported."""
        uid_of = self._deidentifier.uid if self._deidentifier else str
        files = ExportedFiles(
            self._out, has_directory=self._has_directory, private=self._private, uid_of=uid_of
        )
        items, lock = self._source.items(), threading.Lock()

        def work(number: int) -> None:
            part = (self._private or self._out) / f".part-{number}"
            try:
                while self._stopped is None:
                    with lock:  # a generator runs in one thread at a time
                        item = next(items, None)
                    if item is None:
                        break
                    self._take(item, files, part)
                    if number == 0:
                        line.show(self._progress)
            except BaseException as fault:
                self._stopped = fault
                raise
            finally:
                part.unlink(missing_ok=True)

        try:
            with ThreadPoolExecutor(parallel) as threads:
                for worker in [threads.submit(work, number) for number in range(parallel)]:
                    worker.result()
            files.finish()
            if self._private:
                self.look_at = files.write_remarks(self._private / LOOK_AT, REMARKS[:-1])
            if self._has_originals and self._private:
                files.write_originals(self._private / "originals.csv")
        except ServiceRefused as fault:
            raise StreamsrvError(str(fault)) from fault
        except BaseException as fault:
            self._stopped = fault
            raise
        finally:
            files.close()

    def _progress(self) -> str:
        done, unchanged, *_, failed = self.counts.values()
        return f"{done:,} exported  {self.bytes / 1e6:,.0f} MB  {unchanged:,} unchanged  {failed:,} failed"

    def _take(self, item: ExportItem, files: ExportedFiles, part: Path) -> None:
        file = files.place(item, self._pattern.path(self._values(item)))
        version = file.version if files.is_there(file) else ""
        target = PartialFile(part)
        try:
            fetched = self._source.fetch(item, version, target.begin, target.write)
        except LookupError:
            self._count("gone")
            return
        except (DownloadFailed, ReplyError, StoreError) as fault:
            self._count("failed", f"{' '.join(item.key)}: {getattr(fault, 'detail', fault)}")
            return
        finally:
            target.close()
        path = self._out / file.path
        if fetched is None:
            self._count("unchanged")
            if self._has_directory and not files.has_records(item):
                self._list(item, file, path, files)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remark = ""
        if self._deidentifier is not None:
            clean = PartialFile(self._out / part.name)
            try:
                remark = self._deidentifier.copy(part, clean.write)
            except CannotDeidentify as fault:
                clean.close()  # Windows does not remove an open file
                clean.path.unlink()
                self._count("failed", f"{' '.join(item.key)}: {fault}")
                return
            finally:
                clean.close()
            part, target = clean.path, clean
        if self._has_directory:
            self._list(item, file, part, files)
        os.replace(part, path)
        files.written(item, fetched, target.length, target.sha256.hexdigest(), remark)
        self._count("exported", size=target.length, remark=remark)

    def _list(self, item: ExportItem, file: ExportedFile, source: Path, files: ExportedFiles) -> None:
        """In the DICOMDIR."""
        try:
            files.add_records(item, records_of(source, file.path, item.study))
        except NoRecord as fault:
            self._count("failed", f"{' '.join(item.key)}: {fault}")

    def _values(self, item: ExportItem) -> dict[str, str]:
        found = {
            keyword: value_of(item.attributes, ATTRIBUTES[keyword]) for keyword in self._pattern.keywords
        }
        found |= dict(zip(IDENTITY[1:], item.key, strict=True))
        if self._deidentifier is not None:
            found |= {name: self._deidentifier.uid(found[name]) for name in IDENTITY[1:]}
            found["PatientID"] = self._deidentifier.patient(found.get("PatientID", ""), item.study)
        return found

    def _count(self, name: str, fault: str = "", size: int = 0, remark: str = "") -> None:
        with self._lock:
            self.counts[name] += 1
            if remark:
                self.remarks[remark] += 1
            self.bytes += size
            if fault and self._report:
                self._report(fault)
            elif fault and len(self.faults) < MOST_FAULTS:
                self.faults.append(fault)


VERBS = {"export": (add_export_arguments, run_export)}
