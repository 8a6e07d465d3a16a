"""C-FIND of a real server: findscu and pynetdicom beside searches by HTTP, character sets, C-CANCEL."""

import itertools
import struct
import subprocess
import urllib.parse

import clinic
import pytest
from dimse_archive import Archive
from dimse_client import DATA, DimseClient, pdv
from kill_world import waited
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from streamsrv.audit.reading import entries_of

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

PATIENT_ROOT, STUDY_ROOT, PATIENT_ONLY = (f"1.2.840.10008.5.1.4.1.2.{number}.1" for number in (1, 2, 3))
SERIES_OF_MANY = 250
NAMES = {
    "1.2.91": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "1.2.92": "Wang^XiaoDong=王^小东",
    "1.2.93": "Äneas^Rüdiger",
    "1.2.94": "Люкceмбypг",
}


def made(study, series, number, **more):
    dataset = clinic.dataset(CTImageStorage, study, f"{study}.{series}", f"{study}.{series}.{number}")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality, dataset.InstanceNumber = "CT", str(number)
    dataset.PatientName, dataset.PatientID = NAMES.get(study, "Doe^Jane"), f"P {study}"
    for name, value in more.items():
        setattr(dataset, name, value)
    return clinic.file_of(dataset)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    peers = "WS -> search read,CT1 -> store,WARD -> search where PatientID=P 1.2.91"
    flags = ("--dimse-peers", peers, "--audit", "on", "--search-metadata", "200000")
    running = Archive(tmp_path_factory.mktemp("find"), *flags)
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP 1", "SPS 1"
    files = [made(study, 1, 1, StudyDate=f"2024010{at}") for at, study in enumerate(NAMES, 1)]
    files.append(made("1.2.91", 2, 1, Modality="MR", RequestAttributesSequence=[request]))
    files.append(made("1.2.95", 1, 1, PatientID="P 1.2.91", StudyDate="20230105", AccessionNumber="B*1"))
    assert clinic.store(f"{running.server.url}/studies", files).status == 200
    many = [made("1.2.96", 1, number) for number in range(1, SERIES_OF_MANY + 1)]
    assert clinic.store(f"{running.server.url}/studies", many).status == 200
    yield running
    running.end()


def associated(archive, model=STUDY_ROOT, title="WS", syntax=ExplicitVRLittleEndian, **options):
    ae = AE(title)
    ae.add_requested_context(model, syntax)
    association = ae.associate("127.0.0.1", archive.port, ae_title="STREAMSRV", **options)
    assert association.is_established
    return association


def query(level, **keys):
    """An identifier. Its values are not checked."""
    made = Dataset()
    for name, value in ({"QueryRetrieveLevel": level} | keys).items():
        tag = tag_for_keyword(name)
        made.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    return made


def found(association, asked, model=STUDY_ROOT):
    """The matches, and the statuses of all responses."""
    answers = list(association.send_c_find(asked, model))
    return [match for _, match in answers if match], [status.Status for status, _ in answers]


def find(archive, asked, model=STUDY_ROOT, **options):
    association = associated(archive, model, **options)
    try:
        return found(association, asked, model)
    finally:
        association.release()


def by_http(archive, level, pairs):
    path = {"STUDY": "studies", "SERIES": "series", "IMAGE": "instances"}[level]
    answer = clinic.ask(f"{archive.server.url}/{path}?{urllib.parse.urlencode({**pairs, 'limit': 1000})}")
    uid = {"STUDY": "0020000D", "SERIES": "0020000E", "IMAGE": "00080018"}[level]
    return [each[uid]["Value"][0] for each in answer.json()] if answer.status == 200 else []


SAME = [
    ("STUDY", {}),
    ("STUDY", {"PatientName": "yam*"}),
    ("STUDY", {"PatientName": "*王^小东"}),
    ("STUDY", {"PatientID": "P 1.2.9?"}),
    ("STUDY", {"StudyDate": "20240102-20240103"}),
    ("STUDY", {"StudyDate": "-20231231"}),
    ("STUDY", {"StudyDate": "20240101-", "StudyTime": "1015-"}),
    ("STUDY", {"ModalitiesInStudy": "MR"}),
    ("STUDY", {"AccessionNumber": "B*1"}),
    ("SERIES", {"StudyInstanceUID": "1.2.91"}),
    ("SERIES", {"StudyInstanceUID": ["1.2.92", "1.2.91", "1.2.404"]}),
    ("SERIES", {"Modality": "MR"}),
    ("IMAGE", {"SeriesInstanceUID": "1.2.96.1"}),
    ("IMAGE", {"SOPInstanceUID": ["1.2.96.1.7", "1.2.91.2.1"]}),
    ("IMAGE", {"StudyInstanceUID": "1.2.96", "InstanceNumber": "17"}),
    ("STUDY", {"PatientID": "nobody"}),
]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_matches_are_those_of_http(archive, syntax):
    association = associated(archive, syntax=syntax)
    for level, pairs in SAME:
        uid = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        asked = query(level, **({uid: ""} | pairs))
        asked.SpecificCharacterSet = "ISO_IR 192"
        matches, statuses = found(association, asked)
        as_text = {
            name: ",".join(value) if isinstance(value, list) else value for name, value in pairs.items()
        }
        expected = by_http(archive, level, as_text)
        assert [getattr(match, uid) for match in matches] == expected, pairs
        assert statuses == [0xFF00] * len(expected) + [0]
    association.release()


