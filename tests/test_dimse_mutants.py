"""Wrong bytes on the port of DIMSE, in each service and in the negotiation: an A-ABORT or a rejection, and
the next association works."""

import os
import random
import socket
import struct

import clinic
import pytest
from dimse_archive import Archive, sample
from dimse_client import (
    ABORT,
    DATA,
    REJECT,
    DimseClient,
    associate_request,
    command_set,
    item,
    message,
    pdu,
    pdv,
)
from dimse_studies import STUDY, made
from live_server import free_port
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage

SOAK = int(os.environ.get("SOAK", "1"))
MUTANTS = 60 if SOAK == 1 else 10_000
ACCEPT, RELEASE, RELEASED = 2, 5, 6
FIND, MOVE, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
COMMITMENT = "1.2.840.10008.1.20.1"
MESSAGE_ID = struct.pack("<HHI", 0, 0x0110, 2)
END = pdu(RELEASE, bytes(4))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    flags = (
        "--dimse-peers",
        "CT1 -> store search read",
        "--dimse-destinations",
        f"AWAY@127.0.0.1:{free_port()}",
    )
    running = Archive(tmp_path_factory.mktemp("mutants"), *flags)
    assert clinic.store(f"{running.server.url}/studies", [made(STUDY, 1)]).status == 200
    yield running
    running.end()


def asked(**keys):
    """The dataset of an identifier, in Explicit VR Little Endian."""
    dataset = Dataset()
    for name, value in keys.items():
        setattr(dataset, name, value)
    content = DicomBytesIO()
    content.is_little_endian, content.is_implicit_VR = True, False
    write_dataset(content, dataset)
    return content.getvalue()


def query(model, field, identifier, destination=""):
    values = {0x0002: model, 0x0100: field, 0x0110: 1, 0x0600: destination, 0x0700: 0, 0x0800: 1}
    values = {tag: value for tag, value in values.items() if value != ""}
    return associate_request(sop_class=model) + pdv(command_set(values), 3) + pdv(identifier, 2) + END


def conversations():
    """The bytes of a peer, by what they ask for."""
    key, dataset = sample(67, 1)
    study = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}
    names = {"PatientName": "A*", "StudyDate": "20200101-", "SpecificCharacterSet": "ISO_IR 192"}
    roles = item(0x54, struct.pack(">H", len(CTImageStorage)) + CTImageStorage.encode() + b"\1\1")
    fuzzy = item(0x56, struct.pack(">H", len(FIND)) + FIND.encode() + b"\1\1\1")
    contexts = [
        (FIND, "1.2.840.10008.1.2.1"),
        (CTImageStorage, "1.2.840.10008.1.2.4.70"),
        ("1.2.3.4", "1.2.840.10008.1.2"),
    ]
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, f"{STUDY}.1.1"
    action = {0x0003: COMMITMENT, 0x0100: 0x0130, 0x0110: 1, 0x0800: 1}
    action |= {0x1001: "1.2.840.10008.1.20.1.1", 0x1008: 1}
    commitment = asked(TransactionUID="1.2.9", ReferencedSOPSequence=[reference])
    return {
        "negotiation": associate_request(window=3, others=contexts, user=roles + fuzzy) + END,
        "C-STORE": associate_request() + message(key[2], dataset, piece=500) + END,
        "C-FIND": query(FIND, 0x20, asked(**study | names)),
        "C-MOVE": query(MOVE, 0x21, asked(**study), destination="AWAY"),
        "C-GET": query(GET, 0x10, asked(**study)),
        "N-ACTION": associate_request(sop_class=COMMITMENT)
        + pdv(command_set(action), 3)
        + pdv(commitment, 2)
        + END,
    }


