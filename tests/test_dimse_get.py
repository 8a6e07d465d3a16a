"""C-GET of a real server: getscu and pynetdicom as peers, syntaxes, numbers, C-CANCEL, refusals."""

import io
import subprocess

import clinic
import pydicom
import pytest
from dimse_archive import Archive, dataset_of, high_water
from dimse_studies import MANY, NUMBER, OTHER, STUDY, files, made
from kill_world import waited
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, build_role, evt

from streamsrv.audit.reading import entries_of

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

STUDY_ROOT, PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.1.3"
LONG = "1.2.194"
FILES = files()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    peers = f"WS -> search read,CT1 -> store search,WARD -> read where PatientID=P {OTHER}"
    running = Archive(tmp_path_factory.mktemp("get"), "--dimse-peers", peers, "--audit", "on")
    assert clinic.store(f"{running.server.url}/studies", list(FILES.values())).status == 200
    yield running
    running.end()


class Receiver:
    """A peer that takes some SOP classes. `status` is that of each C-STORE, from the SOP Instance UID."""

    def __init__(self, archive, *classes, syntaxes=(ExplicitVRLittleEndian,), title="WS", model=STUDY_ROOT):
        self.received = {}
        self.status = lambda uid: 0
        self.model = model
        ae = AE(title)
        ae.add_requested_context(model, ImplicitVRLittleEndian)
        for each in classes:
            for syntax in syntaxes:
                ae.add_requested_context(each, syntax)
        self.association = ae.associate(
            *("127.0.0.1", archive.port),
            ae_title="STREAMSRV",
            ext_neg=[build_role(each, scp_role=True) for each in classes],
            evt_handlers=[(evt.EVT_C_STORE, self._store)],
        )
        assert self.association.is_established

    def _store(self, event):
        uid = str(event.request.AffectedSOPInstanceUID)
        self.received[uid] = (event.context.transfer_syntax, event.request.DataSet.getvalue())
        return self.status(uid)

    def get(self, level="STUDY", **keys):
        """The final status, and the last number of remaining, completed, failed, warning."""
        asked = Dataset()
        asked.QueryRetrieveLevel = level
        for name, value in keys.items():
            setattr(asked, name, value)
        self.answers = list(self.association.send_c_get(asked, self.model))
        status = self.answers[-1][0]
        names = ("Remaining", "Completed", "Failed", "Warning")
        numbers = [status.get(f"NumberOf{name}Suboperations") for name in names]
        return status.get("Status"), numbers

    def failed(self):
        found = self.answers[-1][1].get("FailedSOPInstanceUIDList", [])
        return [found] if isinstance(found, str) else list(found)

    def release(self):
        self.association.release()


def test_getscu_gets_the_stored_bytes(archive, tmp_path):
    command = ["getscu", "-S", "-aet", "WS", "-aec", "STREAMSRV", "127.0.0.1", str(archive.port)]
    command += [
        "-od",
        str(tmp_path),
        "+B",
        "-k",
        "QueryRetrieveLevel=STUDY",
        "-k",
        f"StudyInstanceUID={MANY}",
    ]
    said = subprocess.run(command, capture_output=True, timeout=60)
    assert not said.returncode, said.stderr
    found = {}
    for path in tmp_path.iterdir():
        found[str(pydicom.dcmread(path).SOPInstanceUID)] = dataset_of(path.read_bytes())
    assert found == {uid: dataset_of(file) for uid, file in FILES.items() if uid.startswith(MANY)}


def test_numbers_and_levels(archive):
    receiver = Receiver(archive, CTImageStorage, EncapsulatedPDFStorage, MRImageStorage)
    assert receiver.get(StudyInstanceUID=[MANY, OTHER]) == (0, [None, NUMBER + 1, 0, 0])
    first = receiver.answers[0][0]
    assert (first.Status, first.NumberOfRemainingSuboperations) == (0xFF00, NUMBER)
    assert first.NumberOfCompletedSuboperations == 1
    for keys in (
        {"level": "SERIES", "SeriesInstanceUID": f"{STUDY}.2"},
        {"level": "IMAGE", "StudyInstanceUID": STUDY, "SOPInstanceUID": f"{STUDY}.2.1"},
    ):
        receiver.received.clear()
        assert receiver.get(**keys) == (0, [None, 1, 0, 0])
        assert list(receiver.received) == [f"{STUDY}.2.1"]
    assert receiver.get(StudyInstanceUID="1.2.404") == (0, [None, 0, 0, 0])
    receiver.release()
    patients = Receiver(archive, MRImageStorage, model=PATIENT_ROOT)
    assert patients.get("PATIENT", PatientID=f"P {OTHER}") == (0, [None, 1, 0, 0])
    patients.release()


