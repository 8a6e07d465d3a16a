"""Every setting of the server: its name, default, unit and reason, in one frozen dataclass.

Sources, each stronger than the one before: the default here, the TOML file, the environment (STREAMSRV_PORT),
the flag (--port). An unknown name is an error that offers the nearest known one, because a misspelt limit
would silently be no limit.

Rules of this file
- A setting is one row: `name: type = setting(default, unit, reason)`. Flags, environment, TOML and the
  reference file are made from it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from streamsrv.errors import StreamsrvError

PREFIX = "STREAMSRV_"
MACHINES = frozenset(("x86_64", "aarch64", "arm64"))

Value: TypeAlias = str | int | float | bool | tuple[str, ...]


class SettingsError(StreamsrvError):
    """A setting is unknown, or its value is none that it can have."""


def setting(default: Value, unit: str, reason: str) -> Any:
    return dataclasses.field(default=default, metadata={"unit": unit, "reason": reason})


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server runs by. Zero in a limit means: no limit, where its reason says so."""

    # Where it listens and who may ask
    host: str = setting(
        "127.0.0.1", "address", "There is no authentication yet, so only this machine can reach the server."
    )
    port: int = setting(
        8943,
        "TCP port",
        "One that nobody in the field uses: 8042 is Orthanc's, 8080 and 8000 are everybody's.",
    )
    allow_remote_without_authentication: bool = setting(
        False,
        "yes or no",
        "Listening on an address that others can reach gives every study to everyone who can reach it: say "
        "so in words.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "host names",
        "Names besides the loopback ones under which clients reach this server. A page that a browser was "
        "lured to can "
        "make its own name point here (DNS rebinding); it cannot choose another Host header.",
    )
    public_url: str = setting(
        "",
        "URL without version",
        "What absolute URLs in answers begin with, where a proxy hides the server. Empty: taken from the "
        "request.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "addresses or networks",
        "Whose Forwarded and X-Forwarded-* headers are believed. From anyone else they are ignored: anyone "
        "can send them.",
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        "origins, or *",
        "Web viewers on another origin (https://viewer.example) may read answers only if it is listed here.",
    )
    cors_max_age: int = setting(
        7200, "seconds", "How long a browser remembers a preflight; Chromium caps it at two hours."
    )

    # Where the studies lie
    data: str = setting(
        "data", "folder", "Segments, index and store.toml. A local file system: locks and syncs must mean it."
    )
    read_only: bool = setting(False, "yes or no", "Stores and deletes are answered with 403.")
    on_duplicate: str = setting(
        "refuse",
        "refuse | accept-identical | replace",
        "What happens to a SOP instance that is there already. Refusing can lose nothing.",
    )
    segment_size: int = setting(
        1 << 30,
        "bytes",
        "A segment over this size is sealed. Larger ones take longer to compact, smaller ones are more "
        "files.",
    )
    min_free: int = setting(
        0,
        "bytes",
        "With less free space stores answer 507, so that deleting and compacting still can work. 0: 1 GiB or "
        "2 % of the disk, whichever is less.",
    )

    # Processes
    workers: int = setting(
        0, "processes", "0: one a core. Each is a whole server; they share the port and the store."
    )
    max_connections: int = setting(
        4000,
        "connections a worker",
        "Over it new connections wait in the kernel's queue. Each costs about 20 kB and a descriptor.",
    )
    drain_timeout: float = setting(
        30.0, "seconds", "After SIGTERM: how long answers and bodies in flight may take to finish."
    )

    # Limits of a request
    max_url: int = setting(
        16384, "bytes", "Answered with 414. Lists of frames and UIDs make long URLs, 16 kB hold 250 UIDs."
    )
    max_head: int = setting(
        32768, "bytes", "Request line and headers; answered with 431. Tokens and cookies fit in half of it."
    )
    max_body: int = setting(
        0, "bytes", "0: any size, because bodies are streamed. Otherwise answered with 413."
    )
    max_inflated_body: int = setting(
        64 << 30, "bytes", "A gzip body unpacks to a thousand times its size: a bomb ends here, with 413."
    )
    max_instance: int = setting(0, "bytes", "0: any size. One SOP instance; answered with 413.")
    max_parts: int = setting(
        100_000, "parts", "In one multipart body; each part costs memory until the answer is sent."
    )
    max_part_head: int = setting(
        16384, "bytes", "The header block of one part; real ones have a few hundred bytes."
    )
    max_uploads: int = setting(
        32,
        "uploads a worker",
        "At once; the next is answered with 503 and Retry-After. Each holds a 1 MB buffer and a segment.",
    )

    # How slow a client may be
    idle_timeout: float = setting(
        60.0,
        "seconds",
        "From the end of an answer, or from connecting, to the end of the next request's headers: for idle "
        "connections and slow heads alike.",
    )
    stall_timeout: float = setting(
        30.0,
        "seconds",
        "Within each such time a body, in either direction, must move by min_rate times as much.",
    )
    min_rate: int = setting(
        1024, "bytes a second", "Slower bodies are cut off. The slowest modem was faster."
    )

    # What readers and searches may cost
    bulk_threshold: int = setting(
        1024, "bytes", "Longer binary values are left out of the metadata and named by a BulkDataURI instead."
    )
    max_depth: int = setting(
        64, "levels", "Of sequences in sequences. Real ones end at about 8; a bomb nests by the thousand."
    )
    max_metadata: int = setting(
        64 << 20, "bytes", "DICOM JSON of one instance; an enhanced multi-frame CT has about 10 MB."
    )
    search_limit: int = setting(200, "results", "Where a search names no limit.")
    max_search_limit: int = setting(
        5000, "results", "A larger limit is lowered to this, with a Warning header."
    )
    cache_max_age: int = setting(
        0,
        "seconds",
        "0: caches ask each time (no-cache, answered by 304). More lets browsers keep patients' pictures "
        "unasked.",
    )

    # What it tells
    log_format: str = setting("text", "text | json", "One line a request on standard error.")
    log_level: str = setting(
        "info", "debug | info | warning | error", "At warning the line a request is left out."
    )


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Settings)}

# Values that are one of a few words, and numbers that have a lower bound other than 0.
CHOICES: dict[str, tuple[str, ...]] = {
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
    "stall_timeout": 0.1,
    "max_depth": 1,
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
        if variable.startswith(PREFIX):
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
    if name == "port" and not 0 <= int(str(result)) <= 65535:
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
