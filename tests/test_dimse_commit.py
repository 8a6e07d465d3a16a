"""Storage Commitment of a real server: reports on the same association and on a new one."""

import contextlib
import os
import signal
import threading

import clinic
import pytest
from dimse_archive import Archive, sample
from dimse_client import DimseClient, command_set, pdv
from hostile_files import SECONDARY_CAPTURE
from kill_world import waited
from live_server import free_port
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import StorageCommitmentPushModel
from small_client import file_of

WELL_KNOWN = "1.2.840.10008.1.20.1.1"
STORED = [sample(290, number)[0] for number in (1, 2, 3)]
DAMAGED = sample(291, 1)[0]


@pytest.fixture(scope="module")
def port():
    """On which the modality accepts associations."""
    return free_port()


@pytest.fixture(scope="module")
def archive(tmp_path_factory, port):
    peers = "CT1 -> store,LONELY -> store,WARD -> store where PatientID=nobody,SEARCHER -> search"
    flags = ("--dimse-peers", peers, "--dimse-destinations", f"CT1@127.0.0.1:{port}", "--head-timeout", "2")
    running = Archive(tmp_path_factory.mktemp("commit"), *flags)
    files = [file_of(key, 1, 20_000) for key in (*STORED, DAMAGED)]
    assert clinic.store(f"{running.server.url}/studies", files).status == 200
    damage(running, files[-1])
    yield running
    running.end()


def damage(archive, file):
    """Changes a byte of an instance, and reads it with a digest: the damage is registered."""
    for path in archive.server.data.rglob("*"):
        if path.is_file() and (at := path.read_bytes().find(file[-5_000:])) >= 0:
            with path.open("r+b") as segment:
                segment.seek(at)
                segment.write(os.urandom(8))
    study, series, uid = DAMAGED
    url = f"{archive.server.url}/studies/{study}/series/{series}/instances/{uid}"
    answer = clinic.ask(url, Accept="application/dicom; transfer-syntax=*", Want_Repr_Digest="sha-256=1")
    assert answer.status == 500


def request(*references, transaction=None):
    asked = Dataset()
    asked.TransactionUID = transaction or generate_uid()
    asked.ReferencedSOPSequence = []
    for sop_class, uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        asked.ReferencedSOPSequence.append(item)
    return asked


class Modality:
    """Asks for commitments, and keeps the reports."""

    def __init__(self, archive, title="CT1", syntax=ExplicitVRLittleEndian):
        self.reports, self._answered = [], threading.Event()
        ae = AE(title)
        ae.add_requested_context(StorageCommitmentPushModel, syntax)
        self.association = ae.associate(
            *("127.0.0.1", archive.port),
            ae_title="STREAMSRV",
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.report), (evt.EVT_PDU_SENT, self._sent)],
        )
        assert self.association.is_established

    def report(self, event):
        self.reports.append((event.request.EventTypeID, event.event_information))
        return 0, None

    def _sent(self, event):
        """The release must come behind the answer to the report."""
        if self.reports and isinstance(event.pdu, P_DATA_TF):
            self._answered.set()

    def ask(self, asked):
        """The status."""
        status, _ = self.association.send_n_action(asked, 1, StorageCommitmentPushModel, WELL_KNOWN)
        return status.Status

    def answer(self):
        assert self._answered.wait(20)
        (one,) = self.reports
        return one


def facts(report):
    committed = [each.ReferencedSOPInstanceUID for each in report.get("ReferencedSOPSequence", [])]
    failures = report.get("FailedSOPSequence", [])
    failed = {each.ReferencedSOPInstanceUID: each.FailureReason for each in failures}
    return committed, failed


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_report_on_the_same_association(archive, syntax):
    modality = Modality(archive, syntax=syntax)
    asked = request(*((SECONDARY_CAPTURE, key[2]) for key in STORED))
    assert modality.ask(asked) == 0
    kind, report = modality.answer()
    modality.association.release()
    assert kind == 1
    assert report.TransactionUID == asked.TransactionUID
    assert report.RetrieveAETitle == "STREAMSRV"
    assert facts(report) == ([key[2] for key in STORED], {})


