"""The engines that the contract (docs/store-contract.md) is run against. `open` returns a Store."""

from streamsrv.store import Store, StoreOptions


class LocalEngine:
    """Segments in a folder, and LMDB."""

    def __init__(self, folder):
        self._folder = folder

    def open(self, **options):
        return Store.open(self._folder, StoreOptions(segment_size=64 << 10, min_free=0), **options)


ENGINES = {"local": LocalEngine}
