"""A read-only worker of a store whose segments are read from objects: `python object_server.py JSON`.

It prints a line when it listens, and ends with its standard input. Each call of the event loop that fetches
bytes is a file in the folder `guarded`.
"""

import asyncio
import json
import os
import socket
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path

from object_world import reading_objects

from streamsrv.options import store_options
from streamsrv.server import actions, pixel_pool
from streamsrv.settings import Settings
from streamsrv.store import Store
from streamsrv.store.objects.bucket import opened
from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.web.health import WatchedStore
from streamsrv.web.worker import run


def guard(folder):
    fill = ObjectCache.fill

    def guarded(self, wanted):
        if asyncio._get_running_loop() is not None:
            text = "".join(traceback.format_stack())
            (folder / f"waited-{os.getpid()}-{time.monotonic_ns()}").write_text(text)
        return fill(self, wanted)

    ObjectCache.fill = guarded


def main():
    given = json.loads(sys.argv[1])
    guard(Path(given["guarded"]))
    settings = Settings(data=given["data"], min_free=0, read_only=True, port=given["port"])
    places = {int(segment): StoredObject(*place) for segment, place in given["places"].items()}
    bucket = opened(given["url"], endpoint=given["endpoint"])
    listener = socket.create_server(("127.0.0.1", given["port"]))
    listener.setblocking(False)
    with (
        Store.open(Path(given["data"]), store_options(settings), read_only=True) as local,
        closing(pixel_pool(settings)) as pool,
    ):
        store, cache = reading_objects(local, places, Path(given["cache"]), bucket, given["limit"])
        with closing(cache), closing(WatchedStore(store.probe, store.version)) as watched:
            run(
                settings,
                [listener],
                actions(store, settings, pool, watched),
                on_ready=lambda: print("ready", flush=True),
                lifeline=0,
            )


if __name__ == "__main__":
    main()
