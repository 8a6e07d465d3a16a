"""The verbs `serve` and `settings`: every setting is a flag of both. They run on Linux only.

It imports the supervisor, and no more of the rooms: they load in the workers and the pixel processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os

from streamsrv import config, supervisor
from streamsrv.settings import TABLES, Value, without_passwords

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


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changed", action="store_true", help="only settings without their default")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output instead of TOML"
    )
    add_arguments(parser)


def run_settings(args: argparse.Namespace) -> int:
    """Prints the settings as a TOML file, with the source of each as a comment."""
    found = {
        name: each._replace(value=without_passwords(each.value))
        for name, each in config.sourced(args.config, os.environ, config.given(args)).items()
        if each.source != "default" or not args.changed
    }
    tables = {
        table: {name: found[name] for name in found if config.FIELDS[name].metadata["table"] == table}
        for table in TABLES
    }
    if args.json:
        document = {
            table: {name: each._asdict() for name, each in rows.items()} for table, rows in tables.items()
        }
        print(json.dumps(document))
        return 0
    for table, rows in tables.items():
        if rows:
            print(f"[{table}]")
        for name, (value, source, place) in rows.items():
            print(f"{name} = {toml_text(value)}  # {source}{f' {place}' if place else ''}")
    return 0


def toml_text(value: Value) -> str:
    """The value in TOML, of which the JSON of these types is a part."""
    return json.dumps(value, ensure_ascii=False)


VERBS = {"serve": (add_arguments, run), "settings": (add_settings_arguments, run_settings)}