def test_findscu_gets_the_keys_that_it_asks_for(archive):
    keys = ("PatientName", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "0032,4000")
    command = ["findscu", "-S", "-aet", "WS", "-aec", "STREAMSRV", "127.0.0.1", str(archive.port)]
    asked = ["QueryRetrieveLevel=STUDY", "StudyInstanceUID=1.2.91", *keys]
    command += itertools.chain.from_iterable(("-k", key) for key in asked)
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    said = ran.stdout.decode("utf-8", "replace")
    assert not ran.returncode, said
    assert "(0008,0005) CS [ISO_IR 192]" in said
    assert "(0008,0052) CS [STUDY ]" in said
    assert "(0008,0054) AE [STREAMSRV ]" in said
    assert f"PN [{NAMES['1.2.91']}" in said
    assert "(0020,1206) IS [2 ]" in said
    assert "(0020,1208) IS [2 ]" in said
    assert "(0032,4000) LT (no value available)" in said
    assert "(0010,0020)" not in said
    assert said.count("Find Response") == 1


def test_keys_in_sequences_and_of_lower_levels(archive):
    item = query("SERIES")
    del item.QueryRetrieveLevel
    item.RequestedProcedureID, item.ScheduledProcedureStepID = "RP*", ""
    asked = query("SERIES", RequestAttributesSequence=[item], SeriesInstanceUID="", ImageType="")
    (match,), statuses = find(archive, asked)
    assert match.SeriesInstanceUID == "1.2.91.2"
    assert match.RequestAttributesSequence[0].RequestedProcedureID == "RP 1"
    assert match.RequestAttributesSequence[0].ScheduledProcedureStepID == "SPS 1"
    assert "ImageType" in match
    assert not match.ImageType
    assert statuses == [0xFF01, 0]


def test_patients_join_their_studies(archive):
    counts = {"NumberOfPatientRelatedStudies": "", "NumberOfPatientRelatedInstances": ""}
    asked = query("PATIENT", PatientID="P 1.2.9*", PatientName="", **counts)
    matches, statuses = find(archive, asked, PATIENT_ROOT)
    numbers = [
        (each.PatientID, int(each.NumberOfPatientRelatedStudies), int(each.NumberOfPatientRelatedInstances))
        for each in matches
    ]
    assert numbers == [
        ("P 1.2.91", 2, 3),
        *((f"P 1.2.9{at}", 1, 1) for at in (2, 3, 4)),
        ("P 1.2.96", 1, SERIES_OF_MANY),
    ]
    assert statuses == [0xFF00] * 5 + [0]
    studies, _ = find(archive, query("STUDY", PatientID="P 1.2.91", StudyInstanceUID=""), PATIENT_ONLY)
    assert sorted(each.StudyInstanceUID for each in studies) == ["1.2.91", "1.2.95"]


@pytest.mark.parametrize(
    ("declared", "name", "study", "answered"),
    [
        (["", "ISO 2022 IR 87"], "*=山田*", "1.2.91", ["", "ISO 2022 IR 87"]),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "*=山田^太郎", "1.2.91", ["ISO 2022 IR 13", "ISO 2022 IR 87"]),
        ("GB18030", "*=王*", "1.2.92", "GB18030"),
        ("ISO_IR 192", "Äneas*", "1.2.93", "ISO_IR 192"),
        ("ISO_IR 100", "äneas^rüdiger", "1.2.93", "ISO_IR 100"),
        ("ISO_IR 144", "Люкce*", "1.2.94", "ISO_IR 144"),
        ("ISO_IR 100", "Yamada*", "1.2.91", "ISO_IR 192"),
        (None, "?neas*", "1.2.93", "ISO_IR 100"),
    ],
)
def test_names_in_declared_character_sets(archive, declared, name, study, answered):
    asked = query("STUDY", StudyInstanceUID="")
    if declared is not None:
        asked.SpecificCharacterSet = declared
    asked.PatientName = name
    (match,), _ = find(archive, asked, syntax=ImplicitVRLittleEndian)
    assert match.StudyInstanceUID == study
    match.decode()
    assert match.SpecificCharacterSet == answered
    assert str(match.PatientName) == NAMES[study]


