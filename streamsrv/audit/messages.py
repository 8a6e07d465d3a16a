"""Entries as messages of DICOM PS3.15 A.5, and as syslog messages (RFC 5424, RFC 5425).

Rules of this file
- The table of events gives EventID, EventActionCode and EventTypeCode (PS3.15 A.5.3). Codes of the scheme
  99STREAMSRV are for alerts that have none in the standard.
- Names and queries may hold any text. XML has no control characters: U+FFFD replaces them in names. Queries
  are base64.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from streamsrv.audit.entries import SERVER, AuditEntry, Event, EventOutcome, timestamp

# The search of this service corresponds to this SOP class (Study Root Query/Retrieve - FIND).
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MSGID = "DICOM+RFC3881"
FACILITY = 10  # security and authorization (RFC 5424 6.2.1)
SEVERITIES = {
    EventOutcome.SUCCESS: 5,
    EventOutcome.MINOR_FAILURE: 4,
    EventOutcome.SERIOUS_FAILURE: 3,
    EventOutcome.MAJOR_FAILURE: 2,
}
DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>'
BOM = b"\xef\xbb\xbf"
# RFC 5424 A.2: sequence numbers wrap behind this one.
MOST_SEQUENCE = 2_147_483_647
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class AuditCode(NamedTuple):
    code: str
    text: str
    scheme: str = "DCM"


class EventCodes(NamedTuple):
    event: AuditCode
    action: str
    kind: AuditCode | None = None


_ACTIVITY = AuditCode("110100", "Application Activity")
_ACCESSED = AuditCode("110103", "DICOM Instances Accessed")
_TRANSFERRED = AuditCode("110104", "DICOM Instances Transferred")
_ALERT = AuditCode("110113", "Security Alert")
_AUTHENTICATION = AuditCode("110114", "User Authentication")
CODES = {
    Event.STARTED: EventCodes(_ACTIVITY, "E", AuditCode("110120", "Application Start")),
    Event.STOPPED: EventCodes(_ACTIVITY, "E", AuditCode("110121", "Application Stop")),
    Event.LOG_USED: EventCodes(AuditCode("110101", "Audit Log Used"), "R"),
    Event.LOGIN: EventCodes(_AUTHENTICATION, "E", AuditCode("110122", "Login")),
    Event.LOGOUT: EventCodes(_AUTHENTICATION, "E", AuditCode("110123", "Logout")),
    Event.QUERY: EventCodes(AuditCode("110112", "Query"), "E"),
    Event.ACCESSED: EventCodes(_ACCESSED, "R"),
    Event.SENT: EventCodes(_TRANSFERRED, "R"),
    Event.STORED: EventCodes(_TRANSFERRED, "C"),
    Event.DELETED: EventCodes(_ACCESSED, "D"),
    Event.STUDY_DELETED: EventCodes(AuditCode("110105", "DICOM Study Deleted"), "D"),
    Event.REFUSED: EventCodes(_ALERT, "E", AuditCode("110132", "Use of Restricted Function")),
    Event.BURST: EventCodes(_ALERT, "E", AuditCode("burst", "Too Many Requests", "99STREAMSRV")),
    Event.RIGHTS_CHANGED: EventCodes(_ALERT, "E", AuditCode("110137", "User Security Attributes Changed")),
    Event.RECORDING_RESUMED: EventCodes(_ALERT, "E", AuditCode("110134", "Audit Recording Started")),
    Event.LINE_TORN: EventCodes(_ALERT, "E", AuditCode("110133", "Audit Recording Stopped")),
    Event.FILES_REMOVED: EventCodes(
        _ALERT, "E", AuditCode("removed", "Audit Files Removed by Age", "99STREAMSRV")
    ),
}
_APPLICATION = AuditCode("110150", "Application")
_DESTINATION = AuditCode("110152", "Destination Role ID")
_SOURCE = AuditCode("110153", "Source Role ID")
# Events in which data go from the user to this server (True) or from it to the user.
_FROM_USER = {Event.QUERY: True, Event.STORED: True, Event.SENT: False}


def audit_message(entry: AuditEntry, host: str) -> bytes:
    """The AuditMessage of PS3.15 A.5.1 as UTF-8. `host` is the name of this machine."""
    codes = CODES[entry.event]
    root = Element("AuditMessage")
    event = SubElement(
        root,
        "EventIdentification",
        EventActionCode=codes.action,
        EventDateTime=timestamp(entry.at),
        EventOutcomeIndicator=str(int(entry.outcome)),
    )
    _code(event, "EventID", codes.event)
    if codes.kind is not None:
        _code(event, "EventTypeCode", codes.kind)
    if entry.detail:
        SubElement(event, "EventOutcomeDescription").text = _tame(entry.detail)
    if entry.user != SERVER and (entry.user or entry.client):
        _user(root, entry)
    _server(root, entry, host)
    source = SubElement(root, "AuditSourceIdentification", AuditSourceID=f"{SERVER}@{host}")
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    _objects(root, entry)
    text: bytes = tostring(root, encoding="utf-8", xml_declaration=False)
    return DECLARATION + text


def _user(root: Element, entry: AuditEntry) -> None:
    """The requester, at the address that the server saw."""
    attributes = {"UserID": _tame(entry.user), "UserIsRequestor": "true"}
    if entry.client:
        attributes |= _access_point(entry.client)
    found = SubElement(root, "ActiveParticipant", attributes)
    from_user = _FROM_USER.get(entry.event)
    if from_user is not None:
        _code(found, "RoleIDCode", _SOURCE if from_user else _DESTINATION)


def _server(root: Element, entry: AuditEntry, host: str) -> None:
    attributes = {"UserID": SERVER, "UserIsRequestor": "false"}
    found = SubElement(root, "ActiveParticipant", attributes | _access_point(host))
    from_user = _FROM_USER.get(entry.event)
    if from_user is not None:
        _code(found, "RoleIDCode", _DESTINATION if from_user else _SOURCE)
    elif entry.event in (Event.STARTED, Event.STOPPED):
        _code(found, "RoleIDCode", _APPLICATION)


def _access_point(name: str) -> dict[str, str]:
    """1: the name of a machine, 2: an address."""
    kind = "2"
    try:
        ipaddress.ip_address(name)
    except ValueError:
        kind = "1"
    return {"NetworkAccessPointID": _tame(name), "NetworkAccessPointTypeCode": kind}


def _objects(root: Element, entry: AuditEntry) -> None:
    if entry.event is Event.LOG_USED:
        uri = AuditCode("12", "URI", "RFC-3881")
        log = _object(root, "audit", "2", "13", uri)
        SubElement(log, "ParticipantObjectName").text = "Security Audit Log"
    if entry.event is Event.QUERY:
        query = _object(root, STUDY_ROOT_FIND, "2", "3", AuditCode("110181", "SOP Class UID"))
        SubElement(query, "ParticipantObjectQuery").text = _base64(entry.query)
        _detail(query, "QueryEncoding", "UTF-8")
    if entry.study:
        study = _object(root, entry.study, "2", "3", AuditCode("110180", "Study Instance UID"))
        SubElement(study, "ParticipantObjectName").text = _tame(entry.study)
        if entry.series:
            _detail(study, "SeriesInstanceUID", entry.series)
        if entry.instance:
            _detail(study, "SOPInstanceUID", entry.instance)
    if entry.patient_id or entry.patient_name:
        number = AuditCode("2", "Patient Number", "RFC-3881")
        patient = _object(root, entry.patient_id, "1", "1", number)
        SubElement(patient, "ParticipantObjectName").text = _tame(entry.patient_name)


def _object(root: Element, name: str, kind: str, role: str, code: AuditCode) -> Element:
    attributes = {
        "ParticipantObjectID": _tame(name),
        "ParticipantObjectTypeCode": kind,
        "ParticipantObjectTypeCodeRole": role,
    }
    found = SubElement(root, "ParticipantObjectIdentification", attributes)
    _code(found, "ParticipantObjectIDTypeCode", code)
    return found


def _detail(parent: Element, kind: str, value: str) -> None:
    SubElement(parent, "ParticipantObjectDetail", type=kind, value=_base64(value))


def _code(parent: Element, name: str, code: AuditCode) -> None:
    attributes = {"csd-code": code.code, "codeSystemName": code.scheme, "originalText": code.text}
    SubElement(parent, name, attributes)


def _base64(text: str) -> str:
    return b64encode(text.encode("utf-8", "replace")).decode()


def _tame(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def syslog_frame(entry: AuditEntry, number: int, host: str) -> bytes:
    """A message of RFC 5424 in the frame of RFC 5425 4.3 (its length, a blank, the message). `number` is that
    of the entry: a receiver tells by it a message that was sent twice."""
    priority = FACILITY * 8 + SEVERITIES[entry.outcome]
    sequence = (number - 1) % MOST_SEQUENCE + 1
    head = f'<{priority}>1 {timestamp(entry.at)} {host} {SERVER} - {MSGID} [meta sequenceId="{sequence}"] '
    message = head.encode("ascii", "replace") + BOM + audit_message(entry, host)
    return b"%d %s" % (len(message), message)
