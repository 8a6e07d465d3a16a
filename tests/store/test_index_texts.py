"""Metadata texts that are kept together: rows, what is found in them, what goes."""

import random

import lmdb
import pytest
from index_examples import new_instance

from streamsrv.errors import SegmentGone, StoreCorrupt, StoreError
from streamsrv.store.index import metadata_blobs as index_texts
from streamsrv.store.index.batch import metadata_rows, prepare
from streamsrv.store.index.environment import FILE_FORMAT, SCHEMA
from streamsrv.store.index.index import Index
from streamsrv.store.index.metadata_blobs import (
    BlobRange,
    BlobReader,
    find_blobs,
    lengths_in,
    pack_blob,
    remove_metadata,
    share_blobs,
    texts_in_row,
)
from streamsrv.store.index.rows import chunk_key, with_sum
from streamsrv.store.rows import InstanceKey

TEXTS = [b'{"n":%d}' % number for number in range(40)]


def key_of(number, study="1.1"):
    return InstanceKey(study, f"{study}.1", f"9.{number:04}")


def short(number, text=None, study="1.1", **facts):
    """An instance whose text is kept with others'."""
    made = new_instance(key_of(number, study), number + 1, text=text or TEXTS[number % 40], **facts)
    made.text, made.metadata = text or TEXTS[number % 40], []
    return made


@pytest.fixture
def index(memory):
    opened = Index.open(memory)
    opened.add_segment()
    yield opened
    opened.close()


def commit(index, *new, replaced=()):
    index.commit(new, segment=1, committed_end=0, replaced=replaced)


def delete(index, *numbers):
    rows = index.packed_rows([key_of(number) for number in numbers])
    return index.delete(rows, segment=1, committed_end=0, dead_bytes=0)


def rows_of(index):
    return list(index.dump("metadata"))


def texts(index, study="1.1"):
    return {row.key: text for row in index.lookup(study) for text in index.metadata([row])}


# Which texts are kept together


def counts(sizes):
    places = share_blobs([bytes(size) for size in sizes])
    return [place and (place.number, place.texts.count) for place in places]


def test_neighbours_are_kept_together_and_no_text_alone(monkeypatch):
    assert counts([]) == []
    assert counts([5]) == [None]
    assert counts([5, 5]) == [(0, 2), (1, 2)]
    assert counts([5, 0, 5, 5]) == [None, None, (0, 2), (1, 2)]
    assert counts([0, 0]) == [None, None]
    monkeypatch.setattr(index_texts, "TEXTS_TOGETHER", 3)
    assert counts([1] * 7) == [(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3), None]
    monkeypatch.setattr(index_texts, "BYTES_TOGETHER", 10)
    assert counts([6, 4, 1, 11, 9, 1]) == [(0, 2), (1, 2), None, None, (0, 2), (1, 2)]


def test_those_that_lost_leave_the_row():
    """A duplicate that is refused is not among the instances of a commit."""
    prepared = prepare([short(number) for number in range(5)])
    for chosen in ([0, 1, 2, 3, 4], [0, 2, 4], [1, 2], [3]):
        rows = list(metadata_rows([prepared[number] for number in chosen]))
        assert rows[1:] == [[]] * (len(chosen) - 1)
        assert BlobReader().texts(rows[0][0]) == [TEXTS[number] for number in chosen]
    assert prepare(prepared) == prepared


def test_long_and_short_ones_side_by_side(index):
    long = b'{"x":"' + b"y" * 600_000 + b'"}'
    commit(index, short(0), short(1), new_instance(key_of(2), 3, text=long), short(3), short(4), short(5))
    assert [int.from_bytes(key[:8], "big") for key, _ in rows_of(index)] == [1, 3, 3, 3, 4]
    expected = [TEXTS[0], TEXTS[1], long, *TEXTS[3:6]]
    assert b"".join(index.metadata(index.lookup("1.1"))) == b"".join(expected)
    assert b"".join(index.metadata(index.lookup("1.1")[::-1])) == b"".join(expected[::-1])


def test_who_asks_for_one_finds_its_neighbours_read(index, monkeypatch):
    """Whoever asks for many does not push them out."""
    commit(index, *(short(number) for number in range(6)))
    inflated, usual = [], BlobReader.texts
    monkeypatch.setattr(BlobReader, "texts", lambda self, value: inflated.append(1) or usual(self, value))
    for number in (4, 1, 4, 0):
        assert b"".join(index.metadata(index.lookup(*key_of(number)))) == TEXTS[number]
    assert len(inflated) == 1
    assert b"".join(index.metadata(index.lookup("1.1"))) == b"".join(TEXTS[:6])
    assert len(inflated) == 2


