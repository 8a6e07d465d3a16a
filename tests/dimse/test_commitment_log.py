"""Requests for Storage Commitment on the disk, without an association."""

import os

import pytest

from streamsrv.dimse.services.commitment_log import (
    FOLDER,
    MOST_KEPT,
    MOST_OF_PEER,
    CommitmentLog,
    CommitmentRequest,
)
from streamsrv.errors import Overloaded

REFERENCES = (("1.2.840.10008.5.1.4.1.1.2", "1.2.3"), ("1.2.840.10008.5.1.4.1.1.4", "1.2.4"))


def request_of(title):
    return CommitmentRequest(title, "10.0.7.3", 1.5, "1.2.9", REFERENCES)


def test_a_request_is_read_from_its_file_each_time(tmp_path):
    log = CommitmentLog(tmp_path)
    kept = log.keep(request_of("CT1"))
    assert (kept.request.title, kept.request.references) == ("CT1", ())
    assert kept.whole() == request_of("CT1")
    assert list(CommitmentLog(tmp_path).left()) == []  # its process has not ended
    os.close(kept.descriptor)
    (taken,) = CommitmentLog(tmp_path).left()
    assert (taken.request.references, taken.whole()) == ((), request_of("CT1"))
    taken.drop()
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_file_that_cannot_be_read_is_left_where_it_is(tmp_path, caplog):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "435431-0.json").write_bytes(b"[]")
    assert list(CommitmentLog(tmp_path).left()) == []
    assert "435431-0.json cannot be read" in caplog.text
    assert os.listdir(folder) == ["435431-0.json"]


def test_one_peer_leaves_room_for_the_others(tmp_path):
    log, folder = CommitmentLog(tmp_path), tmp_path / FOLDER
    folder.mkdir()
    for number in range(MOST_OF_PEER):
        (folder / f"{b'CT1'.hex()}-{number}.json").write_bytes(b"")
    with pytest.raises(Overloaded, match="250 requests of CT1"):
        log.keep(request_of("CT1"))
    kept = log.keep(request_of("CT10"))
    os.close(kept.descriptor)
    for number in range(MOST_KEPT - MOST_OF_PEER - 1):
        (folder / f"{b'MR1'.hex()}-{number}.json").write_bytes(b"")
    with pytest.raises(Overloaded, match="1000 requests"):
        log.keep(request_of("US1"))


def test_a_store_that_is_read_only_keeps_requests_in_memory():
    kept = CommitmentLog(None).keep(request_of("CT1"))
    assert kept.whole() == request_of("CT1")
    kept.drop()
    assert list(CommitmentLog(None).left()) == []
