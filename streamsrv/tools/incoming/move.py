"""The verb `move`: the instances of a store go to another engine, while its servers work. The work is in
store/maintenance/moving/.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamsrv.config import SettingsError, add_config_argument, checked, settings_of
from streamsrv.errors import StoreLocked
from streamsrv.events import EventPosition
from streamsrv.events.hooks import HookState, hooks_of
from streamsrv.events.messages import event_id
from streamsrv.ingest.derivation import ReaderPool
from streamsrv.options import check_store, store_options
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.store.maintenance.moving.mover import Mover
from streamsrv.tools.incoming.run_report import FAILED, RunReport
from streamsrv.tools.ownership import hand_over
from streamsrv.tools.progress import ProgressLine
from streamsrv.verbs import deriver, open_store

EXAMPLE = """\
Examples: from a folder to a database and a bucket, beside the server of the folder; and back.

    streamsrv move --from data --to-index postgresql://db/streamsrv --to-segments s3://archive/store
    streamsrv move --from-index postgresql://db/streamsrv --from-segments s3://archive/store --to data2

Repeat the command to go on, or to bring new instances. Stop the servers of the source, or start them with
--read-only, and repeat it with --finish: before that no server opens the target for writing. The exit code
is 0 if both have the same instances with the same bytes, 1 if one differs, which is named.
"""
COUNTED = ("instances", "copied", "deleted", "verified", FAILED)
CACHE = 1 << 30  # bytes of a cache at most: each object is read once
STAYED = "keys, share links and the audit trail have not moved: use `streamsrv key copy`, and copy `audit`"
PAUSE = 1.0  # seconds between two looks for changes, with --follow


def add_move_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add_config_argument(parser)
    for side, store in (("from", "source"), ("to", "target")):
        folder = f"the folder of the {store}; with --{side}-segments a folder for files of the move"
        add(f"--{side}", dest=f"{store}_data", metavar="DIR", help=folder)
        add(f"--{side}-index", dest=f"{store}_index", metavar="URL", help=f"the database of the {store}")
        add(f"--{side}-segments", dest=f"{store}_segments", metavar="URL", help=f"the bucket of the {store}")
    add("--follow", action="store_true", help="go on with new changes, until Ctrl-C or SIGTERM")
    add("--finish", action="store_true", help="end the move: from then on servers may open the target")
    add("--parallel", metavar="N", type=int, default=4, help="portions of instances at once (4)")
    add("--quiet", action="store_true", help="no progress, and no summary unless something failed")
    add("--json", action="store_true", help="one JSON document on standard output instead of text")


def run_move(args: argparse.Namespace) -> int:
    """Raises SettingsError for arguments that do not go together, StreamsrvError if nothing can be moved."""
    if args.parallel < 1:
        raise SettingsError("--parallel is at least 1")
    if args.follow and args.finish:
        raise SettingsError("--follow goes on beside the servers of the source, --finish needs their end")
    report = RunReport(COUNTED, aloud=not args.json)
    with contextlib.ExitStack() as held:
        settings = {side: side_of(args, side, held) for side in ("source", "target")}
        if len({Path(each.data).resolve() for each in settings.values()}) == 1:
            raise SettingsError("--from and --to are the same folder")
        source, target = opened_source(settings["source"], held), opened_target(settings["target"], held)
        if args.finish:
            held.enter_context(no_writer(settings["source"]))
        line = held.enter_context(ProgressLine(sys.stderr, shown=not args.quiet))
        mover = Mover(
            *(source, target, deriver(settings["target"], ReaderPool()), report),
            parallel=args.parallel,
            show=lambda: line.show(report.line),
        )
        held.enter_context(contextlib.closing(mover))
        if args.follow:
            follow(mover)
        else:
            mover.copy()
        complete = is_complete(mover)
        has_ended, carried = complete and args.finish, list[str]()
        if has_ended:
            carried = carry_hooks(settings["source"], settings["target"], target)
            mover.end()
    more = {"position": mover.position, "ended": has_ended, "hooks": carried}
    code = report.print(as_json=args.json, quiet=args.quiet, more=more)
    if not args.json and not args.quiet:
        print(last_words(code, mover.position, has_ended=has_ended, hooks=carried))
    return code


def side_of(args: argparse.Namespace, side: str, held: contextlib.ExitStack) -> Settings:
    """The settings of a side. Its engine is named by flags alone: variables name that of a server."""
    flag = {"source": "--from", "target": "--to"}[side]
    flags = {"data": flag, "index": f"{flag}-index", "segments": f"{flag}-segments"}
    named = {name: getattr(args, f"{side}_{name}") for name in flags}
    values: dict[str, Any] = {name: checked(name, named[name] or "", flags[name]) for name in flags}
    if not values["data"] and not values["segments"]:
        raise SettingsError(f"name the {side}: {flag} DIR, or {flag}-index URL and {flag}-segments URL")
    settings = settings_of(args)
    settings = replace(settings, cache="", cache_size=min(settings.cache_size, CACHE), **values)
    check_store(settings)
    if settings.data:
        return settings
    return replace(settings, data=held.enter_context(tempfile.TemporaryDirectory(prefix="streamsrv-")))


def opened_source(settings: Settings, held: contextlib.ExitStack) -> Store:
    return held.enter_context(open_store(settings, read_only=True))


def opened_target(settings: Settings, held: contextlib.ExitStack) -> Store:
    """For this process alone. Raises StoreLocked."""
    folder, options = Path(settings.data), replace(store_options(settings), moving=True)
    if not settings.segments:
        held.enter_context(handed_over(folder))
    store = held.enter_context(Store.open(folder, options, exclusive=not settings.segments))
    if settings.segments:
        cluster: Any = store
        held.enter_context(cluster.rooms.table.excluding_compactions())
    return store


@contextlib.contextmanager
def handed_over(folder: Path) -> Iterator[None]:
    """Its files belong to its owner afterwards."""
    try:
        yield
    finally:
        if folder.is_dir():
            hand_over(folder, folder)


@contextlib.contextmanager
def no_writer(settings: Settings) -> Iterator[None]:
    """No server writes to the folder of the source meanwhile. Nodes of a bucket cannot be kept from it."""
    if settings.segments:
        yield
        return
    try:
        lock = Store.lock(Path(settings.data), shared=True)
    except StoreLocked as error:
        raise StoreLocked(f"{error.detail}, or start it with --read-only") from None
    with lock:
        yield


def follow(mover: Mover) -> None:
    """Until a signal."""
    stopped = threading.Event()
    mover.copy()
    ends = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, lambda *_: stopped.set()) for number in ends]
    try:
        while not stopped.wait(PAUSE):
            mover.catch_up()
    finally:
        for number, handler in zip(ends, former, strict=True):
            signal.signal(number, handler)


def is_complete(mover: Mover) -> bool:
    """Verifies the target. Returns whether it has all that the source has."""
    mover.verify()
    mover.catch_up()
    mover.verify()
    return not mover.compare() + mover.name_damaged()


def carry_hooks(source: Settings, target: Settings, store: Store) -> list[str]:
    """Adds the hooks of the source to the target, with their secrets, and with cursors behind all changes of
    its store. Cursors and dead letters of the source count other changes. Returns their names. One that
    cannot be read is named on standard error, and another one of its name in the target stays."""
    ours, theirs = hooks_of(source), hooks_of(target)
    latest = store.latest_change()
    reached = latest.sequence if latest else 0
    state = HookState(event_id(store.index.about()["epoch"], EventPosition(reached, reached)))
    carried = list[str]()
    with contextlib.closing(ours.documents), contextlib.closing(theirs.documents):
        for name in ours.unreadable():
            print(f"streamsrv: the hook {name!r} cannot be read: it is left out", file=sys.stderr)
        for hook in ours.all():
            there = theirs.named(hook.name)
            if there is None:
                theirs.add(hook)
            if there in (None, hook):
                theirs.save(hook, state)
                carried.append(hook.name)
    return carried


def last_words(code: int, position: int, *, has_ended: bool, hooks: Sequence[str]) -> str:
    if has_ended:
        lines = [f"hooks that came with it: {', '.join(hooks)}"] if hooks else []
        lines += [STAYED, "the move has ended: servers may open the target"]
        return "\n".join(lines)
    if code:
        return "the move has not ended"
    return (
        f"the target has all changes of the source up to {position}. Stop the servers of the source, or "
        "start them with --read-only, and repeat the command with --finish"
    )


VERBS = {"move": (add_move_arguments, run_move)}
