"""DIMSE of a real server: dcmtk, pynetdicom and Orthanc as senders, wrong peers, broken PDUs, kill -9."""

import io
import os
import random
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request

import clinic
import pydicom
import pytest
from dimse_archive import Archive, dataset_of, high_water, sample
from dimse_client import ABORT, REJECT, associate_request, message, pdu, pdv, store_command
from kill_world import verb, waited
from live_server import free_port
from orthanc_peer import Orthanc
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE
from small_client import file_of, key_of

from streamsrv.audit.reading import entries_of

AS_STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
SOAK = int(os.environ.get("SOAK", "1"))
KILLS = 2 if SOAK == 1 else 5 * SOAK
# Options of storescu and the syntaxes that they propose.
PROPOSALS = {
    "-xe": "1.2.840.10008.1.2.1",
    "-xb": "1.2.840.10008.1.2.2",
    "-xi": "1.2.840.10008.1.2",
    "-xs": "1.2.840.10008.1.2.4.70",
    "-xy": "1.2.840.10008.1.2.4.50",
    "-xx": "1.2.840.10008.1.2.4.51",
    "-xv": "1.2.840.10008.1.2.4.90",
    "-xw": "1.2.840.10008.1.2.4.91",
    "-xt": "1.2.840.10008.1.2.4.80",
    "-xu": "1.2.840.10008.1.2.4.81",
    "-xm": "1.2.840.10008.1.2.4.100",
    "-xh": "1.2.840.10008.1.2.4.101",
    "-xn": "1.2.840.10008.1.2.4.102",
    "-xl": "1.2.840.10008.1.2.4.103",
    "-x2": "1.2.840.10008.1.2.4.104",
    "-x3": "1.2.840.10008.1.2.4.105",
    "-xo": "1.2.840.10008.1.2.4.106",
    "-x4": "1.2.840.10008.1.2.4.107",
    "-x5": "1.2.840.10008.1.2.4.108",
    "-xr": "1.2.840.10008.1.2.5",
    "-xd": "1.2.840.10008.1.2.1.99",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    running = Archive(tmp_path_factory.mktemp("dimse"), "--dimse-any-peer", "--audit", "on")
    yield running
    running.end()


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# Senders


def test_echo_of_dcmtk(archive):
    assert run("echoscu", "-aec", "STREAMSRV", "127.0.0.1", str(archive.port)).returncode == 0


@pytest.mark.parametrize(("option", "syntax"), PROPOSALS.items())
def test_each_proposal_of_storescu_is_stored_as_it_comes(archive, tmp_path, option, syntax):
    number = list(PROPOSALS).index(option) + 1
    made = clinic.dataset(SecondaryCaptureImageStorage, "1.2.77", "1.2.77.1", f"1.2.77.1.{number}", syntax)
    made.Rows = made.Columns = 8
    made.SamplesPerPixel, made.BitsAllocated, made.BitsStored, made.HighBit = 1, 8, 8, 7
    made.PixelRepresentation, made.PhotometricInterpretation = 0, "MONOCHROME2"
    native = pydicom.uid.UID(syntax).is_encapsulated is False
    made.PixelData = bytes(range(64)) if native else encapsulate([bytes(range(64))])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = not native
    made.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    command = ["storescu", "-R", option, "-aec", "STREAMSRV", "127.0.0.1", str(archive.port)]
    said = run(*command, str(tmp_path / "one.dcm"))
    assert said.returncode == 0, said.stderr
    found = archive.dataset(("1.2.77", "1.2.77.1", made.SOPInstanceUID), syntax)
    if syntax == PROPOSALS["-xd"]:
        return  # dcmtk and pydicom deflate differently
    assert found == dataset_of((tmp_path / "one.dcm").read_bytes())


def test_dcmsend_and_a_private_class(archive, tmp_path):
    """dcmsend reads the files, and proposes what they need."""
    keys = [key_of(60, 1, number) for number in (1, 2, 3)]
    for number, key in enumerate(keys):
        file = pydicom.dcmread(io.BytesIO(file_of(key, 1, 300_000)))
        file.file_meta.MediaStorageSOPInstanceUID = key[2]
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
        if number == 2:
            file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.3.46.670589.5.0.1"
        file.save_as(tmp_path / f"{number}.dcm")
    said = run("dcmsend", "-aec", "STREAMSRV", "127.0.0.1", str(archive.port), "+sd", str(tmp_path))
    assert said.returncode == 0, said.stderr
    for number, key in enumerate(keys):
        assert archive.dataset(key) == dataset_of((tmp_path / f"{number}.dcm").read_bytes())


def test_pynetdicom_as_the_sender(archive):
    key = key_of(61, 1, 1)
    sent = pydicom.dcmread(io.BytesIO(file_of(key, 1, 900_000)))
    ae = AE("PY")
    ae.add_requested_context(sent.SOPClassUID, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", archive.port, ae_title="STREAMSRV")
    assert association.is_established
    statuses = [association.send_c_store(sent).Status for _ in range(2)]
    sent.PatientID = "another"
    changed = association.send_c_store(sent)
    association.release()
    assert statuses == [0, 0]
    assert changed.Status == 0x0111
    assert "already stored" in changed.ErrorComment
    assert archive.dataset(key) == dataset_of(file_of(key, 1, 900_000))


def test_orthanc_as_the_sender(archive, tmp_path):
    key = key_of(62, 1, 1)
    with Orthanc(tmp_path, archive.port) as orthanc:
        number = orthanc.post("/instances", file_of(key, 1, 50_000))["ID"]
        sent = orthanc.post("/modalities/streamsrv/store", number.encode())
        assert sent["FailedInstancesCount"] == 0
    assert pydicom.dcmread(io.BytesIO(file_of(key, 1, 50_000))).PixelData in archive.dataset(key)


def test_a_window_of_operations(archive):
    """Several instances on their way: each has its response, and all are stored."""
    client = archive.client(window=8)
    assert b"\x53\0\0\4\0\10\0\1" in client.answer[1]
    sent = {number: sample(63, number) for number in range(1, 41)}
    client.socket.sendall(b"".join(message(key[2], data, n) for n, (key, data) in sent.items()))
    responses = dict(client.response() for _ in sent)
    assert responses == dict.fromkeys(sent, 0)
    client.release()
    assert all(archive.dataset(key) == data for key, data in sent.values())


def test_a_long_instance_takes_little_memory(archive):
    """Of 200 MB, in 16 kB fragments."""
    (worker,) = archive.worker_processes()
    size = 200 << 20
    key = key_of(64, 1, 1)
    head = dataset_of(file_of(key, 1, 128))[: -128 - 12]
    rest = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size)
    client, block = archive.client(), random.Random(1).randbytes(15_000)
    before = high_water(worker)
    client.socket.sendall(pdv(store_command(key[2]), 3) + pdv(head + rest, 0))
    pieces = pdv(block, 0)
    for _ in range(size // len(block)):
        client.socket.sendall(pieces)
    client.socket.sendall(pdv(bytes(size % len(block)), 2))
    assert client.response() == (1, 0)
    client.release()
    assert high_water(worker) - before < 50 << 20
    url = f"{archive.server.url}/studies/{key[0]}/series/{key[1]}/instances/{key[2]}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=AS_STORED)) as answer:
        assert int(answer.headers["Content-Length"]) > size


# Refusals


def test_a_wrong_dataset_leaves_the_association_open(archive):
    client = archive.client()
    key, data = sample(65, 1)
    other, _ = sample(65, 2)
    assert client.store(other[2], data) == 0xA900
    assert client.store(key[2], data[:-100]) == 0xC000
    assert client.store(key[2], b"garbage " * 100) == 0xC000
    assert client.store(key[2], b"garbage!" * 200_000) == 0xC000
    assert client.store("no uid", data) == 0x0117
    assert client.store(key[2], data, sop_class="1.2.840.10008.5.1.4.1.1.4") == 0x0122
    assert archive.dataset(key) is None
    assert client.store(key[2], data) == 0
    client.release()
    assert archive.dataset(key) == data


def test_an_operation_of_no_service(archive):
    client = archive.client()
    key, data = sample(66, 1)
    find = message(key[2], data).replace(b"\0\0\0\1\2\0\0\0\1\0", b"\0\0\0\1\2\0\0\0\x20\0", 1)
    client.socket.sendall(find)
    assert client.response() == (1, 0x0211)
    client.release()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (associate_request(called="OTHER"), bytes((0, 1, 1, 7))),
        (
            associate_request().replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2"),
            bytes((0, 1, 1, 2)),
        ),
        (associate_request().replace(b"\0\1\0\0STREAM", b"\0\2\0\0STREAM"), bytes((0, 1, 2, 2))),
    ],
)
def test_rejections(archive, asked, answer):
    with socket.create_connection(("127.0.0.1", archive.port), timeout=30) as connection:
        connection.sendall(asked)
        assert connection.recv(100) == pdu(REJECT, answer)
        assert connection.recv(100) == b""


