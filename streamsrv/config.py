"""Reads settings from the TOML file, the environment and the flags.

Each source overrides the one before: the default in settings/, the TOML file (`[http] port = 8943`), the
environment (STREAMSRV_PORT), the flag (--port). An unknown name is an error that names the nearest known one,
because a misspelt limit would silently be no limit.

Rule of this file: no setting has a special case here. The rows of settings/ have type, bounds and choices.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from streamsrv.errors import StreamsrvError
from streamsrv.settings import TABLES, Settings, Value, without_passwords

PREFIX = "STREAMSRV_"
# Variables with this prefix are not settings: tests use them to stop or kill a process (store/failpoints.py).
FAILPOINTS = "STREAMSRV_FAILPOINT"
MACHINES = frozenset(("x86_64", "aarch64", "arm64"))

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_PERIOD = re.compile(r"([0-9]{1,6})([smhdw])")

FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Settings)}


class SettingsError(StreamsrvError):
    """A setting is unknown, in the wrong table, or has a wrong value."""


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from all sources; raises SettingsError."""
    values = {name: each.value for name, each in sourced(file, environment, flags).items()}
    return Settings(**values)  # type: ignore[arg-type]  # checked() returns the type of the field


class SourcedValue(NamedTuple):
    """`source` is default, file, environment or flag; `place` is the path, the variable or the flag."""

    value: Value
    source: str = "default"
    place: str = ""


def sourced(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> dict[str, SourcedValue]:
    """The value of every setting, and the source that it comes from; raises SettingsError."""
    found = {name: SourcedValue(cast(Value, field.default)) for name, field in FIELDS.items()}
    if file is not None:
        found |= {name: SourcedValue(value, "file", str(file)) for name, value in from_toml(file).items()}
    for name, value in from_environment(environment or {}).items():
        found[name] = SourcedValue(value, "environment", PREFIX + name.upper())
    for name, value in (flags or {}).items():
        found[name] = SourcedValue(checked(name, value, f"--{flag(name)}"), "flag", f"--{flag(name)}")
    return found


def from_toml(file: Path) -> dict[str, Value]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from None
    return {
        known(name, f"in {file}", table): checked(name, value, f"{name} in {file}")
        for table, name, value in _rows(document, file)
    }


def _rows(document: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, Any]]:
    """(table, name, value); the table is empty for a setting at the top level."""
    for name, value in document.items():
        if isinstance(value, dict) and (name in TABLES or name not in FIELDS):
            if name not in TABLES:
                raise SettingsError(f"unknown table [{name}] in {file}; the tables are {_tables()}")
            yield from ((name, inner, each) for inner, each in value.items())
        else:
            yield "", name, value


def _tables() -> str:
    return ", ".join(f"[{table}]" for table in TABLES)


def from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """STREAMSRV_NAME=text; commas separate the items of a list."""
    values: dict[str, Value] = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and not variable.startswith(FAILPOINTS):
            name = known(variable.removeprefix(PREFIX).lower(), f"in the environment ({variable})")
            values[name] = checked(name, text, variable)
    return values


def known(name: str, where: str, table: str | None = None) -> str:
    """The name, if it is a setting (of this table); raises SettingsError."""
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"unknown setting {name!r} {where}{hint}")
    right = FIELDS[name].metadata["table"]
    if table is not None and table != right:
        place = f"in table [{table}]" if table else "outside the tables"
        raise SettingsError(f"{name} {where} is {place}: move it to table [{right}]")
    return name


def flag(name: str) -> str:
    return name.replace("_", "-")


def checked(name: str, value: Any, where: str) -> Value:
    """The value in the type of its setting, from TOML (typed) or from text; raises SettingsError."""
    field = FIELDS[name]
    kind, limits = type(field.default), field.metadata
    try:
        result = _converted(value, kind)
    except (ValueError, TypeError, KeyError):
        raise SettingsError(f"{where}: {value!r} is not {_KINDS[kind]}") from None
    if limits["choices"] and result not in limits["choices"]:
        raise SettingsError(f"{where}: {value!r} is none of {', '.join(limits['choices'])}")
    if isinstance(result, (int, float)):
        if not result >= limits["least"]:
            raise SettingsError(f"{where}: {value!r} is less than {limits['least']}")
        if result > limits["most"]:
            raise SettingsError(f"{where}: {value!r} is more than {limits['most']}")
    for text in result if isinstance(result, tuple) else (str(result),):
        if reason := limits["wrong"](text):
            raise SettingsError(f"{where}: {without_passwords(text)!r} is refused: {reason}")
    return result


def _converted(value: Any, kind: type) -> Value:
    """Raises ValueError, TypeError or KeyError."""
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS[str(value).lower()]
    if kind is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(item for each in items if (item := str(_converted(each, str)).strip()))
    if isinstance(value, bool) or not isinstance(value, _SOURCES[kind]):
        raise TypeError
    return kind(value)  # type: ignore[no-any-return]


_SOURCES = {int: (int, str), float: (int, float, str), str: (str,)}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {
    bool: "yes or no (true or false)",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of texts",
}


def send(settings: Settings, pipe: IO[bytes]) -> None:
    """Writes the settings to the standard input of a child process, as one line of JSON. The pipe stays open.
    A child that has died already is no error: its end is noticed elsewhere."""
    with contextlib.suppress(BrokenPipeError):
        pipe.write(json.dumps(dataclasses.asdict(settings)).encode() + b"\n")
        pipe.flush()


def receive(descriptor: int) -> Settings:
    """Reads the line of `send` and no further byte: the end of the pipe means that the parent has ended."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            raise EOFError("the supervisor ended before it sent the settings")
        line += piece
    return load(flags=json.loads(line))


def refuse_platform(system: str = sys.platform, machine: str | None = None) -> str | None:
    """The reason why this machine cannot run a server or hold a store, or None."""
    machine = platform.machine() if machine is None else machine
    if system != "linux":
        return (
            f"this is {system}, and a server and its store need Linux (sendfile, RWF_NOWAIT, file locks); "
            "only `store`, `pull --to`, `export --url` and `samples` run here"
        )
    if machine.lower() not in MACHINES:
        return f"streamsrv is tested on x86-64 and arm64 only; this is {machine}"
    if sys.maxsize < 1 << 40:
        return "streamsrv needs a 64-bit Python: its index is a mapping of up to 1 TiB"
    return None


def seconds_of(period: str) -> int | None:
    """The length of a period such as 12h or 7d; None if the text is none."""
    found = _PERIOD.fullmatch(period)
    return int(found[1]) * _UNITS[found[2]] if found else None


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings in TOML; see conf/streamsrv.toml"
    )


def settings_of(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Settings:
    return load(args.config, environment, given(args))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among the flags of the command line."""
    return {name: value for name, value in vars(args).items() if name in FIELDS and value is not None}
