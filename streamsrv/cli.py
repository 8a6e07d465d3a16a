"""The command line: `streamsrv VERB`. VERBS is the whole of it; a verb is a row, with what it adds to the
parser and what it runs.

Exit codes: 0 all is well; 1 something is not, and was said; 2 the command line, a setting or the platform; 3
another process has the store.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from streamsrv import __version__, client, config, samples, supervisor
from streamsrv.config import SettingsError
from streamsrv.errors import StoreLocked, StreamsrvError
from streamsrv.guard import guarded
from streamsrv.ingest.derivation import derive
from streamsrv.server import read_limits, store_options
from streamsrv.settings import TABLES, Settings
from streamsrv.store import (
    Finding,
    NewInstance,
    Pace,
    Record,
    Severity,
    Store,
    check,
    check_segments,
    compact,
    info,
    reindex,
)

FAILED, USAGE, LOCKED = 1, 2, 3
# Verbs that map the index in their own process. The workers of `serve` are watched by its supervisor.
ADVANCED = "advanced"
MAPPING = ("check", "reindex", "compact", "info")


class Verb(NamedTuple):
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


# Arguments


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting is a flag, in the group of its table; advanced settings come last."""
    add_config_argument(parser)
    titles = {table: f"[{table}]" for table in TABLES} | {ADVANCED: "advanced, for measurements and tests"}
    groups = {key: parser.add_argument_group(title, TABLES.get(key)) for key, title in titles.items()}
    for name, field in config.FIELDS.items():
        row = field.metadata
        text = f"{row['reason']} [{row['unit']}; default: {shown(field.default)}]".replace("%", "%%")
        group = groups[ADVANCED if row["advanced"] else row["table"]]
        if isinstance(field.default, bool):
            group.add_argument(
                f"--{config.flag(name)}", action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            group.add_argument(f"--{config.flag(name)}", metavar=name.upper(), help=text)


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--data", metavar="DIR", help="the folder of the store; else the setting `data` counts"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output instead of text"
    )


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    add_store_arguments(parser)
    parser.add_argument(
        "--segments",
        action="store_true",
        help="only read the bytes of all segments, past the page cache, and compare them with their digests; "
        "damaged instances are registered, so that the server refuses to serve them",
    )
    parser.add_argument(
        "--rate",
        type=byte_count,
        default=0,
        metavar="BYTES",
        help="with --segments: read at most so much a second; K, M and G count in 1,024s [default: no limit]",
    )


def byte_count(text: str) -> int:
    """`100M` as a number of bytes. ValueError for anything else."""
    unit = text[-1:].upper()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(unit)
    number = int(text[:-1]) * factor if factor else int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def add_compact_arguments(parser: argparse.ArgumentParser) -> None:
    add_store_arguments(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        dest="everything",
        help="every segment and the index: nothing deleted stays on the disk; waits for requests in flight",
    )


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings in TOML; see conf/streamsrv.toml"
    )


