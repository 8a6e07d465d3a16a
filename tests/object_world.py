"""A store whose segments are read from objects of a bucket: the same records at the same offsets."""

import copy
import io

from obstore import put

from streamsrv.store.objects.cache import ObjectCache
from streamsrv.store.objects.cache_folder import StoredObject
from streamsrv.store.objects.layout import fresh_stem


def fresh_key(segment):
    """As the table of objects makes it."""
    return f"{fresh_stem()}{segment:08x}"


def upload(bucket_store, layout):
    """An object for each segment file; returns their places."""
    places = {}
    for segment, path in layout.segment_files().items():
        content = path.read_bytes()
        places[segment] = StoredObject(f"segments/{segment:08x}", len(content))
        put(bucket_store, places[segment].key, io.BytesIO(content))
    return places


def reading_objects(store, places, folder, bucket, limit=1 << 30):
    """A view of `store` that reads from the bucket, and its cache, which the caller closes."""
    view = copy.copy(store)
    view.readers = cache = ObjectCache(folder, limit, bucket, lambda _: places)
    view.remote = True
    return view, cache
