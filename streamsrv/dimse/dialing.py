"""Associations that this server requests.

Strategy: one task reads, and gives each response to the operation that waits for it. The operation sends.

Rules of this file
- Only destinations of the settings are connected to: no peer can name another address.
- Every wait has an end: for the connection, the acceptance, each response and each portion that is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor

from streamsrv.dicom.explicit import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from streamsrv.dimse.channel import LONGEST_SENT, Channel, PeerLost, Piece
from streamsrv.dimse.connections import AT_ONCE, PlainConnection, TlsConnection
from streamsrv.dimse.destinations import MoveDestination, client_context, destination_of
from streamsrv.dimse.protocol import pdus
from streamsrv.dimse.protocol.commands import LONGEST_COMMAND, RESPONSE, command_of
from streamsrv.dimse.protocol.negotiation import ACCEPTED
from streamsrv.dimse.protocol.pdus import AbortSource, Acceptance, Fragment, ProposedContext, UpperLayerError
from streamsrv.dimse.protocol.upper_layer import AssociationRejected, LayerState, RequestorLayer
from streamsrv.settings import Settings
from streamsrv.web.connection.certificates import ServerCertificate

log = logging.getLogger("streamsrv.dimse")

MOST_CONTEXTS = 128  # of an association (PS3.8 9.3.2.2: odd numbers of one byte)
LINGER = 1.0  # seconds in which the peer answers a release


class Dialer:
    """Requests associations. Raises SettingsError for destinations that cannot be read."""

    def __init__(
        self, settings: Settings, threads: Executor, certificate: ServerCertificate | None = None
    ) -> None:
        """A destination with TLS is shown the certificate, unless there is `dimse_certificate`."""
        self._certificate = certificate
        self._settings = settings
        self._threads = threads
        self._destinations = {each.title: each for each in map(destination_of, settings.dimse_destinations)}

    def destination(self, title: str) -> MoveDestination | None:
        return self._destinations.get(title.strip())

    async def dial(
        self, destination: MoveDestination, proposed: Sequence[tuple[str, str]], *, is_scp: bool = False
    ) -> OutgoingAssociation:
        """Requests an association with a presentation context for each SOP class and transfer syntax.
        `is_scp` selects the role of the SCP. Raises PeerLost."""
        association = OutgoingAssociation(destination, self._settings, self._threads, self._context)
        try:
            async with asyncio.timeout(self._settings.head_timeout):
                await association.open(proposed[:MOST_CONTEXTS], is_scp=is_scp)
        except TimeoutError:
            await association.close()
            raise PeerLost(f"no association in {self._settings.head_timeout:g} s") from None
        except OSError as error:
            await association.close()
            raise PeerLost(error.strerror or str(error)) from None
        except UpperLayerError as error:
            await association.close()
            raise PeerLost(error.detail) from None
        except BaseException:
            await association.close()
            raise
        return association

    def _context(self) -> ssl.SSLContext:
        return client_context(self._settings, self._certificate)


class OutgoingAssociation:
    """Call `open`, use `channel`, and call `close`."""

    channel: Channel

    def __init__(
        self,
        destination: MoveDestination,
        settings: Settings,
        threads: Executor,
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        self._context = context
        self._destination = destination
        self._settings = settings
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._layer = RequestorLayer(settings.dimse_max_pdu)
        self._connection: PlainConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._command = bytearray()
        self._sending = asyncio.Lock()

    async def open(self, proposed: Sequence[tuple[str, str]], *, is_scp: bool) -> None:
        """Raises OSError and UpperLayerError."""
        where = self._destination
        context = self._context() if where.tls else None
        connected = await self._connected(where.host, where.port)
        if context is None:
            self._connection = PlainConnection(connected)
        else:
            self._connection = TlsConnection(connected, context, name=where.host)
        await self._connection.open()
        contexts = [
            ProposedContext(2 * at + 1, abstract, (syntax,)) for at, (abstract, syntax) in enumerate(proposed)
        ]
        request = pdus.associate_rq(
            *(where.title, self._settings.aet.strip(), contexts),
            longest=self._settings.dimse_max_pdu,
            implementation=(IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME),
            roles=[(uid, 0, 1) for uid in dict(proposed)] if is_scp else (),
        )
        await self._connection.send(request)
        acceptance = await self._accepted(self._connection)
        accepted: dict[str, dict[str, int]] = {}
        for number, result, _ in acceptance.contexts:
            if result == ACCEPTED and number % 2 and number // 2 < len(proposed):
                abstract, syntax = proposed[number // 2]
                accepted.setdefault(abstract, {})[syntax] = number
        self._layer.state = LayerState.ESTABLISHED
        longest = min(acceptance.longest or LONGEST_SENT, LONGEST_SENT)
        self.channel = Channel(
            *(self._send_message, self._threads, accepted),
            longest=max(longest, 64),
            patience=self._settings.dimse_idle_timeout,
        )
        self._reading = self._loop.create_task(self._read(self._connection))
        log.info("association to %s: %d of %d contexts", where.title, _number(accepted), len(proposed))

    async def _connected(self, host: str, port: int) -> socket.socket:
        """Tries the addresses of the host in their order."""
        last: OSError = OSError("it has no address")
        for family, kind, protocol, _, address in await self._loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            connection = socket.socket(family, kind, protocol)
            connection.setblocking(False)
            try:
                await self._loop.sock_connect(connection, address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            except OSError as error:
                connection.close()
                last = error
            except BaseException:
                connection.close()
                raise
        raise last

    async def _accepted(self, connection: PlainConnection) -> Acceptance:
        while count := await connection.receive_into(self._layer.space()):
            for event in self._layer.received(count):
                if isinstance(event, Acceptance):
                    return event
                if isinstance(event, AssociationRejected):
                    raise PeerLost(f"the association is rejected ({', '.join(map(str, event))})")
                raise PeerLost("the association is aborted")
        raise PeerLost("the connection is closed")

    async def _read(self, connection: PlainConnection) -> None:
        try:
            while count := await connection.receive_into(self._layer.space()):
                for event in self._layer.received(count):
                    if not isinstance(event, Fragment):
                        return
                    self._fragment(event)
        except UpperLayerError as error:
            log.warning("association to %s: %s", self._destination.title, error.detail)
        except OSError as error:
            log.info("association to %s broke: %s", self._destination.title, error.strerror)
        finally:
            self._layer.state = LayerState.CLOSING
            self.channel.fail()

    def _fragment(self, fragment: Fragment) -> None:
        if not fragment.is_command:
            raise UpperLayerError("a dataset that no response has")
        self._command += fragment.view
        if len(self._command) > LONGEST_COMMAND:
            raise UpperLayerError(f"a command set of more than {LONGEST_COMMAND} bytes")
        if fragment.is_last:
            command = command_of(bytes(self._command))
            self._command.clear()
            if not command.field & RESPONSE or not self.channel.take(command):
                raise UpperLayerError("a message that nothing waits for")

    async def _send_message(self, first: Piece, others: AsyncIterator[Piece]) -> None:
        """One that breaks off ends the association. Raises OSError."""
        async with self._sending:
            try:
                await self._put(first)
                async for piece in others:
                    await self._put(piece)
            except TimeoutError:
                raise PeerLost(f"it took less than {AT_ONCE} bytes in time") from None
            except OSError:
                raise
            except BaseException as error:
                raise PeerLost(f"a message broke off: {error}") from error

    async def _put(self, piece: Piece) -> None:
        if self._layer.state is not LayerState.ESTABLISHED or self._connection is None:
            raise PeerLost("the association has ended")
        await self._connection.send_paced(memoryview(piece), self._settings.stall_timeout)

    async def close(self) -> None:
        """Releases an association that is established and idle, else aborts it."""
        if self._connection is None:
            return
        established = self._layer.state is LayerState.ESTABLISHED and not self.channel.is_waiting
        last = pdus.release_request() if established else pdus.abort(AbortSource.USER, 0)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._connection.send(last)
                if established and self._reading is not None:
                    await asyncio.shield(self._reading)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        self._connection.close()


def _number(accepted: dict[str, dict[str, int]]) -> int:
    return sum(map(len, accepted.values()))
