"""The verb `serve`: its flags and its function. It runs on Linux only.

It imports the supervisor, and no more of the rooms: they load in the workers and the pixel processes.
"""

from __future__ import annotations

import argparse
import contextlib

from streamsrv import config, supervisor
from streamsrv.settings import TABLES

ADVANCED = "advanced"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting is a flag, in the group of its table; advanced settings come last."""
    config.add_config_argument(parser)
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


def shown(value: object) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def run(args: argparse.Namespace) -> int:
    def write(line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(line, flush=True)

    return supervisor.serve(config.settings_of(args), write)


VERBS = {"serve": (add_arguments, run)}
