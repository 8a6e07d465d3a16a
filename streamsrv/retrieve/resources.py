"""Retrieve transactions: the plan of each kind of target resource.

Rules of this file
- A request is refused before a plan is made: 404 before 406 before anything is read.
- `wire.accept` chooses the representation; `plans.payloads` and `pixels.transcoding` know the bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

from streamsrv.pixels.pool import PixelPool
from streamsrv.plans.selection import Selections
from streamsrv.retrieve.answering import Planned, Retrieval, Rooms, plan_answer, wanted_digest, with_digest
from streamsrv.retrieve.bulk import all_pixel_data, bulk_data
from streamsrv.retrieve.cached_frames import Found, cached_frames
from streamsrv.retrieve.frames import frames
from streamsrv.retrieve.instances import instances
from streamsrv.retrieve.metadata import metadata
from streamsrv.retrieve.pictures import rendered, thumbnail
from streamsrv.retrieve.turns import Turns
from streamsrv.retrieve.wado_uri import linked_object, named_instance
from streamsrv.retrieve.whole_datasets import WholeDataset, dataset_at_hand, whole_dataset
from streamsrv.store import InstanceKey, InstanceRow, Store
from streamsrv.wire.answers import Computed, Deferred, Request
from streamsrv.wire.resources import Kind, Target

PLANS: dict[Kind, Callable[[Retrieval], Planned]] = {
    Kind.INSTANCES: instances,
    Kind.METADATA: metadata,
    Kind.FRAMES: frames,
    Kind.BULKDATA: bulk_data,
    Kind.PIXELDATA: all_pixel_data,
    Kind.RENDERED: rendered,
    Kind.THUMBNAIL: thumbnail,
    Kind.WADO_URI: linked_object,
}
# Kinds of a single instance with plans that may be made in the event loop.
BRIEF = frozenset((Kind.METADATA, Kind.FRAMES, Kind.RENDERED, Kind.THUMBNAIL, Kind.WADO_URI))


class Retrieve:
    """Answers requests for the instances of a store. Never blocks; a deferred answer does."""

    def __init__(self, store: Store, pool: PixelPool) -> None:
        self._rooms = Rooms(store, pool, Selections(store), Turns())

    def restricted(self, store: Store) -> Retrieve:
        """The answers of a view of the store, with the same processes and memory."""
        view, rooms = copy.copy(self), self._rooms
        view._rooms = rooms._replace(store=store, selections=rooms.selections.restricted(store))
        return view

    def answer(self, request: Request, target: Target) -> Computed:
        """The answer to a GET of instances, metadata, frames, bulk data or pictures. Raises RequestError."""
        if target.kind is Kind.WADO_URI:
            target = named_instance(request, target)
        kind, algorithm = target.kind, wanted_digest(request)
        if kind is Kind.METADATA:
            self._rooms.pool.warm()  # a viewer requests frames next
        plan = PLANS[kind]
        if algorithm is not None:
            plan = partial(with_digest, algorithm, plan)
        elif not self._rooms.store.remote and (
            kind is Kind.INSTANCES or (kind in BRIEF and target.instance is not None)
        ):
            planned = plan_answer(self._rooms, request, target, plan, brief=True)
            if planned is not None:
                return planned
        return Deferred(partial(self._blocking, request, target, plan))

    def _blocking(self, request: Request, target: Target, plan: Callable[[Retrieval], Planned]) -> Computed:
        planned = plan_answer(self._rooms, request, target, plan, brief=False)
        assert planned is not None  # only a brief plan may be None
        return planned

    def row(self, key: InstanceKey) -> InstanceRow | None:
        """The row of an instance. Blocks."""
        found = self._rooms.store.instance(key, ())
        return found[0] if found else None

    def dataset(self, key: InstanceKey, taken: Callable[[str], Sequence[str]]) -> WholeDataset:
        """The dataset of an instance. `taken` tells the transfer syntaxes that the receiver takes for a SOP
        class (retrieve/whole_datasets.py). Blocks."""
        return whole_dataset(self._rooms, key, taken)

    def dataset_at_hand(self, key: InstanceKey, taken: Callable[[str], Sequence[str]]) -> WholeDataset | None:
        """The same for the event loop; None if it would block."""
        return dataset_at_hand(self._rooms.store, key, taken)

    def cached_frames(self, request: Request, target: Target) -> Found:
        """For a client that requests the frames of an instance one by one (retrieve/cached_frames.py). A
        function that blocks, if the store is remote."""
        find = partial(cached_frames, self._rooms, request, target)
        return find if self._rooms.store.remote else find()