@pytest.mark.parametrize(
    ("syntaxes", "sent"),
    [
        ([ExplicitVRLittleEndian], [ExplicitVRLittleEndian, ExplicitVRLittleEndian]),
        ([RLELossless, ExplicitVRLittleEndian], [ExplicitVRLittleEndian, RLELossless]),
        ([ImplicitVRLittleEndian], [ImplicitVRLittleEndian, ImplicitVRLittleEndian]),
        ([JPEGLosslessSV1], [JPEGLosslessSV1, JPEGLosslessSV1]),
    ],
)
def test_syntaxes(archive, syntaxes, sent):
    """As stored if the peer takes that, else transcoded; the pixels are the same."""
    receiver = Receiver(archive, CTImageStorage, syntaxes=syntaxes)
    assert receiver.get("SERIES", SeriesInstanceUID=f"{STUDY}.1") == (0, [None, 2, 0, 0])
    receiver.release()
    for number, syntax in enumerate(sent, 1):
        uid = f"{STUDY}.1.{number}"
        used, content = receiver.received[uid]
        assert used == syntax
        stored = pydicom.dcmread(io.BytesIO(FILES[uid]))
        if stored.file_meta.TransferSyntaxUID == syntax:
            assert content == dataset_of(FILES[uid])
        got = read(content, syntax)
        assert (got.pixel_array == stored.pixel_array).all()
        left_out = ("PixelData", "PlanarConfiguration")
        for each in stored:
            if each.keyword not in left_out:
                assert got[each.tag].value == each.value, each


def read(content, syntax):
    """A dataset without file meta information."""
    file = io.BytesIO()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    write_file_meta_info(file, meta, enforce_standard=False)
    return pydicom.dcmread(io.BytesIO(bytes(128) + b"DICM" + file.getvalue() + content))


def test_what_the_peer_does_not_take_has_failed(archive):
    receiver = Receiver(archive, EncapsulatedPDFStorage)
    assert receiver.get(StudyInstanceUID=STUDY) == (0xB000, [None, 1, 2, 0])
    assert receiver.failed() == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    assert receiver.get(StudyInstanceUID=OTHER) == (0xA702, [None, 0, 1, 0])
    receiver.status = lambda uid: 0xA700
    assert receiver.get("IMAGE", SOPInstanceUID=f"{STUDY}.2.1") == (0xA702, [None, 0, 1, 0])
    receiver.status = lambda uid: 0xB000
    assert receiver.get("IMAGE", SOPInstanceUID=f"{STUDY}.2.1") == (0xB000, [None, 0, 0, 1])
    receiver.release()


def test_a_cancel_ends_the_sub_operations(archive):
    receiver = Receiver(archive, CTImageStorage)

    def cancel(uid):
        receiver.association.send_c_cancel(1, query_model=STUDY_ROOT)
        return 0

    receiver.status = cancel
    status, numbers = receiver.get(StudyInstanceUID=MANY)
    assert status == 0xFE00
    assert numbers[0] > 0
    assert numbers[0] + numbers[1] == NUMBER
    receiver.status = lambda uid: 0
    assert receiver.get(StudyInstanceUID=MANY) == (0, [None, NUMBER, 0, 0])
    receiver.release()


def test_a_peer_that_aborts(archive):
    receiver = Receiver(archive, CTImageStorage)
    receiver.association.ae.dimse_timeout = 0.5
    receiver.status = lambda uid: receiver.association.dul.socket.close() or 0
    assert receiver.get(StudyInstanceUID=MANY)[0] is None
    again = Receiver(archive, CTImageStorage)
    assert again.get(StudyInstanceUID=MANY)[0] == 0
    again.release()
    assert "Traceback" not in archive.log()


def test_rights_and_the_trail(archive):
    denied = Receiver(archive, CTImageStorage, title="CT1")
    assert denied.get(StudyInstanceUID=MANY)[0] == 0x0124
    denied.release()
    ward = Receiver(archive, CTImageStorage, MRImageStorage, title="WARD")
    assert ward.get(StudyInstanceUID=[MANY, OTHER]) == (0, [None, 1, 0, 0])
    ward.release()

    def sent():
        trail = entries_of(archive.server.data / "audit")
        found = [each for each in trail if each["user"] == "dimse:WARD"]
        return [each["study"] for each in found if each["event"] == "instances-sent"]

    waited(lambda: sent() == [OTHER], "the entry of the study")


@pytest.mark.parametrize(
    ("level", "keys", "comment"),
    [
        ("PATIENT", {"PatientID": "P*"}, "(0008,0052) is none of STUDY, SERIES, IMAGE"),
        ("STUDY", {}, "(0020,000D) has no value"),
        ("SERIES", {"StudyInstanceUID": STUDY}, "(0020,000E) has no value"),
        ("STUDY", {"PatientID": "P*", "StudyInstanceUID": STUDY}, "(0010,0020) is not one value"),
    ],
)
def test_wrong_identifiers(archive, level, keys, comment):
    receiver = Receiver(archive, CTImageStorage)
    assert receiver.get(level, **keys)[0] == 0xA900
    assert receiver.answers[-1][0].ErrorComment.startswith(comment)
    receiver.release()


def test_a_long_instance_takes_little_memory(archive, tmp_path):
    """Of 100 MB."""
    (worker,) = archive.worker_processes()
    long = made(LONG, 1, size=(50_000, 1_000))
    assert clinic.store(f"{archive.server.url}/studies", [long]).status == 200
    before = high_water(worker)
    command = ["getscu", "-S", "-aet", "WS", "-aec", "STREAMSRV", "127.0.0.1", str(archive.port), "--ignore"]
    command += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={LONG}"]
    said = subprocess.run(command, capture_output=True, timeout=60)
    assert not said.returncode, said.stderr
    assert high_water(worker) - before < 30 << 20
