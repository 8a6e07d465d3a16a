"""C-MOVE of a real server: movescu and Orthanc ask for it, storescp and pynetdicom receive, or do not."""

import socket
import subprocess
import threading

import clinic
import pydicom
import pytest
from dimse_archive import Archive, dataset_of
from dimse_studies import MANY, NUMBER, OTHER, STUDY, files
from kill_world import verb, waited
from live_server import free_port
from orthanc_peer import Orthanc
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, evt

STUDY_ROOT, PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.1.2"
FILES = files()


@pytest.fixture(scope="module")
def ports():
    """Of destinations, by AE title."""
    return {title: free_port() for title in ("STORESCP", "ORTHANC", "PY", "SILENT", "CLOSED", "REFUSES")}


@pytest.fixture(scope="module")
def archive(tmp_path_factory, ports):
    peers = "WS -> search read,ORTHANC -> search read,CT1 -> store,"
    flags = ["--dimse-peers", f"{peers}WARD -> read where PatientID=P {OTHER}"]
    flags += ["--dimse-destinations", ",".join(f"{title}@127.0.0.1:{port}" for title, port in ports.items())]
    flags += ["--audit", "on", "--head-timeout", "1.5", "--stall-timeout", "2", "--dimse-idle-timeout", "2"]
    running = Archive(tmp_path_factory.mktemp("move"), *flags)
    assert clinic.store(f"{running.server.url}/studies", list(FILES.values())).status == 200
    yield running
    running.end()


class Receiver:
    """A destination by pynetdicom, which takes CT in some syntaxes."""

    def __init__(self, port, *syntaxes, title="PY"):
        self.received, self.requests = {}, []
        self.status = lambda event: 0
        self.ae = AE(title)
        for sop_class in (CTImageStorage, MRImageStorage):
            self.ae.add_supported_context(sop_class, list(syntaxes) or [ExplicitVRLittleEndian])
        self.server = self.ae.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def _store(self, event):
        uid = str(event.request.AffectedSOPInstanceUID)
        self.received[uid] = (event.context.transfer_syntax, event.request.DataSet.getvalue())
        self.requests.append(event.request)
        return self.status(event)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()


def move(archive, destination, level="STUDY", title="WS", during=None, **keys):
    """All responses of a C-MOVE."""
    ae = AE(title)
    ae.add_requested_context(STUDY_ROOT)
    association = ae.associate("127.0.0.1", archive.port, ae_title="STREAMSRV")
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for name, value in keys.items():
        setattr(asked, name, value)
    answers = []
    for status, _ in association.send_c_move(asked, destination, STUDY_ROOT, msg_id=77):
        answers.append(status)
        if during:
            during(association)
    association.release()
    return answers


def numbers(status):
    names = ("Completed", "Failed", "Warning")
    return status.Status, *(status.get(f"NumberOf{name}Suboperations") for name in names)


