"""The files of the audit trail: one chain of several writers, rotation, damage, and what a check finds."""

import json
import multiprocessing
import os
import time

import pytest

from streamsrv.audit.chain import ChainLink
from streamsrv.audit.entries import AuditEntry, Event, EventOutcome
from streamsrv.audit.reading import entries_of, verify
from streamsrv.audit.trail import ALLOCATED, Trail, TrailLimits, files_of

AT = 1_700_000_000.0


def entry(number, user="key:anna", **fields):
    return AuditEntry(AT, Event.ACCESSED, user=user, client="10.0.0.1", study=f"1.2.{number}", **fields)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "audit"


@pytest.fixture
def trail(folder):
    opened = Trail(folder)
    yield opened
    opened.close()


def filled(folder, count=6, **limits):
    trail = Trail(folder, TrailLimits(**limits))
    for number in range(count):
        trail.append([entry(number)])
    trail.close()
    return list(files_of(folder).values())


def texts(path):
    return path.read_bytes().splitlines(keepends=True)


def test_entries_are_lines_of_json(folder, trail):
    assert trail.append([entry(1), entry(2, query="/v2/studies?PatientName=A%2A")]) == 2
    (path,) = files_of(folder).values()
    first, second = map(json.loads, texts(path))
    assert {name: value for name, value in first.items() if name != "chain"} == {
        "n": 1,
        "at": "2023-11-14T22:13:20.000Z",
        "event": "instances-accessed",
        "outcome": 0,
        "user": "key:anna",
        "client": "10.0.0.1",
        "study": "1.2.1",
    }
    assert (second["n"], second["query"]) == (2, "/v2/studies?PatientName=A%2A")
    assert [os.stat(each).st_mode & 0o777 for each in (folder, path, folder / "head")] == [
        0o700,
        0o600,
        0o600,
    ]
    assert verify(folder).problems == []


def test_one_entry_a_minute_of_several_writers(folder, trail):
    other = Trail(folder)
    assert trail.append([entry(1), entry(1, request="other")]) == 1
    assert other.append([entry(1)]) == 0
    assert other.append([entry(1)._replace(at=AT + 60)]) == 1
    assert trail.append([entry(1)._replace(at=AT + 60), entry(1, user="key:ben")]) == 1
    assert trail.append([entry(1, outcome=EventOutcome.MINOR_FAILURE)]) == 1
    other.close()
    assert [each["n"] for each in entries_of(folder)] == [1, 2, 3, 4]
    assert verify(folder).problems == []


def append_many(folder, user):
    trail = Trail(folder, TrailLimits(file_size=4_000))
    for number in range(50):
        trail.append([entry(number, user)])


def test_processes_share_one_chain_over_rotations(folder):
    processes = [multiprocessing.Process(target=append_many, args=(folder, user)) for user in "abc"]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    found = verify(folder)
    assert (found.problems, found.entries, found.last.number) == ([], 150, 150)
    assert found.files > 5


def test_a_writer_that_slept_for_long_reads_the_last_lines_only(folder, trail, monkeypatch):
    monkeypatch.setattr("streamsrv.audit.trail.TAIL", 2_000)
    trail.append([entry(0)])
    other = Trail(folder)
    for number in range(1, 50):
        other.append([entry(number)])
    other.close()
    taken = []
    monkeypatch.setattr(trail, "_see", lambda key: taken.append(key))
    trail.append([entry(99)])
    assert len(taken) < 20
    found = verify(folder)
    assert (found.problems, found.entries) == ([], 51)


def test_filters(folder, trail):
    trail.append([entry(1), entry(2, user="oidc:ben@issuer"), entry(1, user="x")._replace(at=AT + 3600)])
    assert len(list(entries_of(folder, user="key:anna"))) == len(list(entries_of(folder, user="anna"))) == 1
    assert len(list(entries_of(folder, study="1.2.1"))) == 2
    assert [each["user"] for each in entries_of(folder, since=AT + 1)] == ["x"]


# Changes


def changed(folder, change, file=0):
    path = list(files_of(folder).values())[file]
    lines = texts(path)
    change(lines)
    path.write_bytes(b"".join(lines))
    return verify(folder).problems


def test_a_removed_line_is_found(folder):
    filled(folder)
    assert changed(folder, lambda lines: lines.pop(2)) == ["00000001.jsonl line 3: entry 3 is missing"]


