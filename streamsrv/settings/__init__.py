"""Every setting of the server."""

from streamsrv.settings.every import TABLES, Settings
from streamsrv.settings.rows import Value, without_passwords

__all__ = ["TABLES", "Settings", "Value", "without_passwords"]
