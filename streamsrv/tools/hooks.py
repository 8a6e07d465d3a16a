"""The verb `hook`: adds, lists and removes the hooks of a store, beside a running server."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamsrv.config import SettingsError, settings_of
from streamsrv.errors import StreamsrvError
from streamsrv.events.hooks import HOOK_EVENTS, Hook, Hooks, is_hook_name, new_secret
from streamsrv.settings import Settings
from streamsrv.tools.keys import add_place, is_store
from streamsrv.tools.ownership import hand_over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    added = verbs.add_parser("add", help="send changes to a URL; prints the secret of its signatures")
    added.add_argument("url", metavar="URL")
    added.add_argument("--name", required=True, help="letters, digits, - and _")
    added.add_argument(
        "--events",
        default=",".join(HOOK_EVENTS),
        metavar="EVENTS",
        help=f"a list with commas of {', '.join(HOOK_EVENTS)}; default: all",
    )
    added.add_argument(
        "--allow-local", action="store_true", help="the URL may be at a loopback or link-local address"
    )
    listed = verbs.add_parser("list", help="print all hooks and their state, without their secrets")
    listed.add_argument("--json", action="store_true", help="one JSON document instead of text")
    listed.add_argument("--dead", action="store_true", help="with the events that were given up")
    removed = verbs.add_parser("remove", help="end a hook, and forget its state and dead letters")
    removed.add_argument("name", metavar="NAME")
    for each in (added, listed, removed):
        add_place(each)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    actions: dict[str, Callable[[argparse.Namespace, Settings, Hooks], int]] = {
        "add": run_add,
        "list": run_list,
        "remove": run_remove,
    }
    return actions[args.action](args, settings, Hooks(Path(settings.data)))


def run_add(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    """Raises SettingsError for a wrong URL, name or event, and StreamsrvError if the name is taken."""
    events = tuple(dict.fromkeys(each.strip() for each in args.events.split(",")))
    if unknown := [each for each in events if each not in HOOK_EVENTS]:
        raise SettingsError(f"{unknown[0]!r} is no event; the events are {', '.join(HOOK_EVENTS)}")
    if not is_hook_name(args.name):
        raise SettingsError(f"{args.name!r} is no name for a hook: take letters, digits, - and _")
    _check(args.url)
    data = Path(settings.data)
    if not is_store(data):
        raise StreamsrvError(f"{data} is not the folder of a store")
    secret = new_secret()
    hooks.add(Hook(args.name, args.url, events, secret, time.time(), args.allow_local))
    hand_over(data, hooks.folder)
    print(secret)
    if not settings.hooks:
        print("streamsrv: the setting `hooks` is off: serve with --hooks", file=sys.stderr)
    return 0


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url or parts.username is not None:
        raise SettingsError(f"{url!r} is no http or https URL without a user")


def run_list(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    rows = [_described(hooks, hook, with_dead=args.dead) for hook in hooks.all()]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        dead = row.pop("dead_letters", [])
        print("  ".join(f"{name} {value}" for name, value in row.items() if value not in ("", None)))
        for letter in dead:
            print(f"    {letter}")
    return 0


def _described(hooks: Hooks, hook: Hook, *, with_dead: bool) -> dict[str, Any]:
    state = hooks.state(hook.name)
    row: dict[str, Any] = {
        "name": hook.name,
        "url": hook.url,
        "events": ",".join(hook.events),
        "state": "failing" if state.error else "good",
        "sequence": int(state.last_id.split(".")[1]) if state.last_id else None,
        "delivered": state.delivered,
        "dead": state.dead,
        "attempts": state.attempts,
        "error": state.error,
        "last_success": _time(state.last_success),
    }
    return row | ({"dead_letters": hooks.dead(hook.name)} if with_dead else {})


def _time(seconds: float) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None


def run_remove(args: argparse.Namespace, settings: Settings, hooks: Hooks) -> int:
    if hooks.named(args.name) is None:
        raise StreamsrvError(f"there is no hook {args.name!r} in {hooks.folder}")
    hooks.remove(args.name)
    return 0


VERBS = {"hook": (add_arguments, run)}
