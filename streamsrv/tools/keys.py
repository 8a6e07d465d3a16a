"""The verb `key`: makes, lists, copies and revokes the keys of a store, beside a running server.

The key itself is printed once and kept nowhere: its digest is in DATA/access/, or in the database of a
cluster, where all nodes see it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from streamsrv.audit.entries import Event
from streamsrv.config import SettingsError, add_config_argument, seconds_of, settings_of
from streamsrv.errors import StreamsrvError
from streamsrv.options import audit_folder, store_options
from streamsrv.query.rules import Rule, rule_of
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.tools.audit import record
from streamsrv.tools.ownership import hand_over
from streamsrv.web.access.browser.shares import SHARE
from streamsrv.web.access.grants import (
    FOLDER,
    KEY,
    Grant,
    GrantDamaged,
    Grants,
    digest_of,
    grants_in,
    grants_of,
    is_name,
    new_key,
)
from streamsrv.web.access.principal import ALL_RIGHTS, Right, named_rights, rights_from

IDENTITY = "store.toml"


def add_place(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--data", metavar="DIR", help="the folder of the store; default: the setting `data`")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    added = verbs.add_parser("add", help="make a key and print it, and nothing else, on standard output")
    added.add_argument("name", metavar="NAME", help="its name, and the user of Basic authentication")
    _add_grant(added, required=True)
    changed = verbs.add_parser("change", help="change the rights, the rule or the end of a key")
    changed.add_argument("name", metavar="NAME")
    _add_grant(changed, required=False)
    changed.add_argument("--all-studies", action="store_true", help="all studies are visible again")
    listed = verbs.add_parser("list", help="print all keys without their secrets")
    listed.add_argument("--json", action="store_true", help="one JSON document instead of text")
    revoked = verbs.add_parser("revoke", help="end a key: the server refuses it within a second")
    revoked.add_argument("name", metavar="NAME")
    copied = verbs.add_parser("copy", help="bring the keys and share links of another folder to this store")
    copied.add_argument("name", metavar="FOLDER", help="the folder of a store, or of a backup")
    for each in (added, changed, listed, revoked, copied):
        add_place(each)


def _add_grant(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Without `required` the default of each is its present value."""
    parser.add_argument(
        "--rights",
        type=_rights,
        required=required,
        metavar="RIGHTS",
        help=f"a list with commas of {', '.join(named_rights(ALL_RIGHTS))}",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="such as InstitutionName=A*: only studies that meet all conditions are visible",
    )
    parser.add_argument(
        "--study", action="append", default=[], metavar="UID", help="only these studies are visible"
    )
    parser.add_argument(
        "--expires",
        type=end_of,
        metavar="TIME",
        help="a period such as 12h, 7d or 2w, a date such as 2030-12-31T18:00, or never",
    )


def _rights(text: str) -> Right:
    try:
        return rights_from(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def end_of(text: str) -> float:
    """Seconds of `time.time()`."""
    if text == "never":
        return math.inf
    period = seconds_of(text)
    try:
        end = _date(text) if period is None else time.time() + period
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a period such as 7d nor a date such as 2030-12-31"
        ) from None
    if end <= time.time():
        raise argparse.ArgumentTypeError(f"{text!r} is in the past")
    return end


def _date(text: str) -> float:
    """A date without a zone is local time."""
    return datetime.fromisoformat(text).timestamp()


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    actions: dict[str, Callable[[argparse.Namespace, Settings, Grants], int]] = {
        "add": run_add,
        "change": run_change,
        "list": run_list,
        "revoke": run_revoke,
        "copy": run_copy,
    }
    grants = grants_of(settings)
    with contextlib.closing(grants.documents):
        code = actions[args.action](args, settings, grants)
    if args.action != "list":
        record(audit_folder(settings), Event.RIGHTS_CHANGED, detail=f"key {args.action} {args.name}")
    return code


def run_add(args: argparse.Namespace, settings: Settings, grants: Grants) -> int:
    """Raises StreamsrvError if the folder is neither a store nor empty, or the name is taken."""
    if not is_name(args.name):
        raise SettingsError(
            f"{args.name!r} is no name for a key: a name has 1 to 64 printable characters, without a colon "
            "and without a blank at an end"
        )
    data = Path(settings.data)
    _require_store(settings, grants)
    key, rule = new_key(), _rule(args)
    until = math.inf if args.expires is None else args.expires
    with grants.changing() as change:
        if grants.named(KEY, args.name) is not None:
            raise StreamsrvError(f"there is a key {args.name!r} already: revoke it, or take another name")
        change.write(Grant(KEY, args.name, digest_of(key), args.rights, rule, time.time(), until))
        hand_over(data, grants.documents.folder)
    print(key)
    return 0


