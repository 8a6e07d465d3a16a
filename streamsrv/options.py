"""Settings as the options of rooms, for the processes and verbs that open a store."""

from __future__ import annotations

import logging
import sys

from streamsrv.dicom.window import ReadLimits
from streamsrv.settings import Settings
from streamsrv.store import StoreOptions

# Bytes that deletes and compaction may use on a full disk.
BALLAST = 16 << 20
LOG_LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"


def store_options(settings: Settings) -> StoreOptions:
    return StoreOptions(
        segment_size=settings.segment_size,
        min_free=settings.min_free or None,
        ballast=BALLAST,
        keep_changes=settings.keep_changes,
    )


def read_limits(settings: Settings) -> ReadLimits:
    return ReadLimits(
        bulk_threshold=settings.bulk_threshold,
        max_depth=settings.max_depth,
        max_attributes=settings.max_attributes,
        max_metadata=settings.max_metadata,
    )


def start_log(settings: Settings) -> None:
    """From now on the process writes its log to standard error."""
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_LINE, stream=sys.stderr)