def test_a_changed_line_is_found(folder):
    filled(folder)

    def change(lines):
        lines[2] = lines[2].replace(b"key:anna", b"key:otto")

    assert changed(folder, change) == ["00000001.jsonl line 3: entry 3 or the entry before it was changed"]


def test_swapped_lines_are_found(folder):
    filled(folder)

    def change(lines):
        lines[2], lines[3] = lines[3], lines[2]

    assert len(changed(folder, change)) >= 2


@pytest.mark.parametrize("lines_cut", [1, 3])
def test_lines_cut_off_the_end_are_found(folder, lines_cut):
    filled(folder)

    def change(lines):
        del lines[-lines_cut:]

    (problem,) = changed(folder, change)
    assert problem.startswith("at the end: entr")
    trail = Trail(folder)  # what is written later does not hide it
    trail.append([entry(9)])
    trail.close()
    (problem,) = verify(folder).problems
    assert problem.endswith("missing")


def test_a_line_cut_in_its_middle_is_found(folder):
    (path,) = filled(folder)
    os.truncate(path, path.stat().st_size - 20)
    assert verify(folder).problems == ["at the end: entry 6 is missing"]


def test_a_removed_file_is_found(folder):
    paths = filled(folder, 20, file_size=1_000)
    assert len(paths) > 3
    paths[1].unlink()
    (problem,) = verify(folder).problems
    assert "are missing" in problem
    paths[0].unlink()
    (problem,) = verify(folder).problems
    assert "entries 1 to" in problem


def test_a_removed_head_is_found(folder):
    filled(folder)
    (folder / "head").unlink()
    assert verify(folder).problems == [f"{folder / 'head'} is missing or unreadable"]


def test_a_trail_that_was_written_again_differs_from_an_anchor(folder, tmp_path):
    filled(folder)
    anchor = verify(folder).last
    other = tmp_path / "other"
    filled(other, 7)
    assert verify(other, anchor).problems == []
    assert verify(other, ChainLink(5, "0" * 64)).problems
    assert verify(other, ChainLink(9, anchor.chain)).problems


# No changes


def test_a_torn_line_is_told_from_a_change(folder, trail):
    trail.append([entry(1)])
    (path,) = files_of(folder).values()
    with path.open("ab") as file:
        file.write(b'{"n":2,"at":"2023')
    found = verify(folder)
    assert (found.problems, len(found.remarks)) == ([], 1)
    trail.append([entry(2)])
    found = verify(folder)
    assert (found.problems, len(found.remarks), found.entries) == ([], 1, 3)
    lines = texts(path)
    assert json.loads(lines[2])["event"] == "line-torn"
    lines[1] = lines[1].replace(b"2023", b"2024")
    path.write_bytes(b"".join(lines))
    assert verify(folder).problems == ["00000001.jsonl line 2: this line is no entry"]


def test_a_line_that_lacks_its_line_feed_only_is_an_entry(folder, trail):
    trail.append([entry(1), entry(2)])
    (path,) = files_of(folder).values()
    os.truncate(path, path.stat().st_size - 1)
    later = Trail(folder)
    later.append([entry(2), entry(3)])
    later.close()
    found = verify(folder)
    assert (found.problems, found.remarks, found.entries) == ([], [], 3)


def test_old_files_are_removed_and_the_trail_says_so(folder):
    paths = filled(folder, 20, file_size=1_000)
    old = time.time() - 11 * 86_400
    for path in paths[:3]:
        os.utime(path, (old, old))
    trail = Trail(folder, TrailLimits(file_size=1_000, keep_days=10))
    for number in range(30, 36):
        trail.append([entry(number)])
    trail.close()
    left = list(files_of(folder).values())
    assert left[0] == paths[3]
    assert "files-removed" in {each["event"] for each in entries_of(folder)}
    found = verify(folder)
    assert (found.problems, len(found.remarks)) == ([], 1)
    left[0].unlink()
    assert verify(folder).problems


def test_a_trail_goes_on_after_its_files_were_removed(folder):
    for path in filled(folder):
        path.unlink()
    filled(folder, 1)
    assert verify(folder).problems == ["00000001.jsonl line 1: entries 1 to 6 are missing"]


def test_bytes_are_allocated_beforehand(folder, trail):
    trail.append([entry(1)])
    (path,) = files_of(folder).values()
    assert path.stat().st_blocks * 512 >= ALLOCATED
    assert path.stat().st_size < 1_000
