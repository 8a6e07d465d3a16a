"""A store, and its change feed without a socket."""

import json

from small_client import file_of

from streamsrv.events import ChangeFeed, ChangeTail
from streamsrv.ingest import Ingest
from streamsrv.store import OnDuplicate, Store, StoreOptions
from streamsrv.wire.answers import Request, resolved
from streamsrv.wire.resources import parse_query, target_of

BASE = "http://test/v2"


class World:
    def __init__(self, folder, **options):
        self.store = Store.open(folder, StoreOptions(min_free=0, **options))
        self.feed = ChangeFeed(self.store)

    def put(self, *keys, version=1, size=256):
        for key in keys:
            ingest = Ingest(self.store, content_type="application/dicom", on_duplicate=OnDuplicate.REPLACE)
            ingest.begin()
            ingest.feed(file_of(key, version, size))
            assert len(ingest.finish().stored) == 1

    def answer(self, path="/v1/changefeed", feed=None, may_read=True, method="GET", **headers):
        path, _, query = path.partition("?")
        target = target_of(path)
        request = Request(method, path, parse_query(query), headers, BASE, target.version)
        return resolved((feed or self.feed).answer(request, target, may_read))

    def ask(self, path="/v1/changefeed", **options):
        answer = self.answer(path, **options)
        assert answer.status == 200
        return json.loads(body_of(answer))

    def tail(self, quiet, clock, view=None):
        return ChangeTail(view or self.store, self.store, quiet, clock)

    def sequences(self, path, **options):
        return [change["sequence"] for change in self.ask(path, **options)]


def body_of(answer):
    chunks = []
    for piece in answer.plan:
        chunks += piece.chunks(0, None) if hasattr(piece, "chunks") else [piece.payload]
    return b"".join(chunks)


def put_together(store, keys):
    parts = b"".join(
        b"--x\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % file_of(k, 1, 128) for k in keys
    )
    ingest = Ingest(store, content_type='multipart/related; type="application/dicom"; boundary=x')
    ingest.begin()
    ingest.feed(parts + b"--x--\r\n")
    assert len(ingest.finish().stored) == len(keys)
