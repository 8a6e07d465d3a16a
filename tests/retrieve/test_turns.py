"""Long texts take turns: few threads of a worker compute, and none waits long."""

import threading

import pytest
from report_world import content_item, report
from retrieve_world import ask, instance_path, keep, part10, room_of

from streamsrv.retrieve.turns import AT_A_TIME, Turns

ONE = instance_path("1.2.3.4.1")
XML = 'multipart/related; type="application/dicom+xml"'


def failing():
    yield b"a"
    raise ValueError("broken")


def test_all_chunks_come_in_order():
    turns = Turns(1)
    assert list(turns.of(iter([b"a", b"b", b"c"]))) == [b"a", b"b", b"c"]
    broken = turns.of(failing())
    assert next(broken) == b"a"
    with pytest.raises(ValueError, match="broken"):
        next(broken)
    assert list(turns.of(iter([b"d"]))) == [b"d"]  # the turn was given back


def test_who_has_no_turn_says_that_nothing_is_ready():
    turns, begun, goes_on = Turns(1, turn=0.001), threading.Event(), threading.Event()

    def slow():
        begun.set()
        goes_on.wait(30)
        yield b"slow"

    found = []
    thread = threading.Thread(target=lambda: found.extend(turns.of(slow())))
    thread.start()
    begun.wait(30)
    other = turns.of(iter([b"other"]))
    assert [next(other) for _ in range(3)] == [b"", b"", b""]
    goes_on.set()
    thread.join()
    assert found == [b"slow"]
    assert next(filter(None, other)) == b"other"


def long_report():
    text = "long " * 10_000
    return report(content=[content_item("TEXT", f"Note {number}", TextValue=text) for number in range(30)])


@pytest.mark.parametrize(
    ("path", "accept"), [("metadata", XML), ("metadata?includefield=0040A730", "application/dicom+json")]
)
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_long_metadata_take_turns(store, path, accept, coding):
    keep(store, part10(long_report()))
    turns = room_of(store)._rooms.turns
    answer = ask(store, f"{ONE}/{path}", accept=accept, accept_encoding=coding)
    (piece,) = answer.plan
    chunks = piece.chunks(0, None)
    for _ in range(AT_A_TIME):
        assert turns._free.acquire(blocking=False)
    assert next(chunks) == b""
    turns._free.release(AT_A_TIME)
    assert next(chunks)
    chunks.close()
    answer.release()


def test_pages_take_turns(store):
    keep(store, part10(long_report()))
    turns = room_of(store)._rooms.turns
    answer = ask(store, "/studies/1.2.3/rendered")
    (piece,) = answer.plan
    chunks = piece.chunks(0, None)
    assert next(chunks).startswith(b"--")
    for _ in range(AT_A_TIME):
        assert turns._free.acquire(blocking=False)
    assert b"" in [next(chunks) for _ in range(3)]
    turns._free.release(AT_A_TIME)
    assert b"".join(chunks).endswith(b"--\r\n")
    answer.release()
