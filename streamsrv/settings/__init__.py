"""Every setting of the server."""

from typing import TypeAlias

from streamsrv.settings.every import TABLES, Settings

Value: TypeAlias = str | int | float | bool | tuple[str, ...]

__all__ = ["TABLES", "Settings", "Value"]