def test_failures_have_their_reasons(archive):
    modality = Modality(archive, "LONELY")
    references = [(SECONDARY_CAPTURE, STORED[0][2]), (CTImageStorage, STORED[1][2])]
    references += [(SECONDARY_CAPTURE, "1.2.404"), (SECONDARY_CAPTURE, DAMAGED[2])]
    assert modality.ask(request(*references)) == 0
    kind, report = modality.answer()
    modality.association.release()
    assert kind == 2
    reasons = {STORED[1][2]: 0x0119, "1.2.404": 0x0112, DAMAGED[2]: 0x0110}
    assert facts(report) == ([STORED[0][2]], reasons)


def test_a_report_on_a_new_association(archive, port):
    """The modality leaves at once, and listens a moment later."""
    asked = request(*((SECONDARY_CAPTURE, key[2]) for key in STORED))
    client = DimseClient(archive.port, sop_class=StorageCommitmentPushModel)
    client.socket.sendall(pdv(action(), 3) + pdv(encoded(asked), 2))
    assert client.response() == (5, 0)
    client.close()
    with listening(port) as received:
        waited(lambda: received, "the report")
    (title, found) = received[0]
    assert title == "STREAMSRV"
    assert found.TransactionUID == asked.TransactionUID
    assert facts(found) == ([key[2] for key in STORED], {})


def test_a_report_after_kill_9(archive, port):
    """The modality does not listen. The worker dies, and the next one reports."""
    asked = request((SECONDARY_CAPTURE, STORED[0][2]), (SECONDARY_CAPTURE, "1.2.404"))
    client = DimseClient(archive.port, sop_class=StorageCommitmentPushModel)
    client.socket.sendall(pdv(action(), 3) + pdv(encoded(asked), 2))
    assert client.response() == (5, 0)
    client.close()
    (worker,) = archive.worker_processes()
    os.kill(worker, signal.SIGKILL)
    folder = archive.server.data / "commitments"
    waited(lambda: worker not in archive.worker_processes() and archive.worker_processes(), "a worker")
    with listening(port) as received:
        waited(lambda: received, "the report")
        waited(lambda: not list(folder.iterdir()), "the end of the request")
    (_, found) = received[0]
    assert found.TransactionUID == asked.TransactionUID
    assert facts(found) == ([STORED[0][2]], {"1.2.404": 0x0112})


def encoded(dataset):
    content = DicomBytesIO()
    content.is_little_endian, content.is_implicit_VR = True, False
    write_dataset(content, dataset)
    return content.getvalue()


@contextlib.contextmanager
def listening(port):
    """A modality that takes reports: AE titles of their senders, and datasets."""
    received = []

    def report(event):
        received.append((event.assoc.requestor.ae_title, event.event_information))
        return 0, None

    ae = AE("CT1")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    ae.require_called_aet = True
    server = ae.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)]
    )
    try:
        yield received
    finally:
        server.shutdown()


def action(kind=1, instance=WELL_KNOWN):
    """The command set of an N-ACTION-RQ."""
    uids = {0x0003: StorageCommitmentPushModel, 0x1001: instance}
    return command_set({**uids, 0x0100: 0x0130, 0x0110: 5, 0x0800: 1, 0x1008: kind})


def test_no_promise_for_a_hidden_instance(archive):
    modality = Modality(archive, "WARD")
    assert modality.ask(request((SECONDARY_CAPTURE, STORED[0][2]))) == 0
    assert facts(modality.answer()[1]) == ([], {STORED[0][2]: 0x0112})
    modality.association.release()


def test_wrong_requests(archive):
    good = request((SECONDARY_CAPTURE, "1.2.3"))
    assert asked_plainly(archive, good, kind=2) == 0x0123
    assert asked_plainly(archive, good, instance="1.2.3") == 0x0112
    assert asked_plainly(archive, request()) == 0x0115
    assert asked_plainly(archive, good, calling="SEARCHER") == 0x0124
    assert not list((archive.server.data / "commitments").glob("*"))
    assert "Traceback" not in archive.log()


def asked_plainly(archive, asked, calling="CT1", **wrong):
    """The status. pynetdicom may take a response that comes at once for a message that nobody waits for."""
    client = DimseClient(archive.port, calling=calling, sop_class=StorageCommitmentPushModel)
    client.socket.sendall(pdv(action(**wrong), 3) + pdv(encoded(asked), 2))
    number, status = client.response()
    client.release()
    assert number == 5
    return status
