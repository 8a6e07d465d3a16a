"""A peer of forwarding that speaks DICOM's network protocol. Pixel processes start when the first instance
has to be decoded for it."""

from __future__ import annotations

from collections.abc import Sequence

from streamsrv.companions.delivery import NotDelivered, checked_address
from streamsrv.companions.forwarding import ALREADY, OUT_OF_RESOURCES, Refusal, StoredInstance
from streamsrv.dimse.destinations import destination_in
from streamsrv.dimse.sending import BatchSender
from streamsrv.events.hooks import Hook
from streamsrv.pixels.limits import pixel_limits
from streamsrv.pixels.pool import PixelPool
from streamsrv.retrieve import Retrieve
from streamsrv.settings import Settings
from streamsrv.store import Store

NOT_AUTHORIZED = 0x0124
_WARNINGS = range(0xB000, 0xC000)  # the instance is stored (PS3.4 B.2.3)


class AssociationPeer:
    """Instances that the peer takes in no syntax are refused. For one thread."""

    def __init__(self, hook: Hook, store: Store, settings: Settings) -> None:
        """Raises SettingsError."""
        self._hook = hook
        self._destination = destination_in(hook.url)
        self._pool = PixelPool(1, pixel_limits(settings), 0)
        self._sender = BatchSender(Retrieve(store, self._pool), settings)

    def close(self) -> None:
        self._sender.close()
        self._pool.close()

    def send(self, batch: Sequence[StoredInstance]) -> list[Refusal]:
        place, title = self._destination, self._destination.title
        address, _ = checked_address(place.host, place.port, local=self._hook.local)
        if not place.tls:  # else the certificate names the host, and proves it
            place = place._replace(host=address)
        try:
            outcomes = self._sender.send([each.row for each in batch], place)
        except OSError as fault:
            raise NotDelivered(f"{title}: {fault or type(fault).__name__}") from None
        reasons = [each.fault or self._reason(each.status) for each in outcomes]
        return [Refusal(each, reason) for each, reason in zip(batch, reasons, strict=True) if reason]

    def _reason(self, status: int) -> str:
        """Why the peer refuses an instance; empty if it has it. Raises NotDelivered."""
        if status in OUT_OF_RESOURCES or status == NOT_AUTHORIZED:
            raise NotDelivered(f"{self._destination.title}: status {status:04X}")
        return f"status {status:04X}" if status and status not in ALREADY and status not in _WARNINGS else ""
