"""Where settings come from, and what flags, environment and the reference file make of them.

Sources, each stronger than the one before: the default here, the TOML file, the environment (STREAMSRV_PORT),
the flag (--port). An unknown name is an error that offers the nearest known one, because a misspelt limit
would silently be no limit.

Rules of this file
- Nothing here names a setting: all comes from the rows of settings.py.
- `conf/streamsrv.toml` is `reference()`, word for word; a test holds both equal.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import platform
import sys
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamsrv.errors import StreamsrvError
from streamsrv.settings import Settings, Value

PREFIX = "STREAMSRV_"
# Variables that begin so are no settings: tests make a process die or wait by them (store/failpoints.py).
FAILPOINTS = "STREAMSRV_FAILPOINT"
MACHINES = frozenset(("x86_64", "aarch64", "arm64"))


class SettingsError(StreamsrvError):
    """A setting is unknown, or its value is none that it can have."""


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Settings)}

# Values that are one of a few words, and numbers that have a lower bound other than 0.
CHOICES: dict[str, tuple[str, ...]] = {
    "forwarded_headers": ("x-forwarded", "forwarded"),
    "on_duplicate": ("refuse", "accept-identical", "replace"),
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
}
AT_LEAST: dict[str, float] = {
    "segment_size": 1 << 16,
    "max_connections": 1,
    "max_url": 256,
    "max_head": 1024,
    "max_parts": 1,
    "max_part_head": 256,
    "max_uploads": 1,
    "idle_timeout": 0.1,
    "head_timeout": 0.1,
    "stall_timeout": 0.1,
    "max_depth": 1,
    "max_rendered_pixels": 1,
}


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from all sources; raises SettingsError."""
    values: dict[str, Value] = {}
    if file is not None:
        values |= from_toml(file)
    values |= from_environment(environment or {})
    values |= {name: checked(name, value, f"--{flag(name)}") for name, value in (flags or {}).items()}
    return Settings(**values)  # type: ignore[arg-type]  # each value was checked against the type of its field


def from_toml(file: Path) -> dict[str, Value]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}") from None
    return {
        known(name, f"in {file}"): checked(name, value, f"{name} in {file}") for name, value in table.items()
    }


def from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """STREAMSRV_NAME=text; lists are separated by commas."""
    values: dict[str, Value] = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and not variable.startswith(FAILPOINTS):
            name = known(variable.removeprefix(PREFIX).lower(), f"in the environment ({variable})")
            values[name] = checked(name, text, variable)
    return values


def known(name: str, where: str) -> str:
    if name in FIELDS:
        return name
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SettingsError(f"unknown setting {name!r} {where}{hint}")


def flag(name: str) -> str:
    return name.replace("_", "-")


def checked(name: str, value: Any, where: str) -> Value:
    """The value in the type of its setting, from TOML (typed) or from text."""
    wanted = type(FIELDS[name].default)
    try:
        result = _READERS[wanted](value)
    except (ValueError, TypeError, KeyError):
        raise SettingsError(f"{where}: {value!r} is not {_ARTICLES[wanted]}") from None
    choices = CHOICES.get(name)
    if choices and result not in choices:
        raise SettingsError(f"{where}: {value!r} is none of {', '.join(choices)}")
    if isinstance(result, (int, float)) and not result >= AT_LEAST.get(name, 0):
        raise SettingsError(f"{where}: {value!r} is less than {AT_LEAST.get(name, 0)}")
    if name in ("port", "health_port") and not 0 <= int(str(result)) <= 65535:
        raise SettingsError(f"{where}: {value!r} is no TCP port (0 to 65535; 0: any free one)")
    return result


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _read_int(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise TypeError
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _read_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(item for item in (item.strip() for item in value.split(",")) if item)
    return tuple(_read_str(item) for item in value)


_READERS: dict[type, Callable[[Any], Value]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    tuple: _read_list,
}
_ARTICLES = {
    bool: "yes or no (true or false)",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of texts",
}


def to_json(settings: Settings) -> str:
    """For handing settings to a worker process."""
    return json.dumps(dataclasses.asdict(settings))


def from_json(text: str) -> Settings:
    return load(flags=json.loads(text))


def reference() -> str:
    """The TOML file that lists every setting with its default, unit and reason."""
    lines = [
        "# Every setting of streamsrv with its default, which also holds for a setting that is left out.",
        "# streamsrv serve --config FILE reads this file; STREAMSRV_PORT=8943 in the environment beats it, "
        "--port 8943 beats both.",
    ]
    for name, field in FIELDS.items():
        lines += ["", f"# {field.metadata['unit']}"]
        lines += textwrap.wrap(field.metadata["reason"], 110, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"{name} = {_toml(field.default)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(json.dumps(item) for item in value) + "]"
    return json.dumps(value)


def refuse_platform(system: str = sys.platform, machine: str | None = None) -> str | None:
    """Why this machine cannot run a server, or None if it can."""
    machine = platform.machine() if machine is None else machine
    if system != "linux":
        return f"streamsrv runs on Linux only, for its sendfile, RWF_NOWAIT and file locks; this is {system}"
    if machine.lower() not in MACHINES:
        return f"streamsrv is tested on x86-64 and arm64 only; this is {machine}"
    if sys.maxsize < 1 << 40:
        return "streamsrv needs a 64-bit Python: its index is a mapping of up to 1 TiB"
    return None
