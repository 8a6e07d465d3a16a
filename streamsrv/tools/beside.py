"""Other files that a backup has: keys and share links, hooks with their cursors, and the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from streamsrv.audit.copying import copy_trail
from streamsrv.audit.entries import Event
from streamsrv.audit.reading import verify
from streamsrv.audit.trail import files_of
from streamsrv.errors import StoreError
from streamsrv.events.hooks import FOLDER as HOOKS
from streamsrv.events.hooks import hooks_in
from streamsrv.options import audit_folder
from streamsrv.settings import Settings
from streamsrv.store.maintenance.check import Finding, Severity, error
from streamsrv.tools.audit import record
from streamsrv.tools.ownership import hand_over
from streamsrv.web.access.grants import FOLDER as ACCESS
from streamsrv.web.access.grants import KEY, GrantDamaged, grants_in

KINDS = (KEY, "share")  # of grants: sessions of browsers are left out
TRAIL = "audit"


def save(settings: Settings, folder: Path) -> list[Finding]:
    """Copies them into the folder of a backup, which then has nothing else of these kinds."""
    data, trail = Path(settings.data), audit_folder(settings)
    found = [*_grants(data, folder), *_hooks(data, folder)]
    if trail.is_dir():
        found += _tried(TRAIL, lambda: copy_trail(trail, folder / TRAIL))
    return found


def bring_back(folder: Path, settings: Settings) -> list[Finding]:
    """Copies them from the folder of a backup to a new store. A trail that is there stays."""
    data, trail = Path(settings.data), audit_folder(settings)
    found = [*_grants(folder, data), *_hooks(folder, data)]
    if (folder / TRAIL).is_dir() and files_of(trail):
        what = f"{trail} has a trail already, which stays; that of the backup is {folder / TRAIL}"
        found.append(Finding(Severity.NOTE, TRAIL, what))
    elif (folder / TRAIL).is_dir():
        found += _tried(TRAIL, lambda: _bring_back_trail(folder / TRAIL, trail))
    return found


def _bring_back_trail(source: Path, target: Path) -> None:
    copy_trail(source, target)
    record(target, Event.RECORDING_RESUMED, detail="restored from a backup")
    hand_over(target, target)


def faults(folder: Path) -> Iterator[Finding]:
    """Yields the damage to these in the folder of a backup."""
    for grant in grants_in(folder).all():
        if isinstance(grant, GrantDamaged):
            yield error(ACCESS, grant.detail)
    yield from map(_hook_fault, hooks_in(folder).unreadable())
    if (folder / TRAIL).is_dir():
        for problem in verify(folder / TRAIL).problems:
            yield error(TRAIL, problem)


def _grants(source: Path, target: Path) -> list[Finding]:
    grants, others = grants_in(source), grants_in(target)
    if not grants.names() and not others.names():
        return []
    return [error(ACCESS, each.detail) for each in grants.copy_to(others, KINDS)]


def _hooks(source: Path, target: Path) -> list[Finding]:
    unreadable = list[str]()
    found = _tried(HOOKS, lambda: unreadable.extend(hooks_in(source).copy_to(hooks_in(target))))
    return [*found, *map(_hook_fault, unreadable)]


def _hook_fault(name: str) -> Finding:
    return error(HOOKS, f"{name}.json cannot be read: remove the hook, and add it again")


def _tried(where: str, copy: Callable[[], None]) -> list[Finding]:
    try:
        copy()
    except StoreError as failure:
        return [error(where, failure.detail)]
    except OSError as failure:
        return [error(where, f"it cannot be copied: {failure.strerror}")]
    return []
