"""The verbs that open a store: `check`, `reindex`, `compact`, `info`. They run on Linux only. VERBS has the
arguments and the function of each.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from streamsrv.config import SettingsError, add_config_argument, settings_of
from streamsrv.errors import StreamsrvError
from streamsrv.ingest.derivation import ReaderPool, derive
from streamsrv.options import check_store, read_limits, store_options
from streamsrv.settings import Settings
from streamsrv.store import NewInstance, Record, Store
from streamsrv.store.maintenance.check import Finding, Severity, check
from streamsrv.store.maintenance.compact import compact
from streamsrv.store.maintenance.info import info
from streamsrv.store.maintenance.reindex import reindex
from streamsrv.store.maintenance.scrub import Pace, check_segments

# Arguments


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--data", metavar="DIR", help="the folder of the store; default: the setting `data`")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output instead of text"
    )


def add_index_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index", metavar="URL", help="the database of the index; default: the setting `index`"
    )


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    add_store_arguments(parser)
    add_index_argument(parser)


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    add_info_arguments(parser)
    parser.add_argument(
        "--segments",
        dest="only_segments",
        action="store_true",
        help="only compare the bytes of all segments with their digests, past the page cache; the server "
        "then refuses to serve damaged instances",
    )
    parser.add_argument(
        "--rate",
        type=byte_count,
        default=0,
        metavar="BYTES",
        help="with --segments: the highest read rate a second, such as 100M [default: no limit]",
    )


def byte_count(text: str) -> int:
    """Reads `100M` (K, M and G are powers of 1,024); raises ValueError."""
    unit = text[-1:].upper()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(unit)
    number = int(text[:-1]) * factor if factor else int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def add_compact_arguments(parser: argparse.ArgumentParser) -> None:
    add_info_arguments(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="compact every segment and the index, so that no deleted byte stays on the disk",
    )


# Verbs


def run_check(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.rate and not args.only_segments:
        raise SettingsError("--rate can only be given with --segments")
    if args.only_segments:
        read_only = not settings.segments and not os.access(settings.data, os.W_OK)
        with open_store(settings, read_only=read_only) as store:
            scrubbed = of_objects("scrub").check_segments if settings.segments else check_segments
            return print_findings(args, scrubbed(store, Pace(args.rate)), {})
    with open_store(settings, read_only=True) as store:
        checked = of_objects("check").check if settings.segments else check
        return print_findings(args, checked(store, deriver(settings)), {})


def run_reindex(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    check_store(settings)
    folder, derived = Path(settings.data), deriver(settings)
    if settings.segments:
        report = of_objects("reindex").reindex(folder, store_options(settings), derived)
    elif settings.index:
        raise SettingsError("reindex makes the index in the folder of a store, and `index` names a database")
    else:
        report = reindex(folder, derived)
    counts = {"instances": report.instances, "segments": report.segments}
    return print_findings(args, report.findings, counts)


def run_compact(args: argparse.Namespace) -> int:
    """Raises StreamsrvError if deleted bytes may still be on the disk after --all."""
    settings = settings_of(args)
    with open_store(settings, read_only=False) as store:
        if settings.segments:
            done = of_objects("compact").compact(store, args.everything, settings.segment_size)
            print_report(args, asdict(done))
            return 0
        report = compact(store, everything=args.everything)
        kept = [path.name for path in (store.layout.lost_and_found, store.layout.old_index) if path.exists()]
    print_report(args, asdict(report))
    if args.everything and kept:
        raise StreamsrvError(f"deleted bytes may remain in {' and '.join(kept)}: remove it by hand")
    if not args.everything or (report.index_rewritten and not report.busy):
        return 0
    reason = "the index was not rewritten, because another process has the store open: stop the server first"
    raise StreamsrvError(reason if not report.index_rewritten else "some segments were being written to")


def run_info(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    with open_store(settings, read_only=True) as store:
        report = of_objects("info").info(store) if settings.segments else info(store)
    print_report(args, report)
    return 1 if report["problems"] or report["damaged"] else 0


def open_store(settings: Settings, *, read_only: bool) -> Store:
    """Opens a store, but never creates one: a misspelt folder or bucket would look like an empty store."""
    folder = Path(settings.data)
    if not settings.segments and not (folder / "store.toml").exists():
        raise StreamsrvError(f"{folder} is not the folder of a store: it has no store.toml")
    options = replace(store_options(settings), existing=True)
    return Store.open(folder, options, read_only=read_only)


def of_objects(name: str) -> Any:
    """The module for segments in a bucket. Raises StreamsrvError if its packages are not installed."""
    try:
        return import_module(f"streamsrv.store.maintenance.objects.{name}")
    except ModuleNotFoundError as error:
        raise StreamsrvError(
            f"segments in a bucket need the package {error.name}: install streamsrv[cluster]"
        ) from error


def deriver(settings: Settings, readers: ReaderPool | None = None) -> Callable[[Record], NewInstance]:
    """Returns a function that derives the row of a record with the server's thresholds. It has no limits of
    size, because a record may have been stored under other limits. With `readers` it is faster for instances
    of one series after the other, in any thread."""
    unlimited = 1 << 62
    limits = replace(read_limits(settings), max_attributes=0, max_metadata=unlimited, max_elements=unlimited)
    if readers is None:
        return lambda record: derive(record, limits)[1]

    def derived(record: Record) -> NewInstance:
        reader = readers.acquire()
        try:
            return derive(record, limits, reader)[1]
        finally:
            readers.release(reader)

    return derived


def print_report(args: argparse.Namespace, values: Mapping[str, Any]) -> None:
    """Prints a report as text, one value a line, or as one JSON document."""
    if args.json:
        print(json.dumps(values, default=str))
        return
    for name, value in flattened(values):
        print(f"{name}: {value}")


def print_findings(
    args: argparse.Namespace, findings: Iterable[Finding], counts: Mapping[str, object]
) -> int:
    """Prints each finding when it is found, then the result; returns the exit code."""
    errors, kept = 0, []
    for finding in findings:
        errors += finding.severity is Severity.ERROR
        if args.json:
            kept.append(asdict(finding))
        else:
            print(finding)
    if args.json:
        print(json.dumps({"ok": not errors, "errors": errors, **counts, "findings": kept}, default=str))
    else:
        print_report(args, counts)
        print(f"{errors} errors" if errors else "all is well")
    return 1 if errors else 0


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        lines += flattened(value, f"{label} ") if isinstance(value, dict) else [(label, value)]
    return lines


VERBS = {
    "check": (add_check_arguments, run_check),
    "reindex": (add_info_arguments, run_reindex),
    "compact": (add_compact_arguments, run_compact),
    "info": (add_info_arguments, run_info),
}