def test_the_trail_has_stores_and_rejections(archive):
    client = archive.client()
    key, data = sample(68, 1)
    assert client.store(key[2], data) == 0
    client.release()
    found = [each for each in entries_of(archive.server.data / "audit") if each.get("study") == key[0]]
    assert [(each["event"], each["user"], each["client"]) for each in found] == [
        ("instances-stored", "dimse:CT1", "127.0.0.1")
    ]
    assert archive.client(called="WRONG").answer[0] == REJECT

    def rejected():
        trail = entries_of(archive.server.data / "audit")
        return any("A-ASSOCIATE-RJ" in each.get("detail", "") for each in trail)

    waited(rejected, "the entry of the rejection")


# Settings


def test_known_peers_their_rights_and_rules(tmp_path):
    flags = ["CT1 -> store", "WARD@127.0.0.0/8 -> store where PatientID=ID 1.2.70", "READER -> search read"]
    flags.append("FAR@10.1.2.3 -> store")
    archive = Archive(tmp_path, "--dimse-peers", ",".join(flags), "--metrics-port", str(free_port()))
    try:
        assert archive.client(calling="UNKNOWN").answer == (REJECT, bytes((0, 1, 1, 3)))
        assert archive.client(calling="FAR").answer == (REJECT, bytes((0, 1, 1, 3)))
        (inside, data), (outside, other) = sample(70, 1), sample(71, 1)
        ward = archive.client(calling="WARD")
        assert ward.store(outside[2], other) == 0x0124
        assert ward.store(inside[2], data) == 0
        ward.release()
        reader = archive.client(calling="READER")
        assert reader.store(outside[2], other) == 0x0124
        reader.release()
        assert archive.dataset(outside) is None
        everywhere = archive.client(calling="CT1")
        assert everywhere.store(outside[2], other) == 0
        everywhere.release()
        assert archive.dataset(outside) == other
        archive.server.process.send_signal(signal.SIGTERM)
    finally:
        assert archive.end() == 0