def shown(value: object) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def settings_of(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Settings:
    flags = {name: value for name, value in vars(args).items() if name in config.FIELDS and value is not None}
    return config.load(args.config, environment, flags)


# Verbs


def run_serve(args: argparse.Namespace) -> int:
    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # its terminal may be closed already
            print(line, flush=True)

    return supervisor.serve(settings_of(args), say=say)


def run_check(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    if args.rate and not args.segments:
        return complain("--rate can only be given with --segments", USAGE)
    if args.segments:
        with open_store(settings, read_only=not os.access(settings.data, os.W_OK)) as store:
            return tell_findings(args, check_segments(store, Pace(args.rate)), {})
    with open_store(settings, read_only=True) as store:
        return tell_findings(args, check(store, deriver(settings)), {})


def run_reindex(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    report = reindex(Path(settings.data), deriver(settings))
    counts = {"instances": report.instances, "segments": report.segments}
    return tell_findings(args, report.findings, counts)


def run_compact(args: argparse.Namespace) -> int:
    """With --all it is not well if something deleted may still lie on the disk."""
    settings = settings_of(args)
    with open_store(settings, read_only=False) as store:
        report = compact(store, everything=args.everything)
        kept = [path.name for path in (store.layout.lost_and_found, store.layout.old_index) if path.exists()]
    tell(args, vars_of(report))
    if args.everything and kept:
        return complain(f"deleted bytes may remain in {' and '.join(kept)}: remove it by hand", FAILED)
    if not args.everything or (report.index_rewritten and not report.busy):
        return 0
    reason = "the index was not rewritten, because another process has the store open: stop the server first"
    return complain(reason if not report.index_rewritten else "some segments were being written to", FAILED)


def run_info(args: argparse.Namespace) -> int:
    with open_store(settings_of(args), read_only=True) as store:
        told = info(store)
    tell(args, told)
    return FAILED if told["problems"] or told["damaged"] else 0


def open_store(settings: Settings, *, read_only: bool) -> Store:
    """A verb never makes a store: a misspelt folder would look like an empty one."""
    folder = Path(settings.data)
    if not (folder / "store.toml").exists():
        raise StreamsrvError(f"{folder} is not the folder of a store: it has no store.toml")
    return Store.open(folder, store_options(settings), read_only=read_only)


def deriver(settings: Settings) -> Callable[[Record], NewInstance]:
    """Derives the row of a record, by the thresholds that the server reads with. Limits of size do not
    count: instances that were stored under other limits stay."""
    unlimited = 1 << 62
    limits = replace(read_limits(settings), max_attributes=0, max_metadata=unlimited, max_elements=unlimited)
    return lambda record: derive(record, limits)[1]


def tell(args: argparse.Namespace, values: Mapping[str, Any]) -> None:
    """A report as text, a line a value, or as one JSON document."""
    if args.json:
        print(json.dumps(values, default=str))
        return
    for name, value in flattened(values):
        print(f"{name}: {value}")


def tell_findings(args: argparse.Namespace, findings: Iterable[Finding], counts: Mapping[str, int]) -> int:
    """Findings as they come, then the verdict; returns the exit code."""
    errors, kept = 0, []
    for finding in findings:
        errors += finding.severity is Severity.ERROR
        if args.json:
            kept.append(vars_of(finding))
        else:
            print(finding)
    if args.json:
        print(json.dumps({"ok": not errors, "errors": errors, **counts, "findings": kept}, default=str))
    else:
        tell(args, counts)
        print(f"{errors} errors" if errors else "all is well")
    return FAILED if errors else 0


def vars_of(report: Any) -> dict[str, Any]:
    return {name: getattr(report, name) for name in report.__dataclass_fields__}


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in values.items():
        label = f"{prefix}{name}".replace("_", " ")
        lines += flattened(value, f"{label} ") if isinstance(value, dict) else [(label, value)]
    return lines


VERBS: dict[str, Verb] = {
    "serve": Verb(
        "serve a folder of studies over DICOMweb, in the foreground", add_serve_arguments, run_serve
    ),
    "store": Verb("send files and folders to a DICOMweb server", client.add_arguments, client.run),
    "samples": Verb("write the sample files of the tutorial", samples.add_arguments, samples.run),
    "check": Verb("verify every byte and every row of a store", add_check_arguments, run_check),
    "reindex": Verb("rebuild the index of a store from its segments", add_store_arguments, run_reindex),
    "compact": Verb("give back the space of what was deleted", add_compact_arguments, run_compact),
    "info": Verb("what a store is and holds", add_store_arguments, run_info),
}


def parser_of(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="streamsrv", description="A DICOMweb server that streams.")
    parser.add_argument("--version", action="version", version=f"streamsrv {__version__}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in verbs.items():
        verb.add_arguments(
            choices.add_parser(name, help=verb.summary, description=verb.summary.capitalize() + ".")
        )
    return parser


def entry() -> int:
    """The command `streamsrv`: as `main`, but a verb that maps the index runs in a guarded process."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in MAPPING:
        return main()
    sentence = (
        f"{verb} ended by SIGBUS: the disk could not give a page of the index, or is full. Run reindex; "
        "if that ends so too, move the folder index away and run it again"
    )
    return guarded(main, lambda: complain(sentence, FAILED))


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser_of(VERBS).parse_args(arguments)
    reason = config.refuse_platform()
    if reason:
        return complain(reason, USAGE)
    try:
        return VERBS[args.verb].run(args)
    except SettingsError as error:
        return complain(error.detail, USAGE)
    except StoreLocked as error:
        return complain(error.detail, LOCKED)
    except StreamsrvError as error:
        return complain(error.detail, FAILED)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:  # `| head` had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return complain(f"{args.verb} failed, {error.strerror or error}{where}", FAILED)


def complain(sentence: str, code: int) -> int:
    print(f"streamsrv: {sentence}", file=sys.stderr)
    return code