def mutated(chance, whole):
    mutant = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(mutant))
        if chance.random() < 0.1:
            del mutant[at : at + chance.randint(1, 8)]
        else:
            mutant[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(mutant)


def kinds_of(answer):
    found = []
    while answer:
        kind, length = struct.unpack_from(">BxI", answer)
        found.append(kind)
        answer = answer[6 + length :]
    return found


def rest_of(connection):
    """Everything until the server closes the connection."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def works(archive):
    assert "Traceback" not in archive.log()
    archive.client().release()


@pytest.mark.parametrize(("name", "whole"), conversations().items(), ids=conversations())
def test_mutants_of_a_request(archive, name, whole):
    chance, endings = random.Random(name), {ABORT: 0, REJECT: 0, DATA: 0, RELEASED: 0}
    for number in range(MUTANTS + 1):
        with socket.create_connection(("127.0.0.1", archive.port), timeout=30) as connection:
            connection.sendall(mutated(chance, whole) if number else whole)
            connection.shutdown(socket.SHUT_WR)
            kinds = kinds_of(rest_of(connection))
        assert set(kinds) <= {ACCEPT, REJECT, DATA, RELEASED, ABORT}
        assert not {ABORT, REJECT, RELEASED} & set(kinds[:-1])
        assert number or kinds[0] == ACCEPT, kinds
        for kind in endings:
            endings[kind] += kind in kinds
    assert endings[ABORT] > MUTANTS / 20
    assert endings[ABORT] + endings[REJECT] < MUTANTS
    works(archive)


def begun_get(archive):
    """A client whose C-GET has brought it an instance, and the command set of the response."""
    roles = item(0x54, struct.pack(">H", len(CTImageStorage)) + CTImageStorage.encode() + b"\1\1")
    context = [(CTImageStorage, "1.2.840.10008.1.2.1")]
    identifier = asked(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY)
    asks = pdv(command_set({0x0002: GET, 0x0100: 0x10, 0x0110: 1, 0x0700: 0, 0x0800: 1}), 3)
    client = DimseClient(archive.port, sop_class=GET, others=context, user=roles)
    client.socket.sendall(asks + pdv(identifier, 2))
    _, command = client.receive()
    at = command.index(MESSAGE_ID) + len(MESSAGE_ID)
    values = {0x0002: CTImageStorage, 0x0100: 0x8001, 0x0800: 0x0101, 0x0900: 0}
    values[0x0120] = int.from_bytes(command[at : at + 2], "little")
    while not client.receive()[1][5] & 2:
        pass
    return client, command_set(values)


def test_a_request_in_the_middle_of_a_c_get(archive):
    """Responses behind it could not be read, so it ends the association at once."""
    client, _ = begun_get(archive)
    client.socket.sendall(pdv(command_set({0x0002: GET, 0x0100: 0x10, 0x0110: 2, 0x0700: 0, 0x0800: 1}), 3))
    assert kinds_of(rest_of(client.socket)) == [ABORT]
    client.close()
    works(archive)


def test_mutants_of_the_response_to_a_sub_operation(archive):
    """The peer of a C-GET takes an instance, and answers with wrong bytes."""
    chance, aborted = random.Random(3), 0
    for number in range(MUTANTS // 2 + 1):
        client, command = begun_get(archive)
        response = pdv(command, 3, context=3)
        client.socket.sendall(mutated(chance, response) if number else response)
        if not number:
            assert client.response() == (1, 0)
        client.socket.shutdown(socket.SHUT_WR)
        kinds = kinds_of(rest_of(client.socket))
        assert set(kinds) <= {DATA, ABORT}
        assert ABORT not in kinds[:-1]
        aborted += ABORT in kinds
        client.close()
    assert aborted > MUTANTS / 20
    works(archive)


def test_a_destination_that_answers_with_mutants(tmp_path):
    """Of a C-MOVE: the acceptance of its association has wrong bytes."""
    chance, port = random.Random(4), free_port()
    archive = Archive(
        tmp_path,
        *("--dimse-peers", "CT1 -> search read", "--dimse-destinations", f"BAD@127.0.0.1:{port}"),
    )
    try:
        assert clinic.store(f"{archive.server.url}/studies", [made(STUDY, 1)]).status == 200
        values = {0x0002: MOVE, 0x0100: 0x21, 0x0110: 1, 0x0600: "BAD", 0x0700: 0, 0x0800: 1}
        asks = pdv(command_set(values), 3) + pdv(asked(QueryRetrieveLevel="STUDY", StudyInstanceUID=STUDY), 2)
        accepted = archive.client(calling="CT1", sop_class=MOVE).answer
        with socket.create_server(("127.0.0.1", port)) as listener:
            listener.settimeout(30)
            for _ in range(min(MUTANTS // 4, 200)):
                client = archive.client(calling="CT1", sop_class=MOVE)
                client.socket.sendall(asks)
                destination, _ = listener.accept()
                with destination:
                    destination.settimeout(30)
                    destination.recv(65536)
                    destination.sendall(mutated(chance, pdu(*accepted)))
                    destination.shutdown(socket.SHUT_WR)
                    rest_of(destination)
                assert client.response()[1] in (0xA702, 0xB000)
                client.socket.sendall(END)
                client.socket.shutdown(socket.SHUT_WR)
                # Before it the list of instances that were not sent, if the destination took an association.
                assert kinds_of(rest_of(client.socket))[-1] == RELEASED
                client.close()
        assert "Traceback" not in archive.log()
    finally:
        archive.end()
