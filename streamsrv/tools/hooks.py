"""The verb `hook`: adds, lists and removes the hooks of a store, beside a running server."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamsrv.audit.entries import Event
from streamsrv.client import credentials
from streamsrv.client.credentials import FILES, service_url
from streamsrv.config import SettingsError, settings_of
from streamsrv.dimse.destinations import destination_in
from streamsrv.errors import BadRequest, RuleError, StreamsrvError
from streamsrv.events.hooks import (
    ASSOCIATIONS,
    HOOK_EVENTS,
    Hook,
    Hooks,
    hooks_of,
    is_hook_name,
    new_secret,
)
from streamsrv.events.tail import COMPLETE
from streamsrv.options import audit_folder
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import query_of
from streamsrv.query.rules import rule_of
from streamsrv.search.parameters import SearchLimits, parameters_of
from streamsrv.settings import Settings
from streamsrv.tools.audit import record
from streamsrv.tools.keys import add_place, is_store
from streamsrv.tools.ownership import hand_over
from streamsrv.tools.search_words import query_pairs

EXAMPLE = """\
Example: each new study with CT goes to the archive of the hospital.

    streamsrv hook forward https://pacs.example/dicom-web --name pacs --data data \\
      --query 'ModalitiesInStudy=CT' --token-file /etc/streamsrv/pacs.token

The server sends with `serve --hooks`. It reads the files of the credentials itself.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    added = verbs.add_parser("add", help="send changes to a URL; prints the secret of its signatures")
    added.add_argument("url", metavar="URL")
    added.add_argument(
        "--events",
        default=",".join(HOOK_EVENTS),
        metavar="EVENTS",
        help=f"a list with commas of {', '.join(HOOK_EVENTS)}; default: all",
    )
    forwarded = verbs.add_parser(
        "forward",
        help="send new studies to another archive, each when it is complete",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLE,
    )
    forwarded.add_argument(
        "url",
        metavar="URL",
        type=peer_url,
        help="base URL of a DICOMweb service, or a DICOM peer: aet://TITLE@HOST:PORT, or aets:// with TLS",
    )
    forwarded.add_argument(
        "--query", default="", help="a search: only instances that match it [default: all instances]"
    )
    credentials.add_arguments(forwarded)
    forwarded.set_defaults(quiet=False)
    for each in (added, forwarded):
        each.add_argument("--name", required=True, help="letters, digits, - and _")
        each.add_argument(
            "--where",
            action="append",
            default=[],
            metavar="CONDITION",
            help="such as InstitutionName=A*: only instances that meet all conditions are told",
        )
        each.add_argument(
            "--study", action="append", default=[], metavar="UID", help="only these studies are told"
        )
        each.add_argument(
            "--allow-local", action="store_true", help="the URL may be at a loopback or link-local address"
        )
    listed = verbs.add_parser("list", help="print all hooks and their state, without their secrets")
    listed.add_argument("--json", action="store_true", help="one JSON document instead of text")
    listed.add_argument("--dead", action="store_true", help="with the events that were given up")
    again = verbs.add_parser("retry", help="send the dead letters of a hook again")
    again.add_argument("name", metavar="NAME")
    removed = verbs.add_parser("remove", help="end a hook, and forget its state and dead letters")
    removed.add_argument("name", metavar="NAME")
    for each in (added, forwarded, listed, again, removed):
        add_place(each)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    actions: dict[str, Callable[[argparse.Namespace, Settings, Hooks], int]] = {
        "add": run_add,
        "forward": run_forward,
        "list": run_list,
        "retry": run_retry,
        "remove": run_remove,
    }
    hooks = hooks_of(settings)
    with contextlib.closing(hooks.documents):
        return actions[args.action](args, settings, hooks)


