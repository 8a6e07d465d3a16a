"""The verb `share`: makes, lists and ends share links of a store, beside a running server."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from streamsrv.audit.entries import Event
from streamsrv.config import SettingsError, settings_of
from streamsrv.errors import BadRequest, StreamsrvError
from streamsrv.options import audit_folder
from streamsrv.settings import Settings
from streamsrv.tools.audit import record
from streamsrv.tools.keys import add_place, end_of, is_store
from streamsrv.tools.ownership import hand_over
from streamsrv.web.access.browser.shares import Shares, share_url
from streamsrv.web.access.browser.sign_in import described
from streamsrv.web.access.grants import Grant, Grants, grants_of
from streamsrv.wire.resources import uid_of

USUAL_SECONDS = 7 * 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", metavar="STUDY", nargs="?", default="", help="Study Instance UID")
    add("--expires", type=end_of, metavar="TIME", help="a period such as 12h or 7d, or a date [default: 7d]")
    add("--pin", action="store_true", help="the link needs a PIN of six digits, printed on standard error")
    add("--url", metavar="URL", help="the address of the page; default: public_url, or host and port")
    add("--list", action="store_true", help="print the links of the study, or of all, and make none")
    add("--by", metavar="MAKER", default="", help="of --list and --revoke-all: the user that made the links")
    add("--revoke", metavar="ID", help="end the link with this id, as --list prints it")
    add("--revoke-all", action="store_true", help="end all links of the study, of --by MAKER, or of both")
    add("--json", action="store_true", help="one JSON document instead of text")
    add_place(parser)


def run(args: argparse.Namespace) -> int:
    """Raises SettingsError and StreamsrvError."""
    settings = settings_of(args)
    data = Path(settings.data)
    if not is_store(settings):
        raise StreamsrvError(f"{data} is neither the folder of a store nor an empty folder")
    grants = grants_of(settings)
    with contextlib.closing(grants.documents):
        return _run(args, settings, grants)


def _run(args: argparse.Namespace, settings: Settings, grants: Grants) -> int:
    shares = Shares(grants)
    if args.study:
        try:
            uid_of(args.study, "study")
        except BadRequest as error:
            raise SettingsError(error.detail) from None
    if args.revoke:
        _revoke(shares, args.revoke)
        record(audit_folder(settings), Event.RIGHTS_CHANGED, detail=f"share revoke {args.revoke}")
        return 0
    if args.by and not (args.list or args.revoke_all):
        raise SettingsError("--by goes with --list or --revoke-all")
    if args.revoke_all:
        count = _revoke_all(shares, args.study, args.by)
        detail = f"share revoke-all{args.by and ' '}{args.by}"
        record(audit_folder(settings), Event.RIGHTS_CHANGED, args.study, detail)
        print(json.dumps({"ended": count}) if args.json else f"{count} links ended")
        return 0
    if args.list:
        return _list(shares.all(args.study, args.by), as_json=args.json)
    if not args.study:
        raise SettingsError("share needs the UID of a study, --list, --revoke ID or --revoke-all")
    code = _share(shares, grants, settings, args)
    record(audit_folder(settings), Event.RIGHTS_CHANGED, args.study, "share")
    return code


def _share(shares: Shares, grants: Grants, settings: Settings, args: argparse.Namespace) -> int:
    made = shares.make(args.study, args.expires or time.time() + USUAL_SECONDS, pin=args.pin)
    hand_over(Path(settings.data), grants.documents.folder)
    url = share_url((args.url or address_of(settings)).rstrip("/"), made.secret)
    if args.json:
        print(json.dumps(described(made.grant) | {"url": url} | ({"pin": made.pin} if args.pin else {})))
        return 0
    print(url)
    if args.pin:
        print(f"PIN: {made.pin}", file=sys.stderr)
    return 0


def address_of(settings: Settings) -> str:
    """The address of the page as far as the settings tell it."""
    if settings.public_url:
        return settings.public_url
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _list(shares: list[Grant], *, as_json: bool) -> int:
    rows = [described(share) for share in shares]
    if as_json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        words = [f"{name} {value}" for name, value in row.items() if value not in ("", False, True)]
        print("  ".join([*words, *(["with PIN"] if row["pin"] else [])]))
    return 0


def _revoke(shares: Shares, name: str) -> None:
    for share in shares.all():
        if share.name == name:
            shares.revoke(share)
            return
    raise StreamsrvError(f"there is no share {name!r}; `streamsrv share --list` prints all")


def _revoke_all(shares: Shares, study: str, maker: str) -> int:
    """The number of links that were ended."""
    if not study and not maker:
        raise SettingsError("--revoke-all needs the UID of a study, or --by MAKER")
    found = shares.all(study, maker)
    for share in found:
        shares.revoke(share)
    return len(found)


VERBS = {"share": (add_arguments, run)}
