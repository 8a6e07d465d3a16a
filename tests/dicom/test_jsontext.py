"""The reader of long JSON text against Python's own parser, at every cut."""

import json
import tracemalloc

import pytest

from streamsrv.dicom.json import text as jsontext
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.errors import InstanceRefused, NotDicom

TEXT = b' { "a" : [1, -2.5e3, "x\xc3\xa4\\"]}", null, {}, [] ] ,\n"b":{"c":{"d":[[1],[2]]}},"e":12 } '


def rebuilt(reader, limit):
    """The value by way of the finest steps that LARGE asks for."""
    value = reader.value(limit)
    if value is not LARGE:
        return value
    if reader.peek() == "[":
        return [rebuilt(reader, limit) for _ in reader.elements()]
    return {name: rebuilt(reader, limit) for name in reader.members()}


@pytest.mark.parametrize("limit", [0, 1, 5, 20, None])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_every_cut_gives_the_same_value(monkeypatch, step, limit):
    monkeypatch.setattr(jsontext, "STEP", 1)
    reader = JsonReader(TEXT[at : at + step] for at in range(0, len(TEXT), step))
    assert rebuilt(reader, limit) == json.loads(TEXT)
    reader.end()


def test_the_text_of_the_last_value():
    reader = JsonReader([b'{"a": [1,', b" 2]}"])
    for _ in reader.members():
        reader.value()
    assert reader.last == "[1, 2]"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a" 1}', b"{1:2}", b"[1 2]", b"[1,]", b"nul",
        b'"\xff"', b"[NaN]", b"[" * 100_000, b'{"a":1}}', b"\xc3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("limit", [0, None])
def test_what_is_malformed_is_refused(text, limit):
    with pytest.raises(NotDicom):
        finished(JsonReader([text]), limit)


def finished(reader, limit):
    try:
        rebuilt(reader, limit)
    except RecursionError:  # of this test's own function
        raise NotDicom("too deep") from None
    reader.end()


def test_a_long_string_is_read_whole():
    text = b'{"a":"' + b"x" * 1_000_000 + b'"}'
    reader = JsonReader([text[at : at + 999] for at in range(0, len(text), 999)])
    assert reader.value() is LARGE
    assert [len(reader.value()) for _ in reader.members()] == [1_000_000]


def test_a_value_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(jsontext, "LONGEST", 200_000)
    with pytest.raises(InstanceRefused):
        JsonReader(b"x" * 1000 if number else b'"' for number in range(10_000)).value()


@pytest.mark.no_cover
def test_memory_is_bounded():
    def pieces():
        yield b"["
        for number in range(60_000):
            yield b"," * bool(number) + b'{"00100020":{"vr":"LO","Value":["some text of an item"]}}'
        yield b"]"

    tracemalloc.start()
    reader = JsonReader(pieces())
    assert reader.value() is LARGE
    assert sum(len(reader.value()) for _ in reader.elements()) == 60_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
