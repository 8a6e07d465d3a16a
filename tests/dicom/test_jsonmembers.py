"""The attributes at the top level of a JSON text, found without parsing it, are those that a parser finds."""

import tracemalloc

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsrv.dicom.json.text import elements_in, members, names_any

TAGS = st.sampled_from([f"0010{at:04X}" for at in range(12)] + ["00081140", "52009230"])
TEXTS = st.text(alphabet='ab"\\{}[],:\n\0é', max_size=12)
ELEMENTS = st.recursive(
    st.fixed_dictionaries({"vr": st.just("LO")}, optional={"Value": st.lists(TEXTS | st.none(), max_size=3)}),
    lambda inner: st.fixed_dictionaries(
        {"vr": st.just("SQ")},
        optional={"Value": st.lists(st.dictionaries(TAGS, inner, max_size=3), max_size=3)},
    ),
    max_leaves=8,
).map(lambda found: {name: found[name] for name in ("vr", "Value") if name in found})
DATASETS = st.dictionaries(TAGS, ELEMENTS, max_size=6).map(lambda found: dict(sorted(found.items())))


def cut(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


@settings(max_examples=300, deadline=None)
@given(dataset=DATASETS, size=st.integers(1, 300))
def test_members_are_what_a_parser_finds(dataset, size):
    text = orjson.dumps(dataset)
    found = {}
    for tag, piece in members(cut(text, size)):
        found[tag] = found.get(tag, b"") + piece
    assert {tag: orjson.loads(value) for tag, value in found.items()} == dataset
    assert list(found) == list(dataset)
    wanted = frozenset(("00100003", "52009230"))
    some = elements_in(cut(text, size), wanted, 1 << 20)
    assert {tag: orjson.loads(value) for tag, value in some.items()} == {
        tag: value for tag, value in dataset.items() if tag in wanted
    }
    for tag in wanted:
        assert names_any(cut(text, size), [tag]) == (b'"%b":{' % tag.encode() in text)
    if any(value["vr"] == "SQ" for tag, value in dataset.items() if tag in wanted):
        flat = elements_in(cut(text, size), wanted, 1 << 20, no_sequences=wanted)
        assert all(orjson.loads(value)["vr"] != "SQ" for value in flat.values())


def test_a_long_attribute_is_refused_before_it_is_held():
    item = b'{"00081150":{"vr":"UI","Value":["1.2.3"]}}'
    text = b'{"00081140":{"vr":"SQ","Value":[' + b",".join([item] * 200_000) + b']},"00100020":{"vr":"LO"}}'
    pieces = cut(text, 1 << 18)
    tracemalloc.start()
    try:
        assert elements_in(pieces, ["00081140"], 1_000_000) is None
        assert elements_in(pieces, ["00081140", "00100020"], 1_000_000, ["00081140"]) == {
            "00100020": b'{"vr":"LO"}'
        }
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
