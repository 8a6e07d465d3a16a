"""Entries as messages of DICOM PS3.15 A.5, checked by its schema, and as frames of syslog."""

import re
from base64 import b64decode
from pathlib import Path

import pytest
from lxml import etree

from streamsrv.audit.entries import AuditEntry, Event, EventOutcome
from streamsrv.audit.messages import CODES, audit_message, syslog_frame

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit_message.rng")))
AT = 1_700_000_000.25
EXAMPLE = AuditEntry(
    at=AT,
    event=Event.ACCESSED,
    user="key:anna",
    client="2001:db8::1",
    study="1.2.3",
    series="1.2.3.4",
    instance="1.2.3.4.5",
    patient_id="ID 1",
    patient_name="Müller^\x1b山田<&>",
    query="/v2/studies?PatientName=M%C3%BCller",
    request="abc",
    detail="GET got 404",
)


def parsed(entry):
    found = etree.fromstring(audit_message(entry, "pacs.example"))
    SCHEMA.assertValid(found)
    return found


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("outcome", EventOutcome)
def test_every_message_conforms_to_the_schema(event, outcome):
    parsed(EXAMPLE._replace(event=event, outcome=outcome))
    found = parsed(AuditEntry(AT, event, outcome))
    assert found.find("EventIdentification").get("EventOutcomeIndicator") == str(int(outcome))


def test_the_schema_refuses_what_it_should():
    found = parsed(EXAMPLE)
    found.remove(found.find("AuditSourceIdentification"))
    assert not SCHEMA.validate(found)


def test_the_parts_of_a_message():
    found = parsed(EXAMPLE)
    event = found.find("EventIdentification")
    assert event.get("EventDateTime") == "2023-11-14T22:13:20.250Z"
    assert dict(event.find("EventID").attrib) == {
        "csd-code": "110103",
        "codeSystemName": "DCM",
        "originalText": "DICOM Instances Accessed",
    }
    user, server = found.findall("ActiveParticipant")
    assert (user.get("UserID"), user.get("UserIsRequestor")) == ("key:anna", "true")
    assert (user.get("NetworkAccessPointID"), user.get("NetworkAccessPointTypeCode")) == ("2001:db8::1", "2")
    assert server.get("NetworkAccessPointID") == "pacs.example"
    study, patient = found.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    assert study.find("ParticipantObjectIDTypeCode").get("csd-code") == "110180"
    assert patient.get("ParticipantObjectID") == "ID 1"
    assert patient.findtext("ParticipantObjectName") == "Müller^\N{REPLACEMENT CHARACTER}山田<&>"


def test_a_query_has_its_values():
    found = parsed(EXAMPLE._replace(event=Event.QUERY, study="", patient_id="", patient_name=""))
    (query,) = found.findall("ParticipantObjectIdentification")
    assert b64decode(query.findtext("ParticipantObjectQuery")).decode() == EXAMPLE.query
    roles = [each.find("RoleIDCode").get("originalText") for each in found.findall("ActiveParticipant")]
    assert roles == ["Source Role ID", "Destination Role ID"]


def test_every_event_has_codes():
    assert CODES.keys() == set(Event)


def test_a_frame_has_the_length_of_its_message():
    frame = syslog_frame(EXAMPLE._replace(outcome=EventOutcome.MINOR_FAILURE), 7, "pacs.example")
    length, _, message = frame.partition(b" ")
    assert int(length) == len(message)
    head = b'<84>1 2023-11-14T22:13:20.250Z pacs.example streamsrv - DICOM+RFC3881 [meta sequenceId="7"] '
    assert message.startswith(head + b"\xef\xbb\xbf<?xml")
    assert re.search(rb'sequenceId="1"', syslog_frame(EXAMPLE, 2_147_483_648, "pacs.example"))