def test_limits_and_drain(tmp_path):
    flags = ("--dimse-any-peer", "--max-associations-per-peer", "2", "--dimse-idle-timeout", "1.5")
    archive = Archive(tmp_path, *flags, "--head-timeout", "1", "--dimse-max-pdu", "4096")
    try:
        idle = archive.client()
        client = archive.client()
        assert archive.client().answer == (REJECT, bytes((0, 2, 3, 2)))
        assert client.answer[1].count(struct.pack(">BxHI", 0x51, 4, 4096)) == 1
        client.socket.sendall(struct.pack(">BxI", 4, 4097))
        assert client.receive() == (ABORT, bytes((0, 0, 2, 6)))
        with socket.create_connection(("127.0.0.1", archive.port), timeout=30) as silent:
            assert idle.receive() == (ABORT, bytes((0, 0, 2, 0)))
            assert silent.recv(100) == pdu(ABORT, bytes((0, 0, 2, 0)))
        key, data = sample(72, 1)
        sent = message(key[2], data, piece=1000)
        busy = archive.client()
        busy.socket.sendall(sent[:2000])
        time.sleep(0.2)
        archive.server.process.send_signal(signal.SIGTERM)
        waited(lambda: not accepts(archive.port), "the end of the listener")
        busy.socket.sendall(sent[2000:])
        assert busy.response() == (1, 0)
        assert busy.receive() == (ABORT, bytes((0, 0, 2, 0)))
    finally:
        assert archive.end() == 0


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_port_without_peers_is_refused(tmp_path):
    code, said = verb("serve", "--data", str(tmp_path), "--dimse-port", "11112")
    assert code == 2
    assert "dimse_any_peer" in said
    code, said = verb("serve", "--data", str(tmp_path), "--dimse-peers", "CT1@host -> store")
    assert code == 2
    assert "behind the @" in said


def test_what_was_answered_survives_kill_9(tmp_path):
    archive = Archive(tmp_path, "--dimse-any-peer")
    stored, failures, stop = {}, [], threading.Event()

    def send(sender):
        number = 0
        while not stop.is_set():
            try:
                client = archive.client(calling=f"CT{sender}")
                while not stop.is_set():
                    number += 1
                    key, data = sample(80 + sender, number, 60_000)
                    if client.store(key[2], data) == 0:
                        stored[key] = data
                client.release()
            except (OSError, TypeError, AssertionError) as error:
                failures.append(error)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for sender in senders:
        sender.start()
    try:
        for _ in range(KILLS):
            enough = len(stored) + 15
            waited(lambda enough=enough: len(stored) >= enough, "stores")
            for worker in archive.worker_processes():
                os.kill(worker, signal.SIGKILL)
        waited(lambda: failures, "a lost association")
        stop.set()
        for sender in senders:
            sender.join(60)
        assert stored
        assert all(archive.dataset(key) == data for key, data in stored.items())
    finally:
        stop.set()
        archive.end()
    assert verb("check", "--data", str(archive.server.data))[0] == 0
