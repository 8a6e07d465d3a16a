"""The verb `migrate-index`. Servers of another version must not run meanwhile."""

from __future__ import annotations

import argparse

from streamsrv.config import SettingsError, add_config_argument, settings_of
from streamsrv.store import migrate_index
from streamsrv.verbs import add_index_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    add_index_argument(parser)


def run(args: argparse.Namespace) -> int:
    url = settings_of(args).index
    if not url:
        raise SettingsError("there is no database to migrate: give --index, or set `index`")
    before, after = migrate_index(url)
    if before == after:
        print(f"the index has layout {after}: nothing was changed")
    else:
        print(f"the index had layout {before}, and has {after} now")
    return 0


VERBS = {"migrate-index": (add_arguments, run)}