def _require_store(settings: Settings, grants: Grants) -> None:
    """Makes the store of a cluster, if there is none: a node may need a key before it starts. Raises
    StreamsrvError."""
    if not is_store(settings):
        raise StreamsrvError(f"{settings.data} is neither the folder of a store nor an empty folder")
    if not grants.documents.exist():
        with Store.open(Path(settings.data), store_options(settings)):
            pass


def _rule(args: argparse.Namespace) -> Rule | None:
    return rule_of(args.where, args.study) if args.where or args.study else None


def run_change(args: argparse.Namespace, settings: Settings, grants: Grants) -> int:
    rule = _rule(args)
    if args.all_studies and rule is not None:
        raise SettingsError("--all-studies excludes --where and --study")
    _existing(grants, args.name)
    with grants.changing() as change:
        grant = _existing(grants, args.name)
        if args.rights is not None:
            grant = grant._replace(rights=args.rights)
        if args.expires is not None:
            grant = grant._replace(until=args.expires)
        if rule is not None or args.all_studies:
            grant = grant._replace(rule=rule)
        change.write(grant)
        hand_over(Path(settings.data), grants.documents.folder)
    return 0


def _existing(grants: Grants, name: str) -> Grant:
    found = grants.named(KEY, name)
    if found is None:
        raise StreamsrvError(f"there is no key {name!r} in {grants.documents.where}")
    return found


def is_store(settings: Settings) -> bool:
    """Whether the settings name a cluster, or a folder that is a store or can become one when a server
    starts."""
    data = Path(settings.data)
    return bool(settings.segments) or (
        data.is_dir() and ((data / IDENTITY).exists() or {each.name for each in data.iterdir()} <= {FOLDER})
    )


def run_list(args: argparse.Namespace, settings: Settings, grants: Grants) -> int:
    """Exit code 1 if a file is damaged."""
    found = list(grants.all(KEY))
    known = sorted((each for each in found if isinstance(each, Grant)), key=lambda grant: grant.name)
    keys = [_described(each) for each in known]
    if args.json:
        print(json.dumps(keys))
    else:
        for key in keys:
            print("  ".join(f"{name} {value}" for name, value in key.items() if value is not None))
    damaged = [each.detail for each in found if isinstance(each, GrantDamaged)]
    for sentence in damaged:
        print(f"streamsrv: {sentence}", file=sys.stderr)
    return 1 if damaged else 0


def _described(grant: Grant) -> dict[str, Any]:
    return {
        "name": grant.name,
        "rights": ",".join(named_rights(grant.rights)),
        "rule": None if grant.rule is None else grant.rule.document,
        "created": _time(grant.created),
        "expires": _time(grant.until),
    }


def _time(seconds: float) -> str:
    return "never" if math.isinf(seconds) else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def run_revoke(args: argparse.Namespace, settings: Settings, grants: Grants) -> int:
    _existing(grants, args.name)
    with grants.changing() as change:
        change.remove(_existing(grants, args.name))
    return 0


def run_copy(args: argparse.Namespace, settings: Settings, grants: Grants) -> int:
    """Exit code 1 if a file is damaged: it is left out. Raises StreamsrvError, and copies nothing, if there
    is another key of a name."""
    source = grants_in(Path(args.name))
    found = [each for kind in (KEY, SHARE) for each in source.all(kind)]
    if not found:
        raise StreamsrvError(f"{source.documents.where} has no keys")
    _require_store(settings, grants)
    with grants.changing() as change:
        taken = {each.name: each.digest for each in grants.all(KEY) if isinstance(each, Grant)}
        new = [each for each in found if isinstance(each, Grant)]
        for each in new:
            if each.kind == KEY and taken.get(each.name, each.digest) != each.digest:
                raise StreamsrvError(
                    f"there is another key {each.name!r}: revoke it first. Nothing was copied"
                )
        for each in new:
            change.write(each)
        hand_over(Path(settings.data), grants.documents.folder)
    print(f"{len(new)} keys and share links were copied")
    for damaged in (each for each in found if isinstance(each, GrantDamaged)):
        print(f"streamsrv: {damaged.detail}", file=sys.stderr)
    return 0 if len(new) == len(found) else 1


VERBS = {"key": (add_arguments, run)}
