"""Settings as the options of rooms, for the processes and verbs that open a store; and the server log."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from streamsrv.audit.trail import Trail, TrailLimits
from streamsrv.config import SettingsError
from streamsrv.dicom.window import ReadLimits
from streamsrv.ingest import IngestLimits
from streamsrv.settings import Settings
from streamsrv.store import StoreOptions
from streamsrv.web.access.policy import needs_principal
from streamsrv.wire.multipart import MultipartLimits

# Bytes that deletes and compaction may use on a full disk.
BALLAST = 16 << 20
LOG_LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"
# A message about a request begins so; the first argument is the request id.
ABOUT_REQUEST = "[%s] "


def store_options(settings: Settings) -> StoreOptions:
    return StoreOptions(
        segment_size=settings.segment_size,
        min_free=settings.min_free or None,
        ballast=BALLAST,
        keep_changes=settings.keep_changes,
        index=settings.index,
        segments=settings.segments,
        cache=Path(settings.cache) if settings.cache else None,
        cache_size=settings.cache_size,
        grace=settings.removal_grace,
        upload_lease=settings.upload_lease,
        rules_memory=settings.rules_memory,
    )


def check_store(settings: Settings) -> None:
    """Raises SettingsError for segments in a bucket without a database."""
    if settings.segments and not settings.index:
        raise SettingsError("segments in a bucket need an index in PostgreSQL: set `index` too")


def read_limits(settings: Settings) -> ReadLimits:
    return ReadLimits(
        bulk_threshold=settings.bulk_threshold,
        max_depth=settings.max_depth,
        max_attributes=settings.max_attributes,
        max_metadata=settings.max_metadata,
    )


def ingest_limits(settings: Settings) -> IngestLimits:
    return IngestLimits(
        instance_bytes=settings.max_instance,
        kept_bytes=settings.keep_in_memory,
        multipart=MultipartLimits(header_bytes=settings.max_part_head, parts=settings.max_parts),
        reading=read_limits(settings),
    )


def audit_folder(settings: Settings) -> Path:
    return Path(settings.audit_folder or Path(settings.data) / "audit")


def audits(settings: Settings) -> bool:
    """Whether there is an audit trail."""
    return settings.audit == "on" or (settings.audit == "auto" and needs_principal(settings))


def audit_trail(settings: Settings) -> Trail | None:
    """None if there is no audit trail."""
    if not audits(settings):
        return None
    limits = TrailLimits(settings.audit_file_size, settings.audit_keep_days, bool(settings.audit_syslog))
    return Trail(audit_folder(settings), limits)


def start_log(settings: Settings) -> None:
    """From now on the process writes its log to standard error."""
    level = settings.log_level.upper()
    if settings.log_format == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLine())
        logging.basicConfig(level=level, handlers=[handler])
    else:
        logging.basicConfig(level=level, format=LOG_LINE, stream=sys.stderr)


class JsonLine(logging.Formatter):
    """A record as one JSON object. `request_id` and `exception` (the traceback) appear only if there are
    any. `at` is RFC 3339 in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        text, args = record.msg, record.args
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        if isinstance(text, str) and isinstance(args, tuple) and args and text.startswith(ABOUT_REQUEST):
            text, (request_id, *rest) = text.removeprefix(ABOUT_REQUEST), args
            args = tuple(rest)
            line["request_id"] = request_id
        line["message"] = str(text) % args if args else str(text)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII, also surrogates of a path
