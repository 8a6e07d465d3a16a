"""Instances that this server sends of its own accord: C-STORE over an association (PS3.4 B, PS3.8).

Strategy: an association for each batch, with the syntaxes of its instances and the two uncompressed ones. An
instance goes as stored if the peer takes that syntax, else as C-MOVE would send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from streamsrv.dimse.channel import Channel, OutgoingDataset
from streamsrv.dimse.destinations import MoveDestination
from streamsrv.dimse.dialing import Dialer
from streamsrv.dimse.services.moving import UNCOMPRESSED
from streamsrv.errors import IndexUnreachable, NotAcceptable, NotFound, StoreError
from streamsrv.retrieve import Retrieve
from streamsrv.settings import Settings
from streamsrv.store import InstanceRow


class StoreOutcome(NamedTuple):
    """`status` is that of the response; `fault` is why no request was sent."""

    row: InstanceRow
    status: int
    fault: str = ""


class BatchSender:
    """Blocks. For one thread."""

    def __init__(self, retrieve: Retrieve, settings: Settings) -> None:
        """Raises SettingsError."""
        self._retrieve = retrieve
        self._threads = ThreadPoolExecutor(2)
        self._dialer = Dialer(settings, self._threads)

    def close(self) -> None:
        self._threads.shutdown()

    def send(self, rows: Sequence[InstanceRow], place: MoveDestination) -> list[StoreOutcome]:
        """Raises OSError if the peer cannot be reached or is lost, and TimeoutError."""
        return asyncio.run(self._sent(rows, place))

    async def _sent(self, rows: Sequence[InstanceRow], place: MoveDestination) -> list[StoreOutcome]:
        proposed = dict.fromkeys((row.sop_class_uid, row.transfer_syntax) for row in rows)
        for syntax in UNCOMPRESSED:
            proposed |= dict.fromkeys([(sop_class, syntax) for sop_class, _ in proposed])
        association = await self._dialer.dial(place, list(proposed))
        try:
            return [await self._stored(row, association.channel) for row in rows]
        finally:
            await association.close()

    async def _stored(self, row: InstanceRow, channel: Channel) -> StoreOutcome:
        loop = asyncio.get_running_loop()
        try:
            dataset = await loop.run_in_executor(self._threads, self._opened, row, channel)
        except NotFound:  # deleted meanwhile: there is nothing to send
            return StoreOutcome(row, 0)
        except IndexUnreachable:
            raise
        except (NotAcceptable, StoreError) as error:
            return StoreOutcome(row, 0, error.detail)
        try:
            return StoreOutcome(row, await channel.store(dataset))
        finally:
            channel.close(dataset)

    def _opened(self, row: InstanceRow, channel: Channel) -> OutgoingDataset:
        return channel.opened(self._retrieve.dataset(row.key, channel.syntaxes))
