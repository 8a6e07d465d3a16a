"""PDUs and command sets beside those of pynetdicom, and mutants of a whole association."""

import itertools
import random
import struct

import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, pdu
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)

from streamsrv.dimse.protocol import pdus
from streamsrv.dimse.protocol.commands import Command, DimseStatus, command_of, response
from streamsrv.dimse.protocol.negotiation import accept, is_storage
from streamsrv.dimse.protocol.pdus import (
    AbortReason,
    AbortSource,
    AssociateRequest,
    Fragment,
    UpperLayerError,
)
from streamsrv.dimse.protocol.upper_layer import Ending, LayerState, UpperLayer

LONGEST = 16384
MUTANTS = 10_000
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG, PRIVATE = "1.2.840.10008.1.2.4.70", "1.2.3.4"


def request(window=(4, 1)):
    """An A-ASSOCIATE-RQ of pynetdicom."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "CT1", "STREAMSRV"
    ae = AE()
    ae.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    ae.add_requested_context("1.2.840.10008.1.1", ImplicitVRLittleEndian)
    contexts = ae.requested_contexts
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received, implementation.implementation_class_uid = 16382, "1.2.3"
    role, operations = SCP_SCU_RoleSelectionNegotiation(), AsynchronousOperationsWindowNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = CTImageStorage, True, True
    operations.maximum_number_operations_invoked, operations.maximum_number_operations_performed = window
    primitive.user_information = [longest, implementation, role, operations]
    encoded = pdu.A_ASSOCIATE_RQ()
    encoded.from_primitive(primitive)
    return encoded.encode()


def data(context, command, dataset, length=1000):
    """P-DATA-TF PDUs with one PDV each."""
    for control, content in ((1, command), (0, dataset)):
        pieces = [content[at : at + length] for at in range(0, len(content), length)]
        for piece in pieces:
            last = 2 * (piece is pieces[-1])
            pdv = struct.pack(">IBB", len(piece) + 2, context, control | last) + piece
            yield struct.pack(">BxI", 4, len(pdv)) + pdv


def store_command():
    """The command set of a C-STORE-RQ by pynetdicom."""
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = 7, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.4"
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    message.command_set.CommandDataSetType = 1
    content = next(iter(message.encode_msg(1, 0))).presentation_data_value_list[0][1]
    return content[1:]


def fed(layer, content, step=1 << 20):
    """Events of the bytes, in pieces of `step`. The views of fragments are copied."""
    found = []
    for at in range(0, len(content), step):
        piece = content[at : at + step]
        while piece:
            space = layer.space()
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            piece = piece[count:]
            for event in layer.received(count):
                if isinstance(event, AssociateRequest):
                    layer.accepted()
                if isinstance(event, Fragment):
                    event = event._replace(view=bytes(event.view))
                found.append(event)
    return found


def test_a_request_of_pynetdicom_is_read():
    (found,) = fed(UpperLayer(LONGEST), request())
    assert (found.called, found.calling, found.version) == ("STREAMSRV", "CT1", 1)
    assert found.longest == 16382
    assert (found.window, found.has_window) == (4, True)
    assert found.implementation == "1.2.3"
    assert found.roles == ((CTImageStorage, 1, 1),)
    assert found.contexts[0] == (1, CTImageStorage, (EXPLICIT, IMPLICIT))
    assert [each.number for each in found.contexts] == [1, 3]


def test_pynetdicom_reads_the_accept():
    (asked,) = fed(UpperLayer(LONGEST), request())
    content = pdus.associate_accept(
        *(asked, accept(asked.contexts)),
        longest=131072,
        window=4,
        implementation=("1.2.3", "NAME"),
        roles=[(CTImageStorage, 1, 0)],
        extended=[(CTImageStorage, b"\1\0")],
    )
    read = pdu.A_ASSOCIATE_AC()
    read.decode(content)
    said = read.to_primitive()
    results = said.presentation_context_definition_results_list
    assert [(each.context_id, each.result, each.transfer_syntax[0]) for each in results] == [
        (1, 0, EXPLICIT),
        (3, 0, IMPLICIT),
    ]
    assert said.maximum_length_received == 131072
    assert (said.called_ae_title, said.calling_ae_title) == ("STREAMSRV", "CT1")
    items = {type(item).__name__: item for item in said.user_information}
    assert items["AsynchronousOperationsWindowNegotiation"].maximum_number_operations_invoked == 4
    role = items["SCP_SCU_RoleSelectionNegotiation"]
    assert (role.scu_role, role.scp_role) == (True, False)
    told = items["SOPClassExtendedNegotiation"]
    assert (told.sop_class_uid, told.service_class_application_information) == (CTImageStorage, b"\1\0")
    assert items["ImplementationVersionNameNotification"].implementation_version_name == "NAME"


def test_short_pdus_are_those_of_pynetdicom():
    rejected, aborted, released = pdu.A_ASSOCIATE_RJ(), pdu.A_ABORT_RQ(), pdu.A_RELEASE_RP()
    rejected.decode(pdus.associate_reject(2, 3, 1))
    aborted.decode(pdus.abort(2, 6))
    released.decode(pdus.release_response())
    assert (rejected.result, rejected.source, rejected.reason_diagnostic) == (2, 3, 1)
    assert (aborted.source, aborted.reason_diagnostic) == (2, 6)
    assert released.encode() == pdus.release_response()


def test_command_sets_are_those_of_pynetdicom():
    command = command_of(store_command())
    assert command == Command(1, 7, CTImageStorage, "1.2.3.4", True)
    sentence = "a sentence \\ of more than sixty-four characters, which is cut where it is too long"
    content = response(command, DimseStatus.DUPLICATE, sentence)
    message = DIMSEMessage()
    sent = list(pdus.data_pdus(1, content, 100, is_command=True))
    assert len(sent) == 2
    for each in sent:
        read = pdu.P_DATA_TF()
        read.decode(each)
        assert len(each) <= 106
        assert message.decode_msg(read.to_primitive()) is (each is sent[-1])
    said = message.message_to_primitive()
    assert isinstance(said, C_STORE)
    assert (said.Status, said.MessageIDBeingRespondedTo) == (0x0111, 7)
    assert (said.AffectedSOPClassUID, said.AffectedSOPInstanceUID) == (CTImageStorage, "1.2.3.4")
    assert said.ErrorComment == sentence.replace("\\", "?")[:64].strip()


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_fragments_arrive_in_any_pieces(step):
    dataset = random.Random(1).randbytes(5_500)
    messages = b"".join(data(1, store_command(), dataset)) * 3
    layer = UpperLayer(LONGEST)
    _, *found = fed(layer, request() + messages + bytes((5, 0, 0, 0, 0, 4, 0, 0, 0, 0)), step)
    assert found.pop() is Ending.RELEASED
    assert b"".join(each.view for each in found if not each.is_command) == dataset * 3
    assert b"".join(each.view for each in found if each.is_command) == store_command() * 3
    assert [each.is_last for each in found] == [True, False, False, False, False, False, True] * 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes((9, 0, 0, 0, 0, 4)), AbortReason.UNRECOGNIZED_PDU),
        (bytes((6, 0, 0, 0, 0, 4, 0, 0, 0, 0)), AbortReason.UNEXPECTED_PDU),
        (bytes((5, 0, 0, 0, 0, 5)), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, LONGEST + 1), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxIIBB", 4, 6, 1, 1, 3), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxIIBB", 4, 6, 3, 1, 3), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 0), AbortReason.INVALID_PARAMETER),
    ],
)
def test_reasons_of_aborts(content, reason):
    layer = UpperLayer(LONGEST)
    fed(layer, request())
    with pytest.raises(UpperLayerError) as found:
        fed(layer, content)
    assert (found.value.source, found.value.reason) == (AbortSource.PROVIDER, reason)


def test_before_an_association_the_user_aborts():
    """PS3.8 9.2.3, AA-1."""
    with pytest.raises(UpperLayerError) as found:
        fed(UpperLayer(LONGEST), b"GET / HTTP/1.1\r\n\r\n")
    assert (found.value.source, found.value.reason) == (AbortSource.USER, AbortReason.NOT_SPECIFIED)


def test_mutants_raise_no_other_error():
    """Changed, cut and repeated bytes of an association: events, or UpperLayerError."""
    chance = random.Random(11)
    whole = request() + b"".join(data(1, store_command(), bytes(300), 100))
    refused = 0
    for _ in range(MUTANTS):
        mutant = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(mutant))
            kind = chance.randrange(3)
            if kind == 0:
                mutant[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            elif kind == 1:
                del mutant[at : at + chance.randint(1, 20)]
            else:
                mutant[at:at] = mutant[at : at + chance.randint(1, 20)]
        layer = UpperLayer(LONGEST)
        try:
            events = fed(layer, bytes(mutant))
            for is_command, group in itertools.groupby(events[1:], lambda each: each.is_command):
                if is_command:
                    command_of(b"".join(each.view for each in group))
        except UpperLayerError:
            refused += 1
        assert len(layer.space()) < 1 << 21
    assert MUTANTS / 4 < refused < MUTANTS
    assert layer.state is not LayerState.CLOSING


def test_storage_classes():
    """Those of PS3.6 whose instances belong to a study, private ones, and none of another service."""
    without_study = {"200.1", "200.3", "200.7", "201.1"}
    for uid, (name, kind, *_) in UID_dictionary.items():
        if kind != "SOP Class" or not name:
            continue
        stores = ("Storage" in name and "Commitment" not in name) or "Hardcopy" in name
        apart = uid.startswith(("1.2.840.10008.1.3", "1.2.840.10008.5.1.4.38", "1.2.840.10008.5.1.4.39"))
        apart |= uid.startswith(tuple(f"1.2.840.10008.5.1.4.4{each}." for each in (3, 4, 5)))
        apart |= uid.removeprefix("1.2.840.10008.5.1.4.1.1.") in without_study
        if "Hardcopy" in name and "Storage" not in name:
            continue  # retired print classes
        assert is_storage(uid) == (stores and not apart), (uid, name)
    assert is_storage("1.3.46.670589.5.0.1")


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ((IMPLICIT, EXPLICIT), EXPLICIT),
        ((IMPLICIT, BIG), IMPLICIT),
        ((JPEG, EXPLICIT), JPEG),
        ((EXPLICIT, JPEG), EXPLICIT),
        ((PRIVATE, IMPLICIT), IMPLICIT),
        ((PRIVATE,), PRIVATE),
    ],
)
def test_choice_of_a_transfer_syntax(proposed, chosen):
    (found,) = accept([pdus.ProposedContext(1, CTImageStorage, proposed)])
    assert found == (1, 0, chosen)
