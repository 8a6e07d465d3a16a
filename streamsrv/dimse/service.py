"""The associations of one worker: accepts connections, admits peers, counts, drains.

All workers share the listening sockets, as for HTTP. After each connection a worker pauses for a moment, in
which the others accept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Sequence

from streamsrv.audit.entries import ANONYMOUS, AuditEntry, Event, EventOutcome
from streamsrv.dimse.association import Association, AssociationLimits, Rejection
from streamsrv.dimse.connections import PlainConnection, TlsConnection
from streamsrv.dimse.peers import DimsePeers
from streamsrv.dimse.protocol.pdus import AssociateRequest
from streamsrv.dimse.rooms import DimsePeer, DimseRooms
from streamsrv.dimse.services.commitment_log import KeptCommitment
from streamsrv.dimse.services.reporting import CommitmentReport
from streamsrv.metrics import Gauge, RequestCounts, RequestKind, Way
from streamsrv.settings import Settings
from streamsrv.web.connection.certificates import ServerCertificate

log = logging.getLogger("streamsrv.dimse")

SWEEP = 1.0  # seconds
ACCEPT_PAUSE = 0.0005
NO_ROOM_PAUSE = 0.25  # also if there is no descriptor left
# Connections beyond `max_associations`, so that they can be rejected with a reason.
BEYOND = 32


class DimseService:
    """Must be made inside the running loop."""

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[socket.socket],
        rooms: DimseRooms,
        counts: RequestCounts,
        certificate: ServerCertificate | None = None,
    ) -> None:
        """With a certificate the listeners speak TLS."""
        self._settings = settings
        self._certificate = certificate
        self._listeners = listeners
        self._rooms = rooms
        self._counts = counts
        self._peers = DimsePeers(settings)
        self._limits = AssociationLimits(
            settings.dimse_max_pdu,
            settings.head_timeout,
            settings.dimse_idle_timeout,
            settings.stall_timeout,
            settings.min_rate,
        )
        self._tasks: dict[asyncio.Task[None], Association] = {}
        self._accepting: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        counts.watch(Gauge.ASSOCIATIONS, lambda: self.associations)

    @property
    def associations(self) -> int:
        return sum(each.is_established for each in self._tasks.values())

    def start(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self._accepting.append(self._loop.create_task(self._accept(listener)))
        self._rooms.background.start(self._take_over())

    async def _take_over(self) -> None:
        """Reports the commitments of processes that have ended, to each peer one after the other."""
        log_of_all = self._rooms.commitments
        left = await self._loop.run_in_executor(self._rooms.threads, lambda: list(log_of_all.left()))
        peers: dict[str, list[KeptCommitment]] = {}
        for kept in left:
            peers.setdefault(kept.request.title, []).append(kept)
        for commitments in peers.values():
            self._rooms.background.start(self._report(commitments))

    async def _report(self, commitments: Sequence[KeptCommitment]) -> None:
        for kept in commitments:
            title, address, *_ = kept.request
            principal = self._peers.principal(title, address)
            if principal is None:
                log.warning("a commitment is not reported: no entry of `dimse_peers` names %s", title)
                await self._loop.run_in_executor(self._rooms.threads, kept.drop)
                continue
            peer = DimsePeer(principal, address)
            await CommitmentReport(self._rooms, peer, kept, self._settings.aet.strip()).run()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            if len(self._tasks) >= self._settings.max_associations + BEYOND:
                await asyncio.sleep(NO_ROOM_PAUSE)
                continue
            try:
                connection, address = await self._loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.warning("an association cannot be accepted: %s", error.strerror)
                await asyncio.sleep(NO_ROOM_PAUSE)
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(connection, str(address[0]))
            await asyncio.sleep(ACCEPT_PAUSE)

    def _serve(self, connection: socket.socket, address: str) -> None:
        made = PlainConnection(connection, address)
        if self._certificate is not None:
            # A context for each association: a renewed certificate holds from the next one on.
            made = TlsConnection(connection, self._certificate.context(self._settings), address)
        association = Association(
            *(made, self._limits, self._rooms, self._admit, self._count),
            title=self._settings.aet.strip(),
        )
        task = self._loop.create_task(association.run())
        self._tasks[task] = association
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))

    # The decision on an association (PS3.8 Table 9-21)

    def _admit(self, request: AssociateRequest, address: str) -> DimsePeer | Rejection:
        found = self._principal(request, address)
        if isinstance(found, Rejection) and found.result == 1 and self._rooms.audit is not None:
            audit = self._rooms.audit
            outcome, detail = EventOutcome.MINOR_FAILURE, f"A-ASSOCIATE-RJ: {found.sentence}"
            audit.note(AuditEntry(audit.clock(), Event.LOGIN, outcome, ANONYMOUS, address, detail=detail))
        return found

    def _principal(self, request: AssociateRequest, address: str) -> DimsePeer | Rejection:
        settings = self._settings
        if request.called != settings.aet.strip():
            return Rejection(1, 1, 7, "it calls an AE title that is not `aet`")
        principal = self._peers.principal(request.calling, address)
        if principal is None:
            return Rejection(1, 1, 3, "no entry of `dimse_peers` has its AE title and address")
        if self.associations >= settings.max_associations:
            return Rejection(2, 3, 1, f"{settings.max_associations} associations are open")
        share = settings.max_associations_per_peer
        if share and self._of_addresses()[address] >= share:
            return Rejection(2, 3, 2, f"{share} associations of its address are open")
        return DimsePeer(principal, address)

    def _of_addresses(self) -> Counter[str]:
        return Counter(each.address for each in self._tasks.values() if each.is_established)

    def _count(self, kind: RequestKind, status: int, received: int, seconds: float) -> None:
        self._counts.tally(kind, status, Way.PLAIN).add(0, received, seconds)

    def _sweep(self) -> None:
        self._sweeping = self._loop.call_later(SWEEP, self._sweep)
        now = time.monotonic()
        for association in list(self._tasks.values()):
            association.sweep(now)

    # The end

    async def drain(self, patience: float) -> bool:
        """Accepts no more, and ends each association after its operations. Returns False if some were cut
        off after so many seconds."""
        for task in self._accepting:
            task.cancel()
        for listener in self._listeners:
            listener.close()
        for association in self._tasks.values():
            association.drain()
        if not self._tasks:
            return True
        _, late = await asyncio.wait(list(self._tasks), timeout=patience)
        for task in late:
            self._tasks[task].end("the server ends")
        if late:
            await asyncio.wait(late, timeout=2)
        return not late

    def stop(self) -> None:
        self._sweeping.cancel()
        self._rooms.background.stop()
        for task in self._tasks:
            task.cancel()
