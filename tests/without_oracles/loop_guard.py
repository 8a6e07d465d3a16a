"""In a worker whose index is in a database: reports each call of the event loop that waits for the database,
or for bytes of a bucket. `start` takes the folder of the reports."""

import asyncio
import os
import sys
import threading
import time
import traceback
from pathlib import Path

CONNECTIONS = "streamsrv.store.postgresql.connections"
LOADED = "streamsrv.store.postgresql.database"  # it imports the other one
CACHE = "streamsrv.store.objects.cache"


def watch(kind, name, folder):
    method = getattr(kind, name)

    def guarded(*given):
        if asyncio._get_running_loop() is not None:
            (folder / f"waited-{os.getpid()}-{time.monotonic_ns()}").write_text(
                "".join(traceback.format_stack())
            )
        return method(*given)

    setattr(kind, name, guarded)


def guard(folder):
    while LOADED not in sys.modules or not hasattr(sys.modules[LOADED], "open_index"):
        time.sleep(0.01)
    watch(sys.modules[CONNECTIONS].Connections, "take", folder)
    if "STREAMSRV_SEGMENTS" in os.environ or "AWS_ENDPOINT_URL" in os.environ:
        while CACHE not in sys.modules or not hasattr(sys.modules[CACHE], "chunks_in"):
            time.sleep(0.01)
        watch(sys.modules[CACHE].ObjectCache, "fill", folder)
    (folder / f"armed-{os.getpid()}").touch()


def start(folder):
    threading.Thread(target=guard, args=(Path(folder),), daemon=True).start()
