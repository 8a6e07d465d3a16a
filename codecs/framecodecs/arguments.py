"""The arguments of work as JSON, so that nothing that travels between processes is unpickled.

Numbers, texts, truth values and None are themselves. Sequences become tuples. Bytes are {"bytes": base64}. A
dataclass of VALUES is {its name: [the values of its fields]}, and checks them itself.
"""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any

from framecodecs.frameinfo import FrameInfo
from framecodecs.options import EncodeOptions
from framecodecs.rendering.annotations import Notes
from framecodecs.rendering.luts import Lut, Palette, Window
from framecodecs.rendering.pictures import PictureRequest, Viewport
from framecodecs.rendering.rendering import Rendering

VALUES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        FrameInfo,
        EncodeOptions,
        PictureRequest,
        Viewport,
        Rendering,
        Window,
        Lut,
        Palette,
        Notes,
    )
}
BYTES = "bytes"


def to_json(arguments: tuple[Any, ...]) -> str:
    """Raises TypeError if one of them is nothing of the above."""
    return json.dumps(_plain(arguments), separators=(",", ":"))


def from_json(text: str | bytes) -> tuple[Any, ...]:
    """Raises ValueError, or an error of a dataclass."""
    found = _value(json.loads(text))
    if not isinstance(found, tuple):
        raise ValueError("arguments are a sequence")  # noqa: TRY004
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    name = type(value).__name__
    if VALUES.get(name) is not type(value):
        raise TypeError(f"a value of type {name} is no argument of work")
    return {name: [_plain(getattr(value, field.name)) for field in fields(value)]}


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_value(one) for one in plain)
    if not isinstance(plain, dict):
        return plain
    ((name, inner),) = plain.items()
    if name == BYTES:
        return base64.b64decode(inner)
    if name not in VALUES:
        raise ValueError(f"no value is called {name[:40]!r}")
    return VALUES[name](*map(_value, inner))