def test_what_was_read_for_a_neighbour_is_not_found_when_it_has_gone(index):
    commit(index, *(short(number) for number in range(6)))
    rows = [index.lookup(*key_of(number)) for number in range(6)]
    assert b"".join(index.metadata(rows[2])) == TEXTS[2]
    delete(index, 3)
    with pytest.raises(SegmentGone):
        list(index.metadata(rows[3]))
    assert b"".join(index.metadata(rows[2])) == TEXTS[2]


# What goes


def test_a_text_goes_with_its_instance_and_the_row_with_its_last(index):
    commit(index, *(short(number) for number in range(20)))
    assert len(rows_of(index)) == 2
    assert delete(index, 0, 7, 15, 17) == 4
    held = [text for _, value in rows_of(index) for text in BlobReader().texts(value[:-4])]
    assert [text for text in held if text] == [TEXTS[n] for n in range(20) if n not in (0, 7, 15, 17)]
    assert list(texts(index).values()) == [TEXTS[n] for n in range(20) if n not in (0, 7, 15, 17)]
    assert delete(index, *(n for n in range(16) if n not in (0, 7, 15))) == 13
    assert len(rows_of(index)) == 1
    assert delete(index, 16, 18, 19) == 3
    assert rows_of(index) == []


def test_what_is_replaced_goes_too(index):
    commit(index, *(short(number) for number in range(6)))
    new = [
        short(number, b'{"new":%d}' % number, location=index.lookup(*key_of(5))[0].location)
        for number in (1, 3)
    ]
    for each in new:
        each.row = each.row._replace(record_id=bytes([each.row.record_id[0]]) * 16)
    old = index.existing([each.row.key for each in new])
    commit(index, *new, replaced=old)
    assert list(texts(index).values()) == [TEXTS[0], b'{"new":1}', TEXTS[2], b'{"new":3}', *TEXTS[4:6]]
    with pytest.raises(SegmentGone):
        list(index.metadata([*index.lookup("1.1")[:1], old[0]]))
    held = b"".join(text for _, value in rows_of(index) for text in BlobReader().texts(value[:-4]))
    assert TEXTS[1] not in held


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_storing_and_deleting(index, monkeypatch, seed):
    monkeypatch.setattr(index_texts, "TEXTS_TOGETHER", 4)
    monkeypatch.setattr(index_texts, "ROWS_KEPT", 2)
    draw, model, number = random.Random(seed), {}, 0
    for _ in range(60):
        if model and draw.random() < 0.5:
            gone = sorted(draw.sample(sorted(model), draw.randint(1, min(len(model), 9))))
            assert index.delete(index.packed_rows(gone), segment=1, committed_end=0, dead_bytes=0) == len(
                gone
            )
            for key in gone:
                del model[key]
        else:
            new = []
            for _ in range(draw.randint(1, 11)):
                number += 1
                text = b"{%d}" % number if draw.random() < 0.9 else b"x" * draw.choice((300_000, 20_000))
                study = draw.choice(("1.1", "1.2"))
                key = InstanceKey(study, f"{study}.1", f"9.{draw.randrange(10**6)}")
                made = new_instance(key, number, text=text)
                if len(text) < 100:
                    made.text, made.metadata = text, []
                if key not in model and key not in {each.row.key for each in new}:
                    new.append(made)
                    model[key] = text
            commit(index, *new)
        for study in ("1.1", "1.2"):
            rows = index.lookup(study)
            assert b"".join(index.metadata(rows)) == b"".join(model[row.key] for row in rows)
        owners = [owner for pair in rows_of(index) for owner in texts_in_row(*pair) if not owner[1]]
        assert len(owners) == len(set(owners)) == len(model)


def test_texts_are_forgotten_when_nobody_asks_for_them_again():
    rows = [pack_blob(TEXTS[:3]), pack_blob(TEXTS[3:6])]
    asked = [
        BlobRange(rows[0], 0, 2),
        BlobRange(rows[1], 2, 1),
        BlobRange(rows[0], 2, 1),
        BlobRange(rows[0], 2, 1),
        BlobRange(rows[1], 0, 3),
    ]
    texts, held = BlobReader(), []
    for some in texts.each(asked):
        held.append((some, len(texts._known)))
    assert held == [
        (TEXTS[:2], 1),
        (TEXTS[5:6], 2),
        (TEXTS[2:3], 2),
        (TEXTS[2:3], 1),
        (TEXTS[3:6], 0),
    ]


