"""The verb `audit`: prints the entries of an audit trail, or verifies it, beside a running server."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import secrets
import time
from datetime import datetime
from pathlib import Path

from streamsrv.audit.chain import ChainLink
from streamsrv.audit.entries import AuditEntry, Event, json_of
from streamsrv.audit.reading import entries_of, verify
from streamsrv.audit.trail import Trail
from streamsrv.config import SettingsError, add_config_argument, seconds_of, settings_of
from streamsrv.errors import StreamsrvError
from streamsrv.options import audit_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "action", nargs="?", choices=("print", "verify"), default="print", help="default: print"
    )
    parser.add_argument("--data", metavar="DIR", help="the folder of the store; default: the setting `data`")
    parser.add_argument(
        "--audit-folder", metavar="DIR", help="the folder of the trail; default: `audit` in the store"
    )
    printing = parser.add_argument_group("print", "one JSON object a line, oldest first")
    printing.add_argument("--user", metavar="U", help="only entries of this principal")
    printing.add_argument("--study", metavar="UID", help="only entries about this study")
    printing.add_argument(
        "--since",
        metavar="T",
        type=moment,
        default=0.0,
        help="only entries since this time: 2026-11-30, 2026-11-30T13:00:00Z, or an age such as 90m, 24h, 7d",
    )
    verifying = parser.add_argument_group("verify", "exit code 1 if the trail was changed")
    verifying.add_argument(
        "--anchor", metavar="N:CHAIN", help="the last entry of an earlier check: it must still be there"
    )
    verifying.add_argument("--json", action="store_true", help="one JSON document instead of text")


def moment(text: str) -> float:
    """Seconds since 1970 of a date, a time (without a zone: of this machine) or an age; raises ValueError."""
    age = seconds_of(text)
    if age is not None:
        return time.time() - age
    return datetime.fromisoformat(text).timestamp()


def run(args: argparse.Namespace) -> int:
    folder = audit_folder(settings_of(args))
    if not folder.is_dir():
        raise StreamsrvError(f"{folder} does not exist: there is no audit trail (setting audit)")
    return run_verify(args, folder) if args.action == "verify" else run_print(args, folder)


def run_print(args: argparse.Namespace, folder: Path) -> int:
    if args.anchor or args.json:
        raise SettingsError("--anchor and --json can only be given with verify")
    for values in entries_of(folder, args.user or "", args.study or "", args.since):
        print(json_of(values).decode())
    if os.access(folder, os.W_OK):
        with contextlib.suppress(OSError):
            record(folder, Event.LOG_USED)
    return 0


def record(folder: Path, event: Event, study: str = "", detail: str = "") -> None:
    """Adds an entry of the user of this process, if the folder has a trail. Raises OSError."""
    if not folder.is_dir():
        return
    with contextlib.closing(Trail(folder)) as trail:
        trail.append([entry_of_user(event, study, detail)])


def entry_of_user(event: Event, study: str = "", detail: str = "") -> AuditEntry:
    """An entry of the user of this process, now."""
    user = str(os.getuid())
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
    return AuditEntry(
        time.time(), event, user=f"os:{user}", study=study, detail=detail, request=secrets.token_hex(8)
    )


def run_verify(args: argparse.Namespace, folder: Path) -> int:
    if args.user or args.study or args.since:
        raise SettingsError("verify reads the whole trail: leave out --user, --study and --since")
    found = verify(folder, anchor_of(args.anchor) if args.anchor else None)
    last = f"{found.last.number}:{found.last.chain}"
    if args.json:
        counts = {"entries": found.entries, "files": found.files, "last": last}
        lists = {"problems": found.problems, "remarks": found.remarks}
        print(json.dumps({"ok": not found.problems, **counts, **lists}))
        return 1 if found.problems else 0
    for problem in found.problems:
        print(f"error: {problem}")
    for remark in found.remarks:
        print(f"note: {remark}")
    print(f"{found.entries} entries in {found.files} files; last: {last}")
    print(f"{len(found.problems)} errors" if found.problems else "the chain is whole")
    return 1 if found.problems else 0


def anchor_of(text: str) -> ChainLink:
    found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if found is None:
        raise SettingsError("--anchor: write the number and the chain of an entry, as verify prints them")
    return ChainLink(int(found[1]), found[2])


VERBS = {"audit": (add_arguments, run)}