def test_names_match_fuzzily_if_it_is_negotiated(archive):
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = STUDY_ROOT, b"\1\0\1"
    asked = query("STUDY", PatientName="rudiger", StudyInstanceUID="")
    assert not find(archive, asked)[0]
    association = associated(archive, ext_neg=[item])
    assert association.acceptor.sop_class_extended == {STUDY_ROOT: b"\1\1\1"}
    assert [each.StudyInstanceUID for each in found(association, asked)[0]] == ["1.2.93"]
    association.release()


def test_a_cancel_ends_the_matches(archive):
    """Both come in one packet, so the operation is cancelled before its second portion."""
    client = DimseClient(archive.port, calling="WS", sop_class=STUDY_ROOT)
    keys = b"".join(
        struct.pack("<HH2sH", *tag, vr, len(value)) + value
        for tag, vr, value in (((8, 0x18), b"UI", b""), ((8, 0x52), b"CS", b"IMAGE "))
    )
    client.socket.sendall(pdv(request(0x20, 7), 3) + pdv(keys, 2) + pdv(request(0xFFF, 7), 3))
    statuses = []
    while not statuses or statuses[-1] & 0xFF00 == 0xFF00:
        kind, body = client.receive()
        assert kind == DATA
        if body[5] & 1:
            at = body.index(struct.pack("<HHI", 0, 0x900, 2)) + 8
            statuses.append(struct.unpack_from("<H", body, at)[0])
    assert statuses[-1] == 0xFE00
    assert len(statuses) < SERIES_OF_MANY
    client.release()


def request(field, number):
    def element(tag, value):
        return struct.pack("<HHI", 0, tag, len(value)) + value

    uid = STUDY_ROOT.encode() + b"\0"
    named = element(2, uid) if field == 0x20 else b""
    of = element(0x110, struct.pack("<H", number)) if field == 0x20 else element(0x120, b"\7\0")
    kind = element(0x800, struct.pack("<H", 1 if field == 0x20 else 0x101))
    return named + element(0x100, struct.pack("<H", field)) + of + kind


def test_a_peer_that_leaves_in_the_middle(archive):
    association = associated(archive)
    next(association.send_c_find(query("IMAGE", SOPInstanceUID=""), STUDY_ROOT))
    association.abort()
    assert find(archive, query("STUDY", StudyInstanceUID="1.2.91"))[1] == [0xFF00, 0]
    assert "Traceback" not in archive.log()


def test_rights_rules_and_the_trail(archive):
    asked = query("STUDY", StudyInstanceUID="", PatientName="Yama*")
    assert find(archive, asked, title="CT1") == ([], [0x0124])
    everything = query("STUDY", StudyInstanceUID="")
    visible, _ = find(archive, everything, title="WARD")
    assert sorted(each.StudyInstanceUID for each in visible) == ["1.2.91", "1.2.95"]
    find(archive, asked)

    def recorded():
        trail = entries_of(archive.server.data / "audit")
        queries = [each.get("query") for each in trail if each.get("detail") == "C-FIND"]
        return "Study Root STUDY?00100010=Yama*" in queries

    waited(recorded, "the entry of the query")
    refused = [
        each for each in entries_of(archive.server.data / "audit") if each["event"] == "access-refused"
    ]
    assert [each["user"] for each in refused] == ["dimse:CT1"]


@pytest.mark.parametrize(
    ("asked", "status", "comment"),
    [
        (query("PATIENT", PatientID=""), 0xA900, "(0008,0052) is none of STUDY, SERIES, IMAGE"),
        (query("", PatientID=""), 0xA900, "(0008,0052) is none of STUDY, SERIES, IMAGE"),
        (query("STUDY", StudyDate="soon"), 0xC000, "the value of 00080020 is neither a date"),
        (query("STUDY", StudyInstanceUID="abc"), 0xC000, "the value of 0020000D is not a UID"),
        (query("IMAGE", ImageType="ORIGINAL"), 0xA700, "this search would have to look at too much"),
    ],
)
def test_wrong_identifiers(archive, asked, status, comment):
    association = associated(archive)
    (answer,) = association.send_c_find(asked, STUDY_ROOT)
    assert answer[0].Status == status
    assert answer[0].ErrorComment.startswith(comment)
    association.release()


def test_an_identifier_that_cannot_be_read(archive):
    client = DimseClient(archive.port, calling="WS", sop_class=STUDY_ROOT)
    for garbage in (b"garbage " * 20, b"\x08\0\x52\0CS\xff\xff"):
        client.socket.sendall(pdv(request(0x20, 7), 3) + pdv(garbage, 2))
        assert client.response() == (7, 0xC000)
    client.release()
