"""In a worker whose index is in a database: reports each call of the event loop that waits for the database.
`start` takes the folder of the reports."""

import asyncio
import os
import sys
import threading
import time
import traceback
from pathlib import Path

CONNECTIONS = "streamsrv.store.postgresql.connections"
LOADED = "streamsrv.store.postgresql.database"  # it imports the other one


def guard(folder):
    while LOADED not in sys.modules or not hasattr(sys.modules[LOADED], "open_index"):
        time.sleep(0.01)
    connections = sys.modules[CONNECTIONS].Connections
    take = connections.take

    def guarded(self):
        if asyncio._get_running_loop() is not None:
            (folder / f"waited-{os.getpid()}-{time.monotonic_ns()}").write_text(
                "".join(traceback.format_stack())
            )
        return take(self)

    connections.take = guarded
    (folder / f"armed-{os.getpid()}").touch()


def start(folder):
    threading.Thread(target=guard, args=(Path(folder),), daemon=True).start()