def run_add(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    """Raises SettingsError for a wrong URL, name, event or rule, and StreamsrvError if the name is taken."""
    events = tuple(dict.fromkeys(each.strip() for each in args.events.split(",")))
    if unknown := [each for each in events if each not in HOOK_EVENTS]:
        raise SettingsError(f"{unknown[0]!r} is no event; the events are {', '.join(HOOK_EVENTS)}")
    _check(args.url)
    secret = new_secret()
    _add(_hook_of(args, events, secret), settings, hooks)
    print(secret)
    _warn(settings)
    return 0


def run_forward(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    """Raises SettingsError for a wrong URL, name, query, rule or credentials, and StreamsrvError if the name
    is taken."""
    query = tuple(query_pairs(args.query))
    login = tuple(_login(args))
    if not args.url.startswith(ASSOCIATIONS):
        credentials.credentials_of(args, args.url)
    elif login:
        raise SettingsError("a DICOM peer has no credentials: it knows this server by `aet` and its address")
    try:
        asked = parameters_of(query, Level.INSTANCE, SearchLimits())
        query_of(Level.INSTANCE, None, None, asked.matching, asked.options)
    except BadRequest as error:
        raise SettingsError(f"--query: {error.detail}") from None
    if asked.warnings:
        raise SettingsError(f"--query: {asked.warnings[0]}")
    hook = _hook_of(args, (COMPLETE,), "")._replace(forwards=True, query=query, login=login)
    _add(hook, settings, hooks)
    _warn(settings)
    if not settings.study_quiet:
        print("streamsrv: no study is ever complete, because `study_quiet` is 0", file=sys.stderr)
    return 0


def peer_url(text: str) -> str:
    if not text.startswith(ASSOCIATIONS):
        return service_url(text)
    try:
        destination_in(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(error.detail.partition(": ")[2]) from None
    return text


def _login(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The credentials for another process: paths, and no secret. Raises SettingsError."""
    if args.netrc:
        raise SettingsError("use --netrc-file: the server may run as another user")
    if args.user and (":" in args.user or not args.password_file):
        raise SettingsError("--user needs a name and --password-file: a hook keeps no password")
    if args.user:
        yield "user", args.user
    for name in FILES:
        if file := getattr(args, name):
            if str(file) == "-":
                raise SettingsError(f"--{name.replace('_', '-')} is a file: the server reads it, too")
            yield name, os.path.abspath(file)
    for line in args.header:
        if not line.startswith("@"):
            raise SettingsError("--header @FILE: a hook keeps no secret, and others can read arguments")
        yield "header", "@" + os.path.abspath(line[1:])


def _hook_of(args: argparse.Namespace, events: tuple[str, ...], secret: str) -> Hook:
    if not is_hook_name(args.name):
        raise SettingsError(f"{args.name!r} is no name for a hook: take letters, digits, - and _")
    try:
        rule = rule_of(args.where, args.study) if args.where or args.study else None
    except RuleError as error:
        raise SettingsError(error.detail) from None
    return Hook(args.name, args.url, events, secret, time.time(), args.allow_local, rule)


def _add(hook: Hook, settings: Settings, hooks: Hooks) -> None:
    data = Path(settings.data)
    if not is_store(settings):
        raise StreamsrvError(f"{data} is not the folder of a store")
    hooks.add(hook)
    hand_over(data, hooks.documents.folder)
    record(audit_folder(settings), Event.RIGHTS_CHANGED, detail=f"hook {hook.name} to {hook.url}")


def _warn(settings: Settings) -> None:
    if not settings.hooks:
        print("streamsrv: the setting `hooks` is off: serve with --hooks", file=sys.stderr)


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url or parts.username is not None:
        raise SettingsError(f"{url!r} is no http or https URL without a user")


def run_list(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    sender = hooks.documents.holder()
    rows = [_described(hooks, hook, sender, with_dead=args.dead) for hook in hooks.all()]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        dead = row.pop("dead_letters", [])
        print("  ".join(f"{name} {value}" for name, value in row.items() if value not in ("", None)))
        for letter in dead:
            print(f"    {letter}")
    return 0


def _described(hooks: Hooks, hook: Hook, sender: str, *, with_dead: bool) -> dict[str, Any]:
    state = hooks.state(hook.name)
    row: dict[str, Any] = {
        "name": hook.name,
        "kind": "forward" if hook.forwards else "webhook",
        "url": hook.url,
        "events": ",".join(hook.events),
        "query": "&".join(f"{name}={value}" for name, value in hook.query),
        "rule": None if hook.rule is None else hook.rule.document,
        "state": "failing" if state.error else "good",
        "sequence": int(state.last_id.split(".")[1]) if state.last_id else None,
        "waiting": state.waiting,
        "delivered": state.delivered,
        "dead": state.dead,
        "attempts": state.attempts,
        "error": state.error,
        "last_success": _time(state.last_success),
        "sender": sender,
    }
    return row | ({"dead_letters": hooks.dead(hook.name)} if with_dead else {})


def _time(seconds: float) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None


def _require(name: str, hooks: Hooks) -> None:
    if hooks.named(name) is None:
        raise StreamsrvError(f"there is no hook {name!r} in {hooks.documents.where}")


def run_retry(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    """Raises StreamsrvError."""
    _require(args.name, hooks)
    print(f"{hooks.send_again(args.name)} dead letters are sent again")
    _warn(settings)
    return 0


def run_remove(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    _require(args.name, hooks)
    hooks.remove(args.name)
    record(audit_folder(settings), Event.RIGHTS_CHANGED, detail=f"hook {args.name} removed")
    return 0


VERBS = {"hook": (add_arguments, run)}