# Damage


def world(memory, *pairs):
    environment = lmdb.open(str(memory / "rows"), max_dbs=1)
    handle = environment.open_db(b"metadata")
    with environment.begin(write=True, db=handle) as transaction:
        for key, value in pairs:
            transaction.put(key, with_sum(key, value))
    return environment, handle


def test_what_is_not_there_is_not_found(memory):
    both = pack_blob(TEXTS[:2])
    environment, handle = world(
        memory, (chunk_key(5, 0), both), (chunk_key(9, 1), both), (chunk_key(20, 0), b"(")
    )
    with environment.begin(write=True, db=handle) as transaction:
        found = lambda *serials: find_blobs(transaction.cursor(), serials)  # noqa: E731
        assert found() == []
        assert found(5, 6) == [(both, 0, 2)]
        assert found(6) == [(both, 1, 1)]
        assert found(20, 6, 5, 6) == [(b"(", 0, 1), (both, 1, 1), (both, 0, 2)]
        assert found(5, 5, 6, 20) == [(both, 0, 1), (both, 0, 2), (b"(", 0, 1)]
        for serial in (4, 7, 8, 9, 10, 19, 21):
            assert found(serial) is None
        remove_metadata(transaction.cursor(), [1, 7, 21])
        assert len(list(transaction.cursor())) == 3
    environment.close()


@pytest.mark.parametrize(
    "value", [b"\0", b"\0\5", b"\0\2" + bytes(8) + b"no frame", pack_blob([b"a", b"b"])[:-1], b"x"]
)
def test_a_row_that_cannot_be_read_is_told(value):
    with pytest.raises(StoreCorrupt, match="reindex"):
        BlobReader().text(BlobRange(value, 0, 1))


def test_lengths_that_are_not_those_of_the_texts_are_told():
    value = bytearray(pack_blob([b"abc", b"de"]))
    value[2] += 1
    with pytest.raises(StoreCorrupt, match="reindex"):
        BlobReader().texts(bytes(value))
    assert lengths_in(b"(") == (1,)
    assert list(texts_in_row(chunk_key(3, 0), b"\0\7")) == [(3, 0)]


# Older ones


def change_about(memory, name, value):
    with lmdb.open(str(memory), max_dbs=20) as environment:
        about = environment.open_db(b"about", create=False)
        with environment.begin(write=True, db=about) as transaction:
            transaction.put(name, with_sum(name, value))


def remove_database(memory, name):
    with lmdb.open(str(memory), max_dbs=20) as environment:
        handle = environment.open_db(name, create=False)
        with environment.begin(write=True) as transaction:
            transaction.drop(handle)


@pytest.mark.parametrize(
    ("name", "own", "other"), [("schema", SCHEMA, f"{SCHEMA}0"), ("format", FILE_FORMAT, "LMDB 1.0")]
)
@pytest.mark.parametrize("read_only", [True, False])
def test_an_index_of_another_schema_or_library_is_refused_and_stays_as_it_is(
    memory, read_only, name, own, other
):
    index = Index.open(memory)
    index.add_segment()
    commit(index, short(0))
    index.close()
    change_about(memory, name.encode(), other.encode())
    with pytest.raises(StoreError, match=f"another version .{name} is {other}.*: run reindex"):
        Index.open(memory, read_only=read_only)
    change_about(memory, name.encode(), own.encode())
    index = Index.open(memory)
    assert (index.about()["schema"], list(texts(index).values())) == (SCHEMA, TEXTS[:1])
    index.close()


@pytest.mark.parametrize("version", [0, 2, 4])
def test_an_index_of_another_file_format_is_refused(memory, version):
    Index.open(memory).close()
    whole = bytearray((memory / "data.mdb").read_bytes())
    page = whole.index(b"\xde\xc0\xef\xbe", whole.index(b"\xde\xc0\xef\xbe") + 1) & ~0xFFF
    for meta in (0, page):
        whole[meta + 20 : meta + 24] = version.to_bytes(4, "little")
    (memory / "data.mdb").write_bytes(whole)
    with pytest.raises(
        StoreError, match=f"file format of the index is not that of {FILE_FORMAT}: run reindex"
    ):
        Index.open(memory)
