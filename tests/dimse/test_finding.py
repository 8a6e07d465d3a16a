"""C-FIND of a search that never ends: how far it runs ahead of its peer, and its end."""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from streamsrv.dimse.protocol.commands import Command, DimseStatus
from streamsrv.dimse.protocol.models import STUDY_ROOT
from streamsrv.dimse.rooms import Conversation, DimsePeer, DimseRooms, UsedContext
from streamsrv.dimse.services.finding import PORTION, FindOperation
from streamsrv.errors import ContentTooLarge
from streamsrv.query.matching import NO_OPTIONS
from streamsrv.web.access.principal import Principal, Right

EXPLICIT = "1.2.840.10008.1.2.1"


class Searching:
    """Yields matches, and counts those that were taken."""

    def __init__(self, last=None):
        self.taken = 0
        self._last = last

    def texts(self, query, client):
        for number in itertools.count():
            self.taken += 1
            if number == self._last:
                raise ContentTooLarge("too much")
            yield b'{"0020000D":{"vr":"UI","Value":["1.2.%d"]}}' % number


def found(searching, send):
    """The outcome of an operation. `send` is called with the operation and the bytes."""
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", ""
    content = DicomBytesIO()
    content.is_little_endian, content.is_implicit_VR = True, False
    write_dataset(content, asked)
    command = Command(0x20, 7, "1.2.840.10008.5.1.4.1.2.2.1", "", True)

    async def run(threads):
        nothing = dict.fromkeys(
            ("ingest", "retrieve", "dialer", "background", "batches", "buffers", "audit", "commitments")
        )
        rooms = DimseRooms(
            **nothing, searches=lambda principal: searching, threads=threads, on_failure=lambda error: None
        )
        peer = DimsePeer(Principal("dimse:WS", Right.SEARCH), "127.0.0.1")

        async def sent(content):
            send(operation, content)

        talk = Conversation(rooms, peer, 16_384, sent, None, NO_OPTIONS, "STREAMSRV")
        operation = FindOperation(talk, command, STUDY_ROOT, UsedContext(1, command.sop_class, EXPLICIT))
        await operation.take(memoryview(content.getvalue()))
        return await operation.finish()

    with ThreadPoolExecutor(1) as threads:
        return asyncio.run(run(threads))


def test_the_pace_is_that_of_the_peer():
    """Of 20,000 matches never more than one portion is taken before the one before it was sent."""
    searching, ahead, sizes = Searching(), [], []

    def send(operation, content):
        ahead.append(searching.taken)
        sizes.append(len(content))
        if searching.taken >= 20_000:
            operation.cancel()

    assert found(searching, send).status is DimseStatus.CANCEL
    assert ahead == [PORTION * number for number in range(1, len(ahead) + 1)]
    assert max(sizes) < 64 << 10


def test_a_search_that_reads_too_much_in_the_middle():
    sent = []
    outcome = found(Searching(last=3 * PORTION + 5), lambda operation, content: sent.append(content))
    assert outcome.status is DimseStatus.OUT_OF_RESOURCES
    assert outcome.comment == "too much"
    assert len(sent) == 3