def test_movescu_moves_to_storescp(archive, ports, tmp_path):
    command = ["storescp", "-aet", "STORESCP", "+xa", "-od", str(tmp_path), "-B", str(ports["STORESCP"])]
    receiver = subprocess.Popen(command)
    try:
        waited(lambda: accepts(ports["STORESCP"]), "storescp")
        asked = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={MANY}\\{STUDY}"]
        called = ["-aet", "WS", "-aec", "STREAMSRV", "-aem", "STORESCP", "127.0.0.1", str(archive.port)]
        said = subprocess.run(["movescu", "-S", *called, *asked], capture_output=True, timeout=60)
        assert not said.returncode, said.stderr
    finally:
        receiver.terminate()
        receiver.wait(20)
    found = {}
    for path in tmp_path.iterdir():
        found[str(pydicom.dcmread(path).SOPInstanceUID)] = dataset_of(path.read_bytes())
    expected = {uid: dataset_of(file) for uid, file in FILES.items() if not uid.startswith(OTHER)}
    assert found == expected


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_orthanc_finds_and_moves(archive, ports, tmp_path):
    with Orthanc(tmp_path, archive.port, ports["ORTHANC"]) as orthanc:
        asked = {"Level": "Study", "Query": {"PatientID": f"P {STUDY}", "StudyDescription": "*"}}
        query = orthanc.post("/modalities/streamsrv/query", asked)["Path"]
        (answer,) = orthanc.get(f"{query}/answers?expand&simplify")
        assert (answer["StudyInstanceUID"], answer["StudyDescription"]) == (STUDY, "Thorax")
        orthanc.post(f"{query}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        found = [each["MainDicomTags"]["SOPInstanceUID"] for each in orthanc.get("/instances?expand")]
    assert sorted(found) == [uid for uid in FILES if uid.startswith(STUDY)]


def test_the_originator_and_the_numbers(archive, ports):
    with Receiver(ports["PY"]) as receiver:
        answers = move(archive, "PY", StudyInstanceUID=[OTHER, MANY])
    assert numbers(answers[-1]) == (0, NUMBER + 1, 0, 0)
    assert (answers[0].Status, answers[0].NumberOfRemainingSuboperations) == (0xFF00, NUMBER)
    assert {each.MoveOriginatorApplicationEntityTitle for each in receiver.requests} == {"WS"}
    assert {each.MoveOriginatorMessageID for each in receiver.requests} == {77}
    assert len(receiver.received) == NUMBER + 1


@pytest.mark.parametrize(
    ("taken", "used"),
    [
        ([ExplicitVRLittleEndian, RLELossless], [ExplicitVRLittleEndian, RLELossless]),
        ([ExplicitVRLittleEndian, ImplicitVRLittleEndian], [ExplicitVRLittleEndian] * 2),
        ([ImplicitVRLittleEndian], [ImplicitVRLittleEndian] * 2),
    ],
)
def test_as_stored_or_in_a_syntax_that_is_taken(archive, ports, taken, used):
    with Receiver(ports["PY"], *taken) as receiver:
        answers = move(archive, "PY", "SERIES", SeriesInstanceUID=f"{STUDY}.1")
    assert numbers(answers[-1]) == (0, 2, 0, 0)
    assert [receiver.received[f"{STUDY}.1.{number}"][0] for number in (1, 2)] == used


def test_an_unknown_destination_and_other_refusals(archive, ports):
    (answer,) = move(archive, "NOBODY", StudyInstanceUID=MANY)
    assert answer.Status == 0xA801
    (answer,) = move(archive, "PY", StudyInstanceUID=MANY, title="CT1")
    assert answer.Status == 0x0124
    (answer,) = move(archive, "PY", "STUDY", StudyInstanceUID="")
    assert answer.Status == 0xA900
    (answer,) = move(archive, "CLOSED", StudyInstanceUID="1.2.404")
    assert numbers(answer) == (0, 0, 0, 0)
    with Receiver(ports["PY"]) as receiver:
        (*_, answer) = move(archive, "PY", StudyInstanceUID=[MANY, OTHER], title="WARD")
    assert numbers(answer) == (0, 1, 0, 0)
    assert list(receiver.received) == [f"{OTHER}.1.1"]


def test_destinations_that_refuse_or_are_not_there(archive, ports):
    (answer,) = move(archive, "CLOSED", StudyInstanceUID=MANY)
    assert numbers(answer) == (0xA702, 0, NUMBER, 0)
    assert answer.ErrorComment.startswith("CLOSED: ")
    with Receiver(ports["REFUSES"], title="ANOTHER") as receiver:
        receiver.ae.require_called_aet = True
        (answer,) = move(archive, "REFUSES", StudyInstanceUID=MANY)
    assert numbers(answer) == (0xA702, 0, NUMBER, 0)
    assert "rejected (1, 1, 7)" in answer.ErrorComment
    with Receiver(ports["PY"]) as receiver:
        receiver.status = lambda event: 0xA700 if event.request.MessageID % 2 else 0xB000
        (*_, answer) = move(archive, "PY", StudyInstanceUID=MANY)
    assert numbers(answer) == (0xB000, 0, NUMBER // 2, NUMBER // 2)


def test_a_destination_that_hangs(archive, ports):
    """It accepts the connection, and says nothing. Then one that never responds to a C-STORE."""
    with socket.create_server(("127.0.0.1", ports["SILENT"])):
        (answer,) = move(archive, "SILENT", StudyInstanceUID=MANY)
    assert numbers(answer) == (0xA702, 0, NUMBER, 0)
    assert "no association in 1.5 s" in answer.ErrorComment
    free = threading.Event()
    with Receiver(ports["PY"]) as receiver:
        receiver.status = lambda event: free.wait(20) and 0
        (answer,) = move(archive, "PY", StudyInstanceUID=MANY)
        free.set()
    assert numbers(answer) == (0xA702, 0, NUMBER, 0)
    assert "no response in 2 s" in answer.ErrorComment


def test_a_destination_that_aborts_in_the_middle(archive, ports):
    with Receiver(ports["PY"]) as receiver:

        def status(event):
            if len(receiver.received) == 5:
                event.assoc.dul.socket.close()
            return 0

        receiver.status = status
        (*_, answer) = move(archive, "PY", StudyInstanceUID=MANY)
    assert numbers(answer) == (0xB000, 4, NUMBER - 4, 0)


def test_a_cancel_ends_the_sub_operations(archive, ports):
    with Receiver(ports["PY"]) as receiver:
        cancelled = []

        def cancel(association):
            if not cancelled:
                cancelled.append(True)
                association.send_c_cancel(77, query_model=STUDY_ROOT)

        receiver.status = lambda event: threading.Event().wait(0.02) or 0
        answers = move(archive, "PY", during=cancel, StudyInstanceUID=MANY)
    answer = answers[-1]
    assert answer.Status == 0xFE00
    assert answer.NumberOfRemainingSuboperations > 0
    assert answer.NumberOfRemainingSuboperations + answer.NumberOfCompletedSuboperations == NUMBER
    assert "Traceback" not in archive.log()


def test_wrong_destinations_are_refused(tmp_path):
    for wrong in ("PACS", "PACS@host", "PACS@host:99999", "@host:104"):
        code, said = verb("serve", "--data", str(tmp_path), "--dimse-destinations", wrong)
        assert code == 2
        assert "dimse_destinations" in said
