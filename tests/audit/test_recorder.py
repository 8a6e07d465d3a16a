"""The audit trail of a worker: entries of one minute, futures, patients, and a disk that is full."""

import errno
import time

import pytest
from waiting import waited

from streamsrv.audit import trail as trails
from streamsrv.audit.entries import AuditEntry, Event
from streamsrv.audit.reading import entries_of, verify
from streamsrv.audit.recorder import AuditRecorder, Patient
from streamsrv.audit.trail import Trail
from streamsrv.errors import InsufficientStorage, Overloaded, StoreError

AT = 1_700_000_000.0


def entry(study, at=AT, event=Event.ACCESSED):
    return AuditEntry(at, event, user="key:anna", study=study)


def patient_of(study):
    if study == "9":
        raise StoreError("the index cannot be read")
    return Patient(f"ID {study}", "Doe^Jane")


@pytest.fixture
def recorder(tmp_path):
    one = AuditRecorder(Trail(tmp_path / "audit"), patient_of, clock=lambda: AT)
    yield one
    one.close()


def written(tmp_path):
    return [
        (each["event"], each.get("study"), each.get("patient_id")) for each in entries_of(tmp_path / "audit")
    ]


def test_equal_entries_of_a_minute_are_one(recorder, tmp_path):
    for study in ("1", "1", "2", "1", "9"):
        recorder.note(entry(study))
    recorder.note(entry("1", AT + 60))
    recorder.close()
    accessed = "instances-accessed"
    assert written(tmp_path) == [
        *((accessed, "1", "ID 1"), (accessed, "2", "ID 2"), (accessed, "9", None), (accessed, "1", "ID 1"))
    ]
    assert recorder.waiting == 0


def test_a_clock_that_is_set_back_forgets_the_later_minutes(recorder, tmp_path):
    for at in (AT, AT + 86_400, AT + 86_370, AT + 86_400, AT, AT):
        recorder.note(entry("1", at))
        recorder.note(entry("1", at))
    recorder.close()
    assert len({each["at"] for each in entries_of(tmp_path / "audit")}) == 3
    assert len(recorder._noted) == 1


def test_a_line_has_no_controls(recorder, tmp_path):
    name = "A\x1b[31m\x7f\x85\x9b1m\u2028\u2029\n\ud800\N{COMBINING DIAERESIS}é"
    recorder.note(entry(name))
    recorder.close()
    (line,) = (tmp_path / "audit" / "00000001.jsonl").read_text("utf-8").splitlines()
    assert line.isprintable()
    assert [each["study"] for each in entries_of(tmp_path / "audit")] == [name.replace("\ud800", "?")]
    assert verify(tmp_path / "audit").problems == []


def test_a_future_ends_when_its_entry_is_on_the_disk(recorder, tmp_path):
    stored = entry("1", event=Event.STORED)
    future = recorder.record([stored])
    assert future.result(20) is None
    assert written(tmp_path) == [("instances-stored", "1", "ID 1")]
    assert recorder.record([stored]) is None
    assert recorder.record([stored, entry("2", event=Event.STORED)]).result(20) is None
    assert len(written(tmp_path)) == 2
    assert verify(tmp_path / "audit").problems == []


def test_many_stores_share_a_sync(recorder, tmp_path, monkeypatch):
    syncs, sync = [], trails.os.fdatasync

    def slow(fd):
        syncs.append(fd)
        time.sleep(0.05)
        sync(fd)

    monkeypatch.setattr(trails.os, "fdatasync", slow)
    futures = [recorder.record([entry(str(number), event=Event.STORED)]) for number in range(100)]
    for each in futures:
        each.result(20)
    assert len(written(tmp_path)) == 100
    assert len(syncs) <= 3


def failing(error):
    def write(*_):
        raise OSError(error, "failed")

    return write


@pytest.mark.parametrize(("error", "refusal"), [(errno.ENOSPC, InsufficientStorage), (errno.EIO, Overloaded)])
def test_entries_that_cannot_be_written_wait(recorder, tmp_path, monkeypatch, error, refusal):
    monkeypatch.setattr("streamsrv.audit.recorder.RETRY", 0.01)
    monkeypatch.setattr("streamsrv.audit.recorder.MOST", 3)
    with monkeypatch.context() as patch:
        patch.setattr(trails.os, "pwrite", failing(error))
        with pytest.raises(refusal, match="audit trail"):
            recorder.record([entry("0", event=Event.STORED)]).result(20)
        with pytest.raises(refusal, match="audit trail"):
            recorder.require()
        for number in range(1, 6):
            recorder.note(entry(str(number)))
        assert 0 < recorder.waiting <= 6
    waited(lambda: recorder.waiting == 0)
    recorder.require()
    recorder.close()
    found = list(entries_of(tmp_path / "audit"))
    assert ("instances-stored", "0") in [(each["event"], each.get("study")) for each in found]
    lost = [each["detail"] for each in found if each["event"] == "recording-resumed"]
    accessed = sum(each["event"] == "instances-accessed" for each in found)
    assert sum(int(each.partition("=")[2]) for each in lost) == 5 - accessed
    assert verify(tmp_path / "audit").problems == []


def test_stores_are_refused_while_the_disk_has_room_for_few_entries_only(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr("streamsrv.audit.recorder.RETRY", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(trails, "allocate", failing(errno.ENOSPC))
        assert recorder.record([entry("1", event=Event.STORED)]).result(20) is None
        with pytest.raises(InsufficientStorage, match="audit trail"):
            recorder.require()
        assert recorder.record([entry("2", event=Event.STORED)]).result(20) is None
    waited(lambda: not recorder._trail.is_tight)
    recorder.require()
    assert [study for _, study, _ in written(tmp_path)] == ["1", "2"]
